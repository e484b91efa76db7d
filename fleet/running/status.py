"""`pruneseal status`: how a run is going, from its folder or from the aggregator's endpoint."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import urlopen

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from aggregator.absences import ABSENT, SPOILED, Absence
from aggregator.endpoint import Overview, overview
from aggregator.records import Record
from aggregator.status import FINISHED, RUNNING, Status
from protocol.documents import MOST_BYTES
from protocol.errors import CheckpointError, ConfigError
from protocol.text import LONGEST_NAME, cleaned

_SECONDS = 10
_SHOWN: Final = 5
_LONGEST: Final = 1000
_REASONS: Final = {ABSENT: "missing from sums", SPOILED: "its group's sum was spoiled"}


def look(where: str) -> Overview:
    """The status and the last rounds of a run.

    Args:
        where: The run's folder, or the endpoint's address (``http://host:port``).

    Raises:
        ConfigError: Nothing can be read there.
        CheckpointError: A file of the folder is damaged.
    """
    if urlsplit(where).scheme in {"http", "https"}:
        url = f"{where.rstrip('/')}/status"
        try:
            with urlopen(url, timeout=_SECONDS) as answer:  # noqa: S310  # the scheme is one of the two above
                found = Overview.parse(answer.read(MOST_BYTES + 1), "its answer")
        except (OSError, HTTPException, CheckpointError) as error:
            raise ConfigError(
                f"{url} cannot be read: {cleaned(str(error))}. Is the aggregator's service running?"
            ) from error
    else:
        found = overview(Path(where))
    if found.status is None:
        raise ConfigError(f"{where} knows of no run yet")
    return found


def show(console: Console, found: Overview) -> None:
    """Show what :func:`look` has found."""
    if found.status is not None:
        for name, text in _facts(found.status, found).items():
            console.print(cleaned(f"{name:<16}{text}", _LONGEST), highlight=False, markup=False, soft_wrap=True)
        console.print()
        console.print(_nodes(found.status, found.absences))
        console.print()
        console.print(_rounds(found.rounds[-_SHOWN:]))
        if found.status.problems:
            console.print()
        for problem in found.status.problems[-_SHOWN:]:
            text = f"{_clock(problem.time)}  round {problem.round}  {problem.node}  {problem.kind}: {problem.text}"
            console.print(cleaned(text, _LONGEST), highlight=False, markup=False, soft_wrap=True)


def _facts(status: Status, found: Overview) -> dict[str, str]:
    """What is known of the run as a whole, by name."""
    state = status.state
    if state == RUNNING and not found.held:
        state = "interrupted: no process runs it; it resumes when the aggregator is started again"
    facts = {
        "run": f"{status.run}  ({status.method}, plan {status.plan[:16]})",
        "state": state,
        "rounds": f"{found.rounds[-1].round if found.rounds else 0} of {status.rounds} complete",
        "written": f"{_clock(status.updated)} UTC, started {status.starts} times",
    }
    if status.state == RUNNING and found.held and status.asked:
        facts["now"] = f"round {status.round}, {status.phase}: {status.answered} of {status.asked} answers"
    if status.state not in {RUNNING, FINISHED} and status.error:
        facts["error"] = status.error
    refused = ", ".join(f"{count} x {kind}" for kind, count in sorted(status.refused.items()))
    facts |= {"refused": refused or "nothing", "client errors": str(status.failed)}
    return facts | ({"trouble": "; ".join(found.trouble)} if found.trouble else {})


def _nodes(status: Status, absences: Mapping[str, Absence]) -> Table:
    table = Table("node", "there", "last seen (UTC)", "last sum", "left out", box=None, pad_edge=False)
    for name, node in sorted(status.nodes.items()):
        seen = "never" if node.seen is None else _clock(node.seen)
        out = absences.get(name)
        until = f"to round {out.until}, {_REASONS.get(out.reason, '')}" if out and out.until >= status.round else ""
        there = "yes" if node.online else "no"
        table.add_row(Text(cleaned(name, LONGEST_NAME)), there, seen, str(node.round or "none"), until)
    return table


def _rounds(records: Sequence[Record]) -> Table:
    heads = ("round", "cohort", "lost", "refused", "accuracy", "sparsity", "up", "seconds")
    table = Table(*heads, box=None, pad_edge=False)
    for record in records:
        table.add_row(
            *(str(number) for number in (record.round, record.cohort, record.dropped, record.refused)),
            *(_number(share) for share in (record.accuracy, record.sparsity)),
            decimal(record.uplink_bytes),
            f"{record.seconds.total:.1f}",
        )
    return table


def _number(value: float | None) -> str:
    return "not yet" if value is None else f"{value:.3f}"


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
