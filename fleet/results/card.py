"""What a consumer reads about an export: the model card and its figure, both drawn from ``export.json`` alone."""

import io
from collections.abc import Sequence
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fleet.results.exported import DENSE, INT8_FILE, MODEL_FILE, Export, Layer
from fleet.results.templates import render

_FILES: Final = {DENSE: "#9aa7ba", MODEL_FILE: "#3267d6", INT8_FILE: "#0f8a7e"}
_INK, _LINE, _WORK = "#17202e", "#e1e7ee", "#d98a16"
_RC: Final[Any] = {
    **{"svg.fonttype": "none", "svg.hashsalt": "pruneseal", "text.parse_math": False, "legend.frameon": False},
    **{"font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.axisbelow": True},
    **{f"axes.spines.{side}": False for side in ("top", "right")},
}
_MOST_LAYERS: Final = 24


def draw(export: Export) -> bytes:
    """The figure: density and work left by layer, and latency by setting; an SVG file."""
    layers = export.layers[:_MOST_LAYERS]
    with rc_context(_RC):
        figure = Figure((10, max(3.2, 1.1 + 0.26 * len(layers))), layout="constrained", facecolor="white")
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        _layers(left, layers, len(export.layers))
        _latency(right, export)
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def write_card(export: Export) -> str:
    """The model card, in Markdown."""
    return render("model_card.md.jinja", export=export, names=_measured(export))


def _measured(export: Export) -> list[str]:
    """The files that were timed, the dense one first."""
    return [name for name in _FILES if name in export.latency[0].files]


def _layers(axes: Axes, layers: Sequence[Layer], count: int) -> None:
    """Two bars a layer: the weights that are kept, and this layer's part of all multiply-accumulates that are left."""
    axes.set_title("weights kept, by layer" + (f" (first {len(layers)} of {count})" if count > len(layers) else ""))
    if not layers:
        axes.text(0, 0, "cannot be counted")
        axes.set_axis_off()
        return
    places = range(len(layers))
    density = [layer.kept / layer.weights if layer.weights else 1.0 for layer in layers]
    axes.barh(places, [1.0] * len(layers), 0.66, color=_LINE)
    axes.barh(places, density, 0.66, color=_FILES[MODEL_FILE])
    total = sum(layer.dense for layer in layers)
    for place, (layer, value) in enumerate(zip(layers, density, strict=True)):
        share = layer.dense / total if total else 0.0
        axes.annotate(
            f"{value:.3f} · {100 * share:.0f} % of the work",
            (1, place),
            (6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(places, [layer.name[-28:] for layer in layers])
    axes.set(xlim=(0, 1), ylim=(len(layers) - 0.5, -0.5), xlabel="fraction of the layer's weights that are not zero")
    axes.spines["left"].set_visible(False)


def _latency(axes: Axes, export: Export) -> None:
    """Grouped bars: speed against dense at every setting."""
    names, rows = _measured(export), export.latency
    axes.set_title("speed against the dense file")
    width = 0.8 / len(names)
    for offset, name in enumerate(names):
        speeds = [row.files[name].speed for row in rows]
        places = [place + (offset - (len(names) - 1) / 2) * width for place in range(len(rows))]
        axes.bar(places, speeds, width * 0.92, color=_FILES[name], label=name)
        for place, row, speed in zip(places, rows, speeds, strict=True):
            text = f"{1e3 * row.files[name].median:.3g} ms"
            axes.annotate(
                text, (place, speed), (0, 3), textcoords="offset points", ha="center", rotation=90, fontsize=7
            )
    axes.axhline(1, color=_INK, linewidth=0.8)
    axes.set_xticks(range(len(rows)), [f"batch {row.batch}\nthreads {row.threads}" for row in rows])
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])
    axes.set_ylabel("times as fast as dense")
    axes.legend(loc="upper left", fontsize=8, ncols=len(names), borderaxespad=0)
