"""A run as one page: `report.html`, self-contained, to read on a screen or on paper.

The page loads nothing and runs nothing: its style sheet and its figures (SVG drawn by matplotlib, text kept as text)
stand inside it. Figures are drawn in the light palette; each colour is then replaced by the CSS variable of its name,
so that one drawing serves light, dark and print. Whatever comes from a run (names of methods, tensors, settings) is
text here, never markup.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate, cycle
from pathlib import Path
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fleet.units import clock, human_bytes

Rounds = Sequence[Mapping[str, Any]]  # one mapping of figures per completed round
# Name: (light, dark). matplotlib draws with the light value, so no two light values are equal.
_PALETTE: Final = {
    "ink": ("#17202e", "#e8edf4"),
    "muted": ("#5f6b7e", "#9aa7ba"),
    "line": ("#e1e7ee", "#313c4c"),
    "card": ("#ffffff", "#1a222e"),
    "page": ("#f4f6f9", "#11171f"),
    "blue": ("#3267d6", "#7ba6f7"),
    "teal": ("#0f8a7e", "#35c9b8"),
    "amber": ("#d98a16", "#f0b44c"),
    "violet": ("#7a55c7", "#b39af0"),
    "rose": ("#c43d62", "#f07f9d"),
}
_INK: Final = {name: light for name, (light, _) in _PALETTE.items()}
_SERIES: Final = [_INK[name] for name in ("blue", "teal", "amber", "violet", "rose")]
_RC: Final[Any] = {
    **{"svg.fonttype": "none", "svg.hashsalt": "pruneseal", "text.parse_math": False, "legend.frameon": False},
    **{"font.size": 8.5, "axes.titlesize": 8.5, "axes.titlelocation": "left", "axes.axisbelow": True},
    **{"text.color": _INK["ink"], "axes.titlecolor": _INK["ink"], "axes.edgecolor": _INK["line"]},
    **{f"{item}color": _INK["muted"] for item in ("xtick.", "ytick.", "axes.label")},
    **{f"axes.spines.{side}": False for side in ("top", "right", "left")},
    **{"axes.grid": True, "axes.grid.axis": "y", "grid.color": _INK["line"], "grid.linewidth": 0.6},
    **{"ytick.major.size": 0, "xtick.major.size": 2.5, "lines.linewidth": 1.8, "lines.markersize": 2.4},
}
_MOST_BARS: Final = 40
_DARK: Final = "".join(f"--{name}:{dark};" for name, (_, dark) in _PALETTE.items())
_STYLE: Final = f"""
:root{{color-scheme:light dark;{"".join(f"--{name}:{light};" for name, light in _INK.items())}}}
@media screen and (prefers-color-scheme:dark){{:root{{{_DARK}}}}} *{{box-sizing:border-box}}
body{{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,"Helvetica Neue",Arial,sans-serif}}
main{{max-width:1080px;margin:0 auto;padding:40px 24px 56px}}
h1{{font-size:31px;line-height:1.2;letter-spacing:-.015em;margin:6px 0 8px}}
h2{{font-size:15px;margin:0 0 10px}} .pairs+h2{{margin-top:20px}} p{{margin:0}}
.muted,figcaption span,th,.pairs td:first-child{{color:var(--muted)}}
.seal{{display:inline-block;margin-top:14px;padding:3px 12px;border-radius:99px;border:1px solid;
  font-size:14px;font-weight:600;color:var(--muted)}} .good{{color:var(--teal)}} .bad{{color:var(--rose)}}
.grid{{display:grid;gap:16px;margin-top:16px;grid-template-columns:repeat(2,minmax(0,1fr))}}
.tiles{{grid-template-columns:repeat(6,minmax(0,1fr));margin-top:28px}}
.card{{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px 18px;
  margin:0;min-width:0;break-inside:avoid;font-size:13px}} .wide{{grid-column:1/-1;overflow-x:auto}}
.tile{{padding:13px 15px}} .tile b{{display:block;font-size:24px;letter-spacing:-.01em}}
figcaption{{margin-bottom:8px}} figcaption b{{display:block;font-size:15px}}
svg{{display:block;width:100%;height:auto}} svg text{{font-family:inherit!important}}
table{{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}}
th,td{{padding:4px 8px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}}
th:first-child,td:first-child{{text-align:left;padding-left:0}} th{{font-weight:500}}
tr:last-child td{{border-bottom:0}} .pairs td{{white-space:normal;overflow-wrap:anywhere}}
@media screen and (max-width:820px){{h1{{font-size:25px}} .grid{{grid-template-columns:minmax(0,1fr)}}
  .tiles{{grid-template-columns:repeat(2,minmax(0,1fr))}} .wide svg{{min-width:720px}}}}
