"""The figures of a run's report, in the light palette; the page replaces each colour by the variable of its name."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, cycle
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from rich.filesize import decimal

from aggregator.records import PhaseSeconds, Record

Rounds = Sequence[Record]  # one per completed round
# Name: (light, dark). matplotlib draws with the light value, so no two light values are equal.
PALETTE: Final = {
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
INK: Final = {name: light for name, (light, _) in PALETTE.items()}
_SERIES: Final = [INK[name] for name in ("blue", "teal", "amber", "violet", "rose")]
_RC: Final[Any] = {
    **{"svg.fonttype": "none", "svg.hashsalt": "pruneseal", "text.parse_math": False, "legend.frameon": False},
    **{"font.size": 8.5, "axes.titlesize": 8.5, "axes.titlelocation": "left", "axes.axisbelow": True},
    **{"text.color": INK["ink"], "axes.titlecolor": INK["ink"], "axes.edgecolor": INK["line"]},
    **{f"{item}color": INK["muted"] for item in ("xtick.", "ytick.", "axes.label")},
    **{f"axes.spines.{side}": False for side in ("top", "right", "left")},
    **{"axes.grid": True, "axes.grid.axis": "y", "grid.color": INK["line"], "grid.linewidth": 0.6},
    **{"ytick.major.size": 0, "xtick.major.size": 2.5, "lines.linewidth": 1.8, "lines.markersize": 2.4},
}


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


@contextmanager
def drawing() -> Iterator[None]:
    """The settings that the figures are drawn and saved with."""
    with rc_context(_RC), warnings.catch_warnings():
        # The browser draws the text, in its fonts; matplotlib only measures it with its own.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _by_round(axes: Axes, last: int) -> None:
    """The axis of rounds, the same in every figure; a short run leaves room on its right."""
    axes.set(xlabel="round", xlim=(0, max(last, 8) + 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _curve(axes: Axes, points: Sequence[tuple[int, Any]], text: str, ink: str) -> None:
    """Draws a curve with ``text`` beside its end, instead of a legend."""
    axes.plot([x for x, _ in points], [y for _, y in points], "o-", color=ink)
    axes.annotate(text, points[-1], (6, 0), textcoords="offset points", color=ink, va="center")


def quality(metrics: Rounds) -> Figure:
    """Accuracy above sparsity, by round."""
    figure = Figure((5.2, 3.1), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for axes, key, ink in zip(panels, ("accuracy", "sparsity"), _SERIES, strict=False):
        points = [(m.round, value) for m in metrics if (value := getattr(m, key)) is not None]
        axes.set_title(key if points else f"{key}: not measured")
        if points:
            _curve(axes, points, f"{points[-1][1]:.3f}", ink)
    _by_round(panels[-1], metrics[-1].round)
    return figure


def uplink(metrics: Rounds, dense: int) -> Figure:
    """The bytes sent so far, by round.

    Dense FedAvg's, known for the whole run, are shared out by the rounds' cohorts.
    """
    figure, rounds = Figure((5.2, 3.1), layout="constrained"), [m.round for m in metrics]
    taken = list(accumulate(m.cohort for m in metrics))
    sent = list(accumulate(m.uplink_bytes for m in metrics))
    reference = [dense * clients / taken[-1] for clients in taken]
    axes = figure.subplots()
    axes.fill_between(rounds, sent, reference, color=INK["line"], alpha=0.5, linewidth=0)
    for name, values, ink in (("dense FedAvg", reference, "muted"), ("this run", sent, "teal")):
        points = list(zip(rounds, values, strict=True))
        _curve(axes, points, f"{name}\n{decimal(round(values[-1]))}", INK[ink])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda n, _: decimal(round(max(0, n)))))
    axes.set_ylim(bottom=0)
    _by_round(axes, rounds[-1])
    return figure


def bars(tensors: Sequence[LayerDensity]) -> Figure:
    """The share of each tensor that is kept."""
    figure = Figure((10.8, 0.3 + 0.21 * len(tensors)), layout="constrained")
    axes, places = figure.subplots(), range(len(tensors))
    axes.barh(places, [1.0] * len(tensors), color=INK["line"], height=0.62)
    axes.barh(places, [tensor.density for tensor in tensors], color=INK["blue"], height=0.62)
    for y, t in enumerate(tensors):
        text = f"{t.density:.3f} · {t.kept:,} of {t.size:,}"
        axes.annotate(text, (1, y), (8, 0), textcoords="offset points", va="center")
    names = [re.sub(r"(?s)^(.{20}).{5,}(.{20})$", r"\1…\2", tensor.name) for tensor in tensors]
    axes.set_yticks(places, names, color=INK["ink"])
    axes.set(xlim=(0, 1), ylim=(len(tensors) - 0.5, -0.5))
    axes.grid(visible=False)
    return figure


def densities(metrics: Rounds, tensors: Sequence[LayerDensity]) -> Figure | None:
    """A curve for each of the largest tensors, where the run has their density by round."""
    measured = [(m.round, m.layer_density) for m in metrics if m.layer_density is not None]
    shown = [t.name for t in tensors if all(t.name in density for _, density in measured)][: len(_SERIES)]
    shown = shown if measured else []
    if not shown:
        return None
    figure = Figure((10.8, 2.6), layout="constrained")
    axes = figure.subplots()
    for name, ink in zip(shown, _SERIES, strict=False):
        points = [(round_, density[name]) for round_, density in measured]
        axes.plot([x for x, _ in points], [y for _, y in points], "o-", color=ink, label=name)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(_SERIES), handlelength=0.8)
    axes.set_ylim(0, 1.05)
    _by_round(axes, metrics[-1].round)
    return figure


def time(metrics: Rounds) -> Figure:
    """Seconds by phase above clients by what became of them, by round."""
    figure = Figure((10.8, 3.1), layout="constrained")
    times, clients = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    seconds = {name: [m.seconds.by_phase()[name] for m in metrics] for name in PhaseSeconds.model_fields}
    seconds = {name: spent for name, spent in seconds.items() if any(spent)}
    counts = {
        "in the sum": [m.cohort for m in metrics],
        "lost": [m.dropped for m in metrics],
    }
    stacks: tuple[tuple[Axes, Mapping[str, Sequence[float]], Sequence[str]], ...] = (
        (times, seconds, _SERIES),
        (clients, counts, [INK["muted"], INK["line"], INK["rose"]]),
    )
    for axes, series, inks in stacks:
        base = [0.0] * len(metrics)
        for (name, values), ink in zip(series.items(), cycle(inks), strict=False):
            axes.bar([m.round for m in metrics], values, 0.78, base, color=ink, label=name)
            base = [below + value for below, value in zip(base, values, strict=True)]
        if series:
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=9, handlelength=0.8)
    times.set_title("seconds")
    clients.set_title("clients")
    _by_round(clients, metrics[-1].round)
    clients.yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True))
    return figure
