"""What a consumer reads about an export: the model card and its figure, both drawn from ``export.json`` alone."""

import io
import json
from collections.abc import Mapping
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.filesize import decimal

_FILES: Final = {"dense": "#9aa7ba", "model.onnx": "#3267d6", "model.int8.onnx": "#0f8a7e"}
_INK, _LINE, _WORK = "#17202e", "#e1e7ee", "#d98a16"
_RC: Final[Any] = {
    **{"svg.fonttype": "none", "svg.hashsalt": "pruneseal", "text.parse_math": False, "legend.frameon": False},
    **{"font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.axisbelow": True},
    **{f"axes.spines.{side}": False for side in ("top", "right")},
}
_MOST_LAYERS: Final = 24


def draw(export: Mapping[str, Any]) -> bytes:
    """The figure: density and work left by layer, and latency by setting; an SVG file."""
    layers = export["layers"][:_MOST_LAYERS]
    with rc_context(_RC):
        figure = Figure((10, max(3.2, 1.1 + 0.26 * len(layers))), layout="constrained", facecolor="white")
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        _layers(left, layers, len(export["layers"]))
        _latency(right, export["latency"])
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def write_card(export: Mapping[str, Any]) -> str:
    """The model card, in Markdown."""
    provenance, files = export["provenance"], export["files"]
    data, work = provenance.get("data", "unknown data"), export["multiply_accumulates_left"]
    best = export["recommended"]
    shape, span = export["input"]["shape"], export["input"]["range"]
    lines = [
        f"# {_text(provenance.get('model', 'model'))} on {_text(data)}",
        "",
        f"Recommended file: **{best}**.",
        "",
        *(f"* {reason}." for reason in export["reasons"]),
        "",
        "(At batch 1 on one thread, where this export was made; see *Speed*.)",
        "",
        "## The network",
        "",
        "| | |",
        "|---|---|",
        f"| method | {_text(provenance.get('method', 'unknown'))}, round {_text(provenance.get('round', 'unknown'))} |",
        f"| data | {_text(data)} |",
        f"| sparsity | {export['sparsity']:.4f}: {export['kept']:,} of {export['parameters']:,} parameters are not 0 |",
        f"| multiply-accumulates left | {'cannot be counted' if work is None else format(work, '.4f')} |",
        f"| input | `{export['input']['name']}`: float32, any batch of {shape}, raw values"
        f"{'' if span is None else f' from {span[0]:g} to {span[1]:g}'} |",
        f"| output | `{export['output']}`: one logit a class |",
        f"| classes | {_text(', '.join(export['labels'][:20]))}{' …' if len(export['labels']) > 20 else ''} |",
        "",
        "Sparsity counts parameters; the multiply-accumulates that are left count work. Stock runtimes skip neither:",
        "what they gain comes from channels and neurons that were removed whole, and from int8.",
        "",
        "## Files",
        "",
        "| file | size | smaller than dense | accuracy |",
        "|---|---|---|---|",
        f"| dense float, not shipped | {decimal(export['dense_bytes'])} | 1.0x | |",
    ]
    for name, file in files.items():
        score = file.get("accuracy")
        lines.append(
            f"| `{name}` | {decimal(file['bytes'])} | {export['dense_bytes'] / file['bytes']:.1f}x "
            f"| {'not measured' if score is None else format(score, '.4f')} |"
        )
    lines += [
        "",
        "`model.onnx` keeps every bit of the weights that are left; its outputs differ from torch's by at most "
        f"{files['model.onnx']['max_abs_diff']:.2g}.",
    ]
    if export["int8_refused"]:
        lines.append(f"There is no int8 file: {export['int8_refused']}.")
    else:
        lines.append(
            f"The int8 file is approximate; it may lose {export['int8_tolerance']:g} of accuracy, and was refused else."
        )
    if export["rounding_speeds"]:
        told = ", ".join(f"{name} {speed:.2f}x" for name, speed in export["rounding_speeds"].items())
        lines.append(
            f"Channel counts {'are rounded up to 16' if export['rounded_channels'] else 'are exact'}, "
            f"as measured to be best here (speed against dense: {told})."
        )
    lines += [f"Left as it was: {_text(reason)}." for reason in export["left_as_it_was"]]
    names = [name for name in _FILES if name in export["latency"][0]]
    lines += [
        "",
        "## Speed",
        "",
        "Milliseconds a batch: median (10th to 90th percentile), all files in turns in one process; in brackets the",
        "speed against the dense file, on one thread by CPU time, which other load disturbs least.",
        "",
        f"| threads | batch | {' | '.join(names)} |",
        f"|---|---|{'---|' * len(names)}",
        *(_speed(row, names) for row in export["latency"]),
        "",
        "; ".join(f"{_text(str(key))} {_text(str(value))}" for key, value in export["machine"].items()) + ".",
        "",
        "![density and work by layer, and latency](figure.svg)",
        "",
        "## Provenance",
        "",
        "The same stands in the metadata of each ONNX file.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {_text(key)} | {_text(value)} |" for key, value in sorted(provenance.items())),
        "",
    ]
    return "\n".join(lines)