@media print{{body{{background:none;font-size:12px}} main{{padding:0}} .rounds{{break-inside:auto}}
  h1{{font-size:24px}} .card{{padding:10px;font-size:10px}} .tile b{{font-size:16px}} td{{padding:2px 4px}}}}
"""
_WHAT_WAS_LEARNT: Final = """The aggregator learnt who took part and when, the sizes of the messages, each client's
sample count, how many values travelled, and the metrics in the table below. It added ciphertexts without holding a
key: it learnt no weight, no update, no averaged model, and not which positions survive. Clients learnt the averaged
model of each round, and no other client's update."""


@dataclass(frozen=True)
class LayerDensity:
    """How much of one tensor the final support keeps: ``kept`` of ``size`` values."""

    name: str
    kept: int
    size: int

    def __post_init__(self) -> None:
        if not 0 <= self.kept <= self.size or self.size == 0:
            raise ValueError(f"{self.name!r} cannot keep {self.kept} of {self.size} values")

    @property
    def density(self) -> float:
        """The fraction kept, in [0, 1]."""
        return self.kept / self.size


def write_report(path: Path, metrics: Rounds, summary: Mapping[str, Any], density: Sequence[LayerDensity]) -> None:
    """Writes the run as one self-contained HTML page.

    Args:
        path: Where to write; the folder exists, an older report is replaced.
        metrics: One mapping per completed round, in order; ``accuracy`` and ``loss`` may be None or absent
            where no client measured them.
        summary: The run as a whole: its result, its sizes and its cryptographic parameters.
        density: One entry per tensor of the final model.

    Raises:
        ValueError: There is no completed round or no tensor to report.
    """
    if not metrics or not density:
        raise ValueError("a report needs at least one completed round and one tensor")
    s, bars = summary, sorted(density, key=lambda tensor: -tensor.size)[:_MOST_BARS]
    sent, dense = s["uplink_bytes"], s["dense_fedavg_uplink_bytes"]
    factor = f"{dense / sent:.1f}× less" if sent <= dense else f"{sent / dense:.1f}× more"
    verdict = f"Accuracy {_number(s['accuracy'])}, sparsity {s['sparsity']:.3f}, {factor} uplink"
    run = f"{s['method']} · {s['model']} on {s['data']} ({s['partition']})"
    extent = f"{s['clients']} clients, {s['rounds']} rounds in {clock(s['seconds'])}"
    tiles = (
        _tile("Accuracy", _number(s["accuracy"]), "averaged model, last round"),
        _tile("ONNX accuracy", _number(s["onnx_accuracy"]), f"outputs within {_number(s['onnx_max_abs_diff'], '.1e')}"),
        _tile("Sparsity", f"{s['sparsity']:.3f}", f"{s['kept']:,} of {s['parameters']:,} kept; {_work(s)}"),
        _tile("Uplink", human_bytes(sent), f"{factor} than dense FedAvg"),
        _tile("Downlink", human_bytes(s["downlink_bytes"]), "to all clients together"),
        _tile("Bytes per value", f"{s['uplink_bytes_per_value']:.2f}", "float32 takes 4"),
    )
    cryptography = {
        "scheme": "BFV, exact integers; pairwise masks inside",
        "security level": f"{s['security_level']} bits",
        "ring degree": s["ring_degree"],
        "ciphertext modulus": f"{s['coeff_modulus_bits']} bits",
        "plaintext modulus": f"{s['plain_modulus_bits']} bits",
        "grid of the sum": f"{s['bits']} bits",
    }
    tensors = f"values kept of all values; {len(bars)} of {len(density)} tensors, largest first"
    with rc_context(_RC), warnings.catch_warnings():
        # The browser draws the text, in its fonts; matplotlib only measures it with its own.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figures = (
            _card("Accuracy and sparsity", "the averaged model by round", _quality(metrics)),
            _card("Uplink", "cumulative, beside plaintext dense float32 FedAvg", _uplink(metrics, dense)),
            _card("Density by tensor", tensors, _bars(bars), "wide"),
            *_densities(metrics, bars),
            _card("Time and cohort", "seconds by phase and clients, by round", _time(metrics), "wide"),
        )
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{escape(f"PruneSeal: {s['method']} on {s['data']}")}</title><style>{_STYLE}</style></head>
<body><main><header><p class="muted">PruneSeal {escape(s["version"])} · report of a run</p><h1>{escape(verdict)}</h1>
<p>{escape(run)}</p><p class="muted">{escape(extent)}; uplink compared with plaintext dense float32 FedAvg</p>
{_seal(s["verified"])}</header>
<section class="grid tiles">{"".join(tiles)}</section><section class="grid">{"".join(figures)}
<section class="card"><h2>Settings</h2>{_pairs(s["plan"])}</section>
<section class="card"><h2>Cryptography</h2>{_pairs(cryptography)}
<h2>Export</h2>{_pairs(_export(s))}
<h2>Who learnt what</h2><p class="muted">{_WHAT_WAS_LEARNT}</p></section>
<section class="card wide rounds"><h2>Rounds</h2>{_round_table(metrics)}</section>
</section></main></body></html>
"""
    path.write_text(page, encoding="utf-8")


def _number(value: float | None, form: str = ".3f") -> str:
    return "n/a" if value is None else format(value, form)


def _work(summary: Mapping[str, Any]) -> str:
    left = summary["multiply_accumulates_left"]
    return "work left cannot be counted" if left is None else f"{left:.3f} of the multiply-accumulates left"


def _export(s: Mapping[str, Any]) -> dict[str, str]:
    """What became of the model: each file's size and speed, and which to take."""
    exact = f"{human_bytes(s['onnx_bytes'])}, {s['dense_onnx_bytes'] / s['onnx_bytes']:.1f}× smaller than dense, "
    pairs = {"recommended": s["recommended"], "model.onnx": f"{exact}{s['onnx_speed']:.2f}× as fast"}
    if s["int8_onnx_bytes"] is None:
        return pairs | {"model.int8.onnx": f"none: {s['int8_refused']}"}
    small = f"{human_bytes(s['int8_onnx_bytes'])}, {s['dense_onnx_bytes'] / s['int8_onnx_bytes']:.1f}× smaller, "
    small += f"{s['int8_speed']:.2f}× as fast, accuracy {_number(s['int8_accuracy'])}"
    return pairs | {"model.int8.onnx": small, "speed measured": "batch 1, one thread, against the dense file"}


