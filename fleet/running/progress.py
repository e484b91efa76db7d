"""The live display of a run: on a terminal a bar that moves, elsewhere one line per round.

The two faces show the same facts: round, cohort, accuracy, sparsity, bytes up and down, time left.
A terminal also sees the phase within the round. Anything else (a pipe, a log file, a CI job, a dumb
terminal) gets plain lines without control characters, each flushed as soon as its round is done.

What is shown is one frozen `_Shown`, replaced as a whole; the thread that redraws the terminal thus
never sees half a change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fleet.results.units import clock, human_bytes

_UNKNOWN_TIME: Final = "--:--"
_REDRAWS_PER_SECOND: Final = 4


@dataclass(frozen=True)
class _Phase:
    """A phase within a round: ``done`` of ``total`` answers."""

    round: int
    name: str
    done: int
    total: int


@dataclass(frozen=True)
class _Shown:
    """All that the display depends on, besides the clock.

    Attributes:
        completed: Rounds completed over the whole run, earlier sessions included.
        measured: Rounds completed in this session; only these tell how long a round takes.
        started: The clock when this session began.
        last: The clock when the last round was done, or ``started``.
        cells: The figures of the last completed round, as pairs of name and value.
        phase: The phase under way, if one was announced since the last completed round.
    """

    completed: int
    measured: int
    started: float
    last: float
    cells: tuple[tuple[str, str], ...] = ()
    phase: _Phase | None = None


class Progress:
    """Shows a run to its operator; a context manager around the rounds.

    Example:
        ``with Progress(40, Console()) as progress: ... progress.round_done(metrics)``
    """

    def __init__(
        self,
        rounds: int,
        console: Console,
        resumed_at: int = 0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares the display; nothing is shown before the context is entered.

        Args:
            rounds: The rounds of the whole run.
            console: Where to show it; its kind decides between the two faces.
            resumed_at: Rounds that an earlier session completed, 0 for a fresh run.
            now: A clock in seconds that never runs backwards.

        Raises:
            ValueError: ``resumed_at`` lies outside [0, ``rounds``], or ``rounds`` is not positive.
        """
        if rounds < 1 or not 0 <= resumed_at <= rounds:
            raise ValueError(f"a run of {rounds} rounds cannot be resumed at {resumed_at}")
        self._rounds = rounds
        self._console = console
        self._now = now
        self._shown = _Shown(resumed_at, 0, now(), now())
        self._live: Live | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(
                console=console,
                get_renderable=self._picture,
                refresh_per_second=_REDRAWS_PER_SECOND,
            )

    def __enter__(self) -> Self:
        started = self._now()
        self._shown = replace(self._shown, started=started, last=started)
        if self._live is not None:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def phase(self, round: int, name: str, done: int, total: int) -> None:
        """Tells how far a phase of the round is, such as ``train`` with 4 of 10 answers.

        Args:
            round: The round under way, from 1.
            name: The phase.
            done: Answers that have arrived.
            total: Answers that were asked for.
        """
        self._shown = replace(self._shown, phase=_Phase(round, name, done, total))

    def round_done(self, metrics: Mapping[str, Any]) -> None:
        """Takes the figures of a completed round: a step of the bar, or a line.

        Args:
            metrics: ``round`` (from 1), ``cohort``, ``accuracy`` (or None where no client
                measured it), ``sparsity``, ``uplink_bytes`` and ``downlink_bytes``; more is
                ignored.
        """
        self._shown = replace(
            self._shown,
            completed=int(metrics["round"]),
            measured=self._shown.measured + 1,
            last=self._now(),
            cells=_cells(metrics),
            phase=None,
        )
        if self._live is not None:
            self._live.refresh()
        else:
            cells = "  ".join(f"{name} {value}" for name, value in self._shown.cells)
            self._line(f"round {self._counter()}  {cells}  left {self._left()}")

    def message(self, text: str) -> None:
        """Shows one line above the bar, such as which node was lost and what is done about it.

        Args:
            text: The line; control characters in it (a node's name may come from elsewhere) are
                shown as escapes, never obeyed.
        """
        safe = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
        self._line(safe, style="yellow")

    def _line(self, text: str, style: str = "") -> None:
        """Prints one line, unwrapped and literal; rich flushes after each print."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    def _counter(self) -> str:
        """Completed and total rounds, aligned over the run: `` 3/40``."""
        return f"{self._shown.completed:>{len(str(self._rounds))}}/{self._rounds}"

    def _left(self) -> str:
        """Time left, from the mean duration of this session's rounds."""
        shown = self._shown
        remaining = self._rounds - shown.completed
        if remaining == 0:
            return clock(0)
        if shown.measured == 0:
            return _UNKNOWN_TIME
        mean = (shown.last - shown.started) / shown.measured
        return clock(max(0.0, mean * remaining - (self._now() - shown.last)))

    def _picture(self) -> RenderableType:
        """The terminal's face: the bar, the last round's figures, the phase under way."""
        shown = self._shown
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        bar.add_row(
            Text.assemble(("round ", "dim"), (self._counter(), "bold")),
            ProgressBar(total=self._rounds, completed=shown.completed, complete_style="green"),
            Text.assemble(("left ", "dim"), self._left()),
        )
        figures = Text("  ").join(Text.assemble((f"{name} ", "dim"), (value, "bold")) for name, value in shown.cells)
        if not shown.cells:
            waiting = f"waiting for round {shown.completed + 1}"
            figures = Text(waiting if shown.completed < self._rounds else "complete", style="dim")
        if shown.phase is None:
            return Group(bar, figures)
        phase = Table.grid(padding=(0, 2))
        phase.add_row(
            Text(f"round {shown.phase.round}: {shown.phase.name}", style="cyan"),
            ProgressBar(
                total=max(1, shown.phase.total),
                completed=shown.phase.done,
                width=20,
                complete_style="cyan",
            ),
            Text(f"{shown.phase.done} of {shown.phase.total}", style="cyan"),
        )
        return Group(bar, figures, phase)


def _cells(metrics: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The figures of one round as both faces show them."""
    accuracy = metrics["accuracy"]
    return (
        ("cohort", f"{metrics['cohort']}"),
        ("accuracy", "n/a" if accuracy is None else f"{accuracy:.3f}"),
        ("sparsity", f"{metrics['sparsity']:.3f}"),
        ("up", human_bytes(metrics["uplink_bytes"])),
        ("down", human_bytes(metrics["downlink_bytes"])),
    )
