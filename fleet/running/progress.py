"""The live display of a run: on a terminal a bar that moves, elsewhere one line per round.

The two faces show the same facts: round, cohort, accuracy, sparsity, bytes up and down, time left. A terminal also sees
the phase within the round. Anything else (a pipe, a log file, a CI job, a dumb terminal) gets plain lines without
control characters, each flushed as soon as its round is done.
"""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Self

from rich import progress
from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.text import Text

from protocol.text import cleaned

_UNKNOWN_TIME: Final = "-:--:--"
_REDRAWS_PER_SECOND: Final = 4
_LONGEST_LINE: Final = 1000


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
        self._console = console
        self._resumed_at = resumed_at
        self._figures = "complete" if resumed_at == rounds else f"waiting for round {resumed_at + 1}"
        self._rounds = progress.Progress(
            progress.TextColumn("round", style="dim"),
            progress.MofNCompleteColumn(),
            progress.BarColumn(None),
            progress.TextColumn("left", style="dim"),
            _TimeLeft(),
            console=console,
            get_time=now,
            expand=True,
        )
        self._run = self._rounds.add_task("", start=False, total=rounds, completed=resumed_at, end=None)
        self._phases = progress.Progress(
            progress.TextColumn("{task.description}", style="cyan", markup=False),
            progress.BarColumn(20, complete_style="cyan"),
            progress.MofNCompleteColumn(" of "),
            console=console,
        )
        self._phase = self._phases.add_task("", visible=False)
        self._live: Live | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(console=console, get_renderable=self._picture, refresh_per_second=_REDRAWS_PER_SECOND)

    def __enter__(self) -> Self:
        self._rounds.start_task(self._run)
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
        self._phases.update(
            self._phase, description=f"round {round}: {name}", completed=done, total=total, visible=True
        )

    def round_done(self, metrics: Mapping[str, Any]) -> None:
        """Takes the figures of a completed round: a step of the bar, or a line.

        Args:
            metrics: ``round`` (from 1), ``cohort``, ``accuracy`` (or None where no client
                measured it), ``sparsity``, ``uplink_bytes`` and ``downlink_bytes``; more is
                ignored.
        """
        (run,) = self._rounds.tasks
        self._rounds.update(self._run, completed=metrics["round"])
        if measured := run.completed - self._resumed_at:
            pace = (run.elapsed or 0.0) / measured
            self._rounds.update(self._run, end=run.get_time() + pace * (run.remaining or 0))
        self._phases.update(self._phase, visible=False)
        self._figures = _figures(metrics)
        if self._live is not None:
            self._live.refresh()
        else:
            extent = progress.MofNCompleteColumn().render(run)
            self._line(f"round {extent}  {self._figures}  left {_TimeLeft().render(run)}")

    def message(self, text: str) -> None:
        """Shows one line above the bar, such as which node was lost and what is done about it.

        Args:
            text: The line; control characters in it (a node's name may come from elsewhere) are
                shown as escapes, never obeyed.
        """
        self._line(cleaned(text, _LONGEST_LINE), style="yellow")

    def _line(self, text: str, style: str = "") -> None:
        """Prints one line, unwrapped and literal; rich flushes after each print."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    def _picture(self) -> RenderableType:
        """The terminal's face: the bar, the last round's figures, the phase under way."""
        return Group(self._rounds, Text(self._figures), self._phases)


class _TimeLeft(progress.ProgressColumn):
    """Counts down to the ``end`` that the run has at the mean pace of this session's rounds.

    rich's own column stands still from one round to the next, and a round may take minutes.
    """

    def render(self, task: progress.Task) -> Text:
        """The time in hours, minutes and seconds."""
        if not task.remaining:
            return Text(str(timedelta(0)))
        if task.fields["end"] is None:
            return Text(_UNKNOWN_TIME)
        return Text(str(timedelta(seconds=max(0, round(task.fields["end"] - task.get_time())))))


def _figures(metrics: Mapping[str, Any]) -> str:
    """The figures of one round as both faces show them."""
    accuracy = "n/a" if metrics["accuracy"] is None else f"{metrics['accuracy']:.3f}"
    up, down = decimal(metrics["uplink_bytes"]), decimal(metrics["downlink_bytes"])
    return f"cohort {metrics['cohort']}  accuracy {accuracy}  sparsity {metrics['sparsity']:.3f}  up {up}  down {down}"