def _tile(*texts: str) -> str:
    label, value, note = map(escape, texts)
    return f'<div class="card tile"><p class="muted">{label}</p><b>{value}</b><p class="muted">{note}</p></div>'


def _seal(verified: Mapping[str, Any] | None) -> str:
    if verified is None:
        return '<p class="seal">sums not verified in this run</p>'
    kind, text = ("good", "✓ sums verified") if verified["equal"] else ("bad", "✗ sums differ")
    text += f" in {verified['rounds']} rounds, {verified['values']:,} values"
    return f'<p class="seal {kind}">{text}</p>'


def _pairs(pairs: Mapping[str, Any]) -> str:
    texts = [(k, v if isinstance(v, str) else json.dumps(v, default=str)) for k, v in pairs.items()]
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in texts)
    return f'<table class="pairs"><tbody>{rows}</tbody></table>'


def _round_table(metrics: Rounds) -> str:
    names = "round cohort left-out lost accuracy loss sparsity kept work regrown agreement up votes down clipped"
    names += " refused attempts"
    head = "".join(f"<th>{name}</th>" for name in [*names.split(), "seconds"])
    body = ""
    for m in metrics:
        cells = (
            *(str(m[key]) for key in ("round", "cohort", "left_out", "dropped")),
            *(_number(m.get(key)) for key in ("accuracy", "loss", "sparsity")),
            f"{m['kept']:,}",
            *(
                _number(m.get(key), form)
                for key, form in (("work_left", ".3f"), ("regrown", ","), ("agreement", ".3f"))
            ),
            *(human_bytes(m.get(key, 0)) for key in ("uplink_bytes", "vote_bytes", "downlink_bytes")),
            *(f"{m[key]:,}" for key in ("clipped", "refused", "attempts")),
            f"{sum(m['seconds'].values()):.1f}",
        )
        body += f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _card(title: str, note: str, figure: Figure, width: str = "half") -> str:
    """A figure inside its card, in the page's own colours."""
    svg, nothing = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(svg, format="svg", transparent=True, metadata=nothing)
    drawing = svg.getvalue()[svg.getvalue().index("<svg") :]
    drawing = re.sub(r' (width|height)="[^"]*"', "", drawing, count=2)
    drawing = re.sub(r"<style.*?</style>", "", drawing, flags=re.DOTALL)
    # Several drawings share this page, so each gets identifiers of its own.
    own = re.sub(r"\W", "-", title.lower())
    drawing = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{own}-", drawing)
    for name, light in _INK.items():
        drawing = drawing.replace(light, f"var(--{name})")
    drawing = drawing.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    caption = f"<figcaption><b>{title}</b><span>{escape(note)}</span></figcaption>"
    return f'<figure class="card {width}">{caption}{drawing}</figure>'


