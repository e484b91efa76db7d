"""What an operator sees while a run goes on, on a terminal and in a log."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from fleet.running.progress import Progress


class _Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class _CountingFile(io.StringIO):
    """Counts how often it was flushed with something new in it."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed: list[str] = []

    def flush(self) -> None:
        self.flushed.append(self.getvalue())


def _metrics(round_number: int, **changes: Any) -> dict[str, Any]:
    return {
        "round": round_number,
        "cohort": 10,
        "dropped": 0,
        "accuracy": 0.912,
        "sparsity": 0.31,
        "uplink_bytes": 512_300,
        "downlink_bytes": 498_000,
    } | changes


def _log() -> Console:
    """A console that is not a terminal, narrower than a line: nothing may be wrapped."""
    return Console(file=io.StringIO(), force_terminal=False, width=40)


def _terminal(width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, _environ={"TERM": "xterm"})


def _text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _cells(console: Console) -> str:
    """What a terminal was sent, without the escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", _text(console))


def test_a_log_gets_exactly_one_plain_line_per_completed_round() -> None:
    console, now = _log(), _Clock()
    with Progress(40, console, now=now) as progress:
        for number, seconds in ((1, 1.0), (2, 2.0)):
            progress.phase(number, "train", 4, 10)
            now.seconds += seconds
            progress.round_done(_metrics(number))
        progress.phase(3, "contribute", 9, 10)
    assert _text(console) == (
        "round  1/40  cohort 10  accuracy 0.912  sparsity 0.310"
        "  up 512.3 kB  down 498.0 kB  left 0:00:39\n"
        "round  2/40  cohort 10  accuracy 0.912  sparsity 0.310"
        "  up 512.3 kB  down 498.0 kB  left 0:00:57\n"
    )


def test_every_line_of_a_log_is_flushed_when_its_round_is_done() -> None:
    file = _CountingFile()
    with Progress(2, Console(file=file, force_terminal=False)) as progress:
        progress.round_done(_metrics(1))
        assert file.flushed[-1].endswith("\n")
        assert "round 1/2" in file.flushed[-1]


def test_a_dumb_terminal_gets_the_lines_of_a_log() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    with Progress(1, console, now=_Clock()) as progress:
        progress.round_done(_metrics(1))
    assert _text(console).startswith("round 1/1  cohort 10  accuracy 0.912")
    assert "\x1b" not in _text(console)


def test_an_accuracy_that_no_client_measured_is_shown_as_such() -> None:
    console = _log()
    with Progress(1, console, now=_Clock()) as progress:
        progress.round_done(_metrics(1, accuracy=None))
    assert "accuracy n/a  sparsity 0.310" in _text(console)


def test_a_resumed_run_estimates_from_its_own_rounds_only() -> None:
    console, now = _log(), _Clock()
    with Progress(40, console, resumed_at=30, now=now) as progress:
        now.seconds += 10
        progress.round_done(_metrics(31))
    assert _text(console).startswith("round 31/40")
    assert _text(console).endswith("left 0:01:30\n")


def test_the_time_before_the_context_is_entered_does_not_count() -> None:
    console, now = _log(), _Clock()
    progress = Progress(3, console, now=now)
    now.seconds += 1000
    with progress:
        now.seconds += 5
        progress.round_done(_metrics(1))
    assert _text(console).endswith("left 0:00:10\n")


def test_the_last_round_leaves_no_time() -> None:
    console, now = _log(), _Clock()
    with Progress(1, console, now=now) as progress:
        now.seconds += 7
        progress.round_done(_metrics(1))
    assert _text(console).endswith("left 0:00:00\n")


def test_a_message_is_one_literal_line_without_control_characters() -> None:
    console = _log()
    with Progress(1, console) as progress:
        progress.message("round 3: node-4 was lost, [bold]asking[/bold] 7 survivors\x1b[2J\nagain")
    assert _text(console) == ("round 3: node-4 was lost, [bold]asking[/bold] 7 survivors\\x1b[2J\\nagain\n")


def test_a_terminal_shows_the_figures_of_the_last_round_and_the_phase_under_way() -> None:
    console, now = _terminal(), _Clock()
    with Progress(40, console, resumed_at=2, now=now) as progress:
        now.seconds += 2
        progress.round_done(_metrics(3, cohort=7))
        progress.phase(4, "train", 4, 10)
    shown = _cells(console)
    for cell in (
        "round  3/40",
        "cohort 7",
        "accuracy 0.912",
        "sparsity 0.310",
        "up 512.3 kB",
        "down 498.0 kB",
        "left 0:01:14",
        "round 4: train",
        "4 of 10",
        "━",
    ):
        assert cell in shown


def test_a_terminal_of_eighty_columns_shows_every_figure_on_one_line() -> None:
    console = _terminal(width=80)
    with Progress(40, console, now=_Clock()) as progress:
        progress.round_done(_metrics(3))
    line = "cohort 10  accuracy 0.912  sparsity 0.310  up 512.3 kB  down 498.0 kB"
    assert line in _cells(console)


def test_a_terminal_counts_the_time_left_down_within_a_round_but_never_below_zero() -> None:
    console, now = _terminal(), _Clock()
    with Progress(2, console, now=now) as progress:
        now.seconds += 60
        progress.round_done(_metrics(1))
        now.seconds += 600
    shown = _cells(console)
    assert "left -:--:--" in shown
    assert "left 0:01:00" in shown
    assert shown.rfind("left 0:00:00") > shown.rfind("left 0:01:00")


def test_a_terminal_keeps_a_message_above_the_bar() -> None:
    console = _terminal()
    with Progress(40, console, resumed_at=5) as progress:
        progress.message("round 6: node-4 was lost")
    shown = _cells(console)
    assert "waiting for round 6" in shown
    assert shown.index("node-4 was lost") < shown.rindex("round  5/40")


def test_a_run_that_was_already_complete_says_so() -> None:
    console = _terminal()
    with Progress(40, console, resumed_at=40):
        pass
    assert "complete" in _cells(console)
    assert "left 0:00:00" in _cells(console)


def test_a_terminal_is_restored_when_the_run_fails() -> None:
    console = _terminal()

    def fail() -> None:
        with Progress(40, console):
            raise RuntimeError("the run stops here")

    with pytest.raises(RuntimeError):
        fail()
    assert _text(console).rstrip("\n").endswith("\x1b[?25h"), "the cursor is shown again"


@pytest.mark.parametrize(("rounds", "resumed_at"), [(0, 0), (3, 4), (3, -1)])
def test_an_impossible_extent_is_refused(rounds: int, resumed_at: int) -> None:
    with pytest.raises(ValueError, match="cannot be resumed"):
        Progress(rounds, _log(), resumed_at)