def _speed(row: Mapping[str, Any], names: list[str]) -> str:
    cells = [
        f"{1e3 * row[name]['median']:.3f} ({1e3 * row[name]['p10']:.3f} to {1e3 * row[name]['p90']:.3f})"
        + (f" [{row[name]['speed']:.2f}x]" if name != "dense" else "")
        for name in names
    ]
    return f"| {row['threads']} | {row['batch']} | {' | '.join(cells)} |"


def _text(value: str) -> str:
    """Text that stays text in a Markdown table."""
    return json.dumps(value, ensure_ascii=False)[1:-1].replace("|", "\\|").replace("<", "&lt;").replace('\\"', '"')


def _layers(axes: Axes, layers: list[Mapping[str, Any]], count: int) -> None:
    """Two bars a layer: the weights that are kept, and this layer's part of all multiply-accumulates that are left."""
    axes.set_title("weights kept, by layer" + (f" (first {len(layers)} of {count})" if count > len(layers) else ""))
    if not layers:
        axes.text(0, 0, "cannot be counted")
        axes.set_axis_off()
        return
    places = range(len(layers))
    density = [layer["kept"] / layer["weights"] if layer["weights"] else 1.0 for layer in layers]
    axes.barh(places, [1.0] * len(layers), 0.66, color=_LINE)
    axes.barh(places, density, 0.66, color=_FILES["model.onnx"])
    total = sum(layer["dense"] for layer in layers)
    for place, (layer, value) in enumerate(zip(layers, density, strict=True)):
        share = layer["dense"] / total if total else 0.0
        axes.annotate(
            f"{value:.3f} · {100 * share:.0f} % of the work",
            (1, place),
            (6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(places, [layer["name"][-28:] for layer in layers])
    axes.set(xlim=(0, 1), ylim=(len(layers) - 0.5, -0.5), xlabel="fraction of the layer's weights that are not zero")
    axes.spines["left"].set_visible(False)


def _latency(axes: Axes, rows: list[Mapping[str, Any]]) -> None:
    """Grouped bars: speed against dense at every setting."""
    names = [name for name in _FILES if name in rows[0]]
    axes.set_title("speed against the dense file")
    width = 0.8 / len(names)
    for offset, name in enumerate(names):
        speeds = [row[name]["speed"] for row in rows]
        places = [place + (offset - (len(names) - 1) / 2) * width for place in range(len(rows))]
        axes.bar(places, speeds, width * 0.92, color=_FILES[name], label=name)
        for place, row, speed in zip(places, rows, speeds, strict=True):
            text = f"{1e3 * row[name]['median']:.3g} ms"
            axes.annotate(
                text, (place, speed), (0, 3), textcoords="offset points", ha="center", rotation=90, fontsize=7
            )
    axes.axhline(1, color=_INK, linewidth=0.8)
    axes.set_xticks(range(len(rows)), [f"batch {row['batch']}\nthreads {row['threads']}" for row in rows])
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])
    axes.set_ylabel("times as fast as dense")
    axes.legend(loc="upper left", fontsize=8, ncols=len(names), borderaxespad=0)