def _by_round(axes: Axes, last: int) -> None:
    """The axis of rounds, the same in every figure; a short run leaves room on its right."""
    axes.set(xlabel="round", xlim=(0, max(last, 8) + 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _curve(axes: Axes, points: Sequence[tuple[int, Any]], text: str, ink: str) -> None:
    """Draws a curve with ``text`` beside its end, instead of a legend."""
    axes.plot([x for x, _ in points], [y for _, y in points], "o-", color=ink)
    axes.annotate(text, points[-1], (6, 0), textcoords="offset points", color=ink, va="center")


def _quality(metrics: Rounds) -> Figure:
    figure = Figure((5.2, 3.1), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for axes, key, ink in zip(panels, ("accuracy", "sparsity"), _SERIES, strict=False):
        points = [(m["round"], m[key]) for m in metrics if m.get(key) is not None]
        axes.set_title(key if points else f"{key}: not measured")
        if points:
            _curve(axes, points, _number(points[-1][1]), ink)
    _by_round(panels[-1], metrics[-1]["round"])
    return figure


def _uplink(metrics: Rounds, dense: int) -> Figure:
    """Dense FedAvg's uplink, known for the whole run, is shared out by the rounds' cohorts."""
    figure, rounds = Figure((5.2, 3.1), layout="constrained"), [m["round"] for m in metrics]
    taken = list(accumulate(m["cohort"] for m in metrics))
    sent = list(accumulate(m["uplink_bytes"] for m in metrics))
    reference = [dense * clients / taken[-1] for clients in taken]
    axes = figure.subplots()
    axes.fill_between(rounds, sent, reference, color=_INK["line"], alpha=0.5, linewidth=0)
    for name, values, ink in (("dense FedAvg", reference, "muted"), ("this run", sent, "teal")):
        points = list(zip(rounds, values, strict=True))
        _curve(axes, points, f"{name}\n{human_bytes(round(values[-1]))}", _INK[ink])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda n, _: human_bytes(round(max(0, n)))))
    axes.set_ylim(bottom=0)
    _by_round(axes, rounds[-1])
    return figure


def _bars(tensors: Sequence[LayerDensity]) -> Figure:
    figure = Figure((10.8, 0.3 + 0.21 * len(tensors)), layout="constrained")
    axes, places = figure.subplots(), range(len(tensors))
    axes.barh(places, [1.0] * len(tensors), color=_INK["line"], height=0.62)
    axes.barh(places, [tensor.density for tensor in tensors], color=_INK["blue"], height=0.62)
    for y, t in enumerate(tensors):
        text = f"{t.density:.3f} · {t.kept:,} of {t.size:,}"
        axes.annotate(text, (1, y), (8, 0), textcoords="offset points", va="center")
    names = [re.sub(r"(?s)^(.{20}).{5,}(.{20})$", r"\1…\2", tensor.name) for tensor in tensors]
    axes.set_yticks(places, names, color=_INK["ink"])
    axes.set(xlim=(0, 1), ylim=(len(tensors) - 0.5, -0.5))
    axes.grid(visible=False)
    return figure


def _densities(metrics: Rounds, tensors: Sequence[LayerDensity]) -> tuple[str, ...]:
    """A card with a curve for each of the largest tensors, where the run has their density by round."""
    measured = [m for m in metrics if "layer_density" in m]
    shown = [t.name for t in tensors if any(t.name in m["layer_density"] for m in measured)][: len(_SERIES)]
    if not shown:
        return ()
    figure = Figure((10.8, 2.6), layout="constrained")
    axes = figure.subplots()
    for name, ink in zip(shown, _SERIES, strict=False):
        points = [(m["round"], m["layer_density"][name]) for m in measured]
        axes.plot([x for x, _ in points], [y for _, y in points], "o-", color=ink, label=name)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(_SERIES), handlelength=0.8)
    axes.set_ylim(0, 1.05)
    _by_round(axes, metrics[-1]["round"])
    return (_card("Density by round", "the share that is left of the largest tensors", figure, "wide"),)


def _time(metrics: Rounds) -> Figure:
    figure = Figure((10.8, 3.1), layout="constrained")
    times, clients = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    phases = dict.fromkeys(name for m in metrics for name in m["seconds"])
    seconds = {name: [m["seconds"].get(name, 0.0) for m in metrics] for name in phases}
    parts = {"in the sum": "cohort", "left out": "left_out", "lost": "dropped"}
    counts = {name: [m[key] for m in metrics] for name, key in parts.items()}
    for axes, series, inks in (
        (times, seconds, _SERIES),
        (clients, counts, [_INK["muted"], _INK["line"], _INK["rose"]]),
    ):
        base = [0.0] * len(metrics)
        for (name, values), ink in zip(series.items(), cycle(inks), strict=False):
            axes.bar([m["round"] for m in metrics], values, 0.78, base, color=ink, label=name)
            base = [below + value for below, value in zip(base, values, strict=True)]
        if series:
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=9, handlelength=0.8)
    times.set_title("seconds")
    clients.set_title("clients")
    _by_round(clients, metrics[-1]["round"])
    clients.yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True))
    return figure
