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
from collections.abc import Mapping, Sequence
from datetime import timedelta
from html import escape
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure
from rich.filesize import decimal

from fleet.results import figures
from fleet.results.figures import INK, PALETTE, LayerDensity, Rounds

_MOST_BARS: Final = 40
_DARK: Final = "".join(f"--{name}:{dark};" for name, (_, dark) in PALETTE.items())
_STYLE: Final = f"""
:root{{color-scheme:light dark;{"".join(f"--{name}:{light};" for name, light in INK.items())}}}
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
    s, largest = summary, sorted(density, key=lambda tensor: -tensor.size)[:_MOST_BARS]
    sent, dense = s["uplink_bytes"], s["dense_fedavg_uplink_bytes"]
    factor = f"{dense / sent:.1f}× less" if sent <= dense else f"{sent / dense:.1f}× more"
    verdict = f"Accuracy {_number(s['accuracy'])}, sparsity {s['sparsity']:.3f}, {factor} uplink"
    run = f"{s['method']} · {s['model']} on {s['data']} ({s['partition']})"
    extent = f"{s['clients']} clients, {s['rounds']} rounds in {timedelta(seconds=round(s['seconds']))}"
    tiles = (
        _tile("Accuracy", _number(s["accuracy"]), "averaged model, last round"),
        _tile("ONNX accuracy", _number(s["onnx_accuracy"]), f"outputs within {_number(s['onnx_max_abs_diff'], '.1e')}"),
        _tile("Sparsity", f"{s['sparsity']:.3f}", f"{s['kept']:,} of {s['parameters']:,} kept; {_work(s)}"),
        _tile("Uplink", decimal(sent), f"{factor} than dense FedAvg"),
        _tile("Downlink", decimal(s["downlink_bytes"]), "to all clients together"),
        _tile("Bytes per value", f"{s['uplink_bytes_per_value']:.2f}", "float32 takes 4"),
    )
    cryptography = {
        "scheme": "BFV, exact integers; pairwise blinding inside",
        "security level": f"{s['security_level']} bits",
        "ring degree": s["ring_degree"],
        "ciphertext modulus": f"{s['coeff_modulus_bits']} bits",
        "plaintext modulus": f"{s['plain_modulus_bits']} bits",
        "grid of the sum": f"{s['bits']} bits",
    }
    tensors = f"values kept of all values; {len(largest)} of {len(density)} tensors, largest first"
    with figures.drawing():
        cards = [
            _card("Accuracy and sparsity", "the averaged model by round", figures.quality(metrics)),
            _card("Uplink", "cumulative, beside plaintext dense float32 FedAvg", figures.uplink(metrics, dense)),
            _card("Density by tensor", tensors, figures.bars(largest), "wide"),
        ]
        if (curves := figures.densities(metrics, largest)) is not None:
            note = "the share that is left of the largest tensors"
            cards.append(_card("Density by round", note, curves, "wide"))
        cards.append(_card("Time and cohort", "seconds by phase and clients, by round", figures.time(metrics), "wide"))
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{escape(f"PruneSeal: {s['method']} on {s['data']}")}</title><style>{_STYLE}</style></head>
<body><main><header><p class="muted">PruneSeal {escape(s["version"])} · report of a run</p><h1>{escape(verdict)}</h1>
<p>{escape(run)}</p><p class="muted">{escape(extent)}; uplink compared with plaintext dense float32 FedAvg</p>
{_seal(s["verified"])}</header>
<section class="grid tiles">{"".join(tiles)}</section><section class="grid">{"".join(cards)}
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
    exact = f"{decimal(s['onnx_bytes'])}, {s['dense_onnx_bytes'] / s['onnx_bytes']:.1f}× smaller than dense, "
    pairs = {"recommended": s["recommended"], "model.onnx": f"{exact}{s['onnx_speed']:.2f}× as fast"}
    if s["int8_onnx_bytes"] is None:
        return pairs | {"model.int8.onnx": f"none: {s['int8_refused']}"}
    small = f"{decimal(s['int8_onnx_bytes'])}, {s['dense_onnx_bytes'] / s['int8_onnx_bytes']:.1f}× smaller, "
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
            *(decimal(m.get(key, 0)) for key in ("uplink_bytes", "vote_bytes", "downlink_bytes")),
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
    for name, light in INK.items():
        drawing = drawing.replace(light, f"var(--{name})")
    drawing = drawing.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    caption = f"<figcaption><b>{title}</b><span>{escape(note)}</span></figcaption>"
    return f'<figure class="card {width}">{caption}{drawing}</figure>'
