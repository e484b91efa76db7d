"""A run as one page: `report.html`, self-contained, to read on a screen or on paper.

The page, ``templates/report.html.jinja``, loads nothing and runs nothing: its style sheet and its figures (SVG drawn by
matplotlib, text kept as text) stand inside it. Figures are drawn in the light palette; each colour is then replaced by
the CSS variable of its name, so that one drawing serves light, dark and print. Whatever comes from a run (names of
methods, tensors, settings) is text here, never markup.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from markupsafe import Markup
from matplotlib.figure import Figure

from fleet.results import figures
from fleet.results.figures import INK, PALETTE, LayerDensity, Rounds
from fleet.results.summary import Summary
from fleet.results.templates import render

_MOST_BARS: Final = 40


@dataclass(frozen=True)
class Drawing:
    """A figure on the page.

    Attributes:
        title: Above it.
        note: Under the title.
        svg: The figure, in the page's own colours.
        width: Its class: ``half`` of the page, or ``wide``.
    """

    title: str
    note: str
    svg: Markup
    width: str = "half"


def write_report(path: Path, rounds: Rounds, summary: Summary, density: Sequence[LayerDensity]) -> None:
    """Writes the run as one self-contained HTML page.

    Args:
        path: Where to write; the folder exists, an older report is replaced.
        rounds: The completed rounds, in order.
        summary: The run as a whole: its result, its sizes and its cryptographic parameters.
        density: One entry per tensor of the final model.

    Raises:
        ValueError: There is no completed round or no tensor to report.
    """
    if not rounds or not density:
        raise ValueError("a report needs at least one completed round and one tensor")
    with figures.drawing():
        drawings = _drawings(rounds, summary, density)
    page = render("report.html.jinja", run=summary, rounds=rounds, drawings=drawings, palette=PALETTE)
    path.write_text(page, encoding="utf-8")


def _drawings(rounds: Rounds, summary: Summary, density: Sequence[LayerDensity]) -> list[Drawing]:
    largest = sorted(density, key=lambda tensor: -tensor.size)[:_MOST_BARS]
    tensors = f"values kept of all values; {len(largest)} of {len(density)} tensors, largest first"
    curves = figures.densities(rounds, largest)
    drawn: list[tuple[str, str, Figure | None, str]] = [
        ("Accuracy and sparsity", "the averaged model by round", figures.quality(rounds), "half"),
        (
            "Uplink",
            "cumulative, beside plaintext dense float32 FedAvg",
            figures.uplink(rounds, summary.dense_fedavg_uplink_bytes),
            "half",
        ),
        ("Density by tensor", tensors, figures.bars(largest), "wide"),
        ("Density by round", "the share that is left of the largest tensors", curves, "wide"),
        ("Time and cohort", "seconds by phase and clients, by round", figures.time(rounds), "wide"),
    ]
    return [
        Drawing(title, note, _svg(title, figure), width) for title, note, figure, width in drawn if figure is not None
    ]


def _svg(title: str, figure: Figure) -> Markup:
    """A figure as an element of the page, in the page's own colours."""
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
    return Markup(drawing)  # noqa: S704  # matplotlib has escaped the texts in it
