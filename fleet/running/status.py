"""`pruneseal status`: how a run is going, from its folder or from the aggregator's endpoint."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import urlopen

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from aggregator.endpoint import overview
from aggregator.status import FINISHED, RUNNING
from protocol.errors import ConfigError

_SECONDS = 10
_SHOWN: Final = 5
_MOST_BYTES = 10_000_000


def look(where: str) -> dict[str, Any]:
    """The status and the last rounds of a run.

    Args:
        where: The run's folder, or the endpoint's address (``http://host:port``).

    Raises:
        ConfigError: Nothing can be read there.
    """
    if urlsplit(where).scheme in {"http", "https"}:
        url = f"{where.rstrip('/')}/status"
        try:
            with urlopen(url, timeout=_SECONDS) as answer:  # noqa: S310  # the scheme is one of the two above
                found = json.loads(answer.read(_MOST_BYTES))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{url} cannot be read: {error}. Is the aggregator's service running?") from error
    else:
        found = overview(Path(where))
    if found["status"] is None:
        raise ConfigError(f"{where} knows of no run yet")
    return dict(found)


def show(console: Console, found: dict[str, Any]) -> None:
    """Show what :func:`look` has found."""
    status, rounds = found["status"], found["rounds"]
    state = status["state"]
    if state == RUNNING and not found["held"]:
        state = "interrupted: no process runs it; it resumes when the aggregator is started again"
    facts = {
        "run": f"{status['run']}  ({status['method']}, plan {status['plan'][:16]})",
        "state": state,
        "rounds": f"{rounds[-1]['round'] if rounds else 0} of {status['rounds']} complete",
        "written": f"{_clock(status['updated'])} UTC, started {status['starts']} times",
    }
    if status["state"] == RUNNING and found["held"] and status["asked"]:
        facts["now"] = f"round {status['round']}, {status['phase']}: {status['answered']} of {status['asked']} answers"
    if status["state"] not in {RUNNING, FINISHED} and status["error"]:
        facts["error"] = status["error"]
    refused = ", ".join(f"{count} x {kind}" for kind, count in sorted(status["refused"].items()))
    facts["refused"] = refused or "nothing"
    facts["client errors"] = str(status["failed"])
    if found["trouble"]:
        facts["trouble"] = "; ".join(found["trouble"])
    for name, text in facts.items():
        console.print(f"{name:<16}{text}", highlight=False, markup=False, soft_wrap=True)
    nodes = Table("node", "there", "last seen (UTC)", "last sum", box=None, pad_edge=False)
    for name, node in sorted(status["nodes"].items()):
        seen = _clock(node["seen"]) if "seen" in node else "never"
        nodes.add_row(name, "yes" if node.get("online") else "no", seen, str(node.get("round") or "none"))
    last = Table(
        *("round", "cohort", "lost", "refused", "accuracy", "sparsity", "up", "seconds"), box=None, pad_edge=False
    )
    for record in rounds[-_SHOWN:]:
        last.add_row(
            str(record["round"]),
            str(record["cohort"]),
            str(record["dropped"]),
            str(record["refused"]),
            *(_number(record.get(key)) for key in ("accuracy", "sparsity")),
            decimal(record["uplink_bytes"]),
            f"{sum(record['seconds'].values()):.1f}",
        )
    for table in (nodes, last):
        console.print()
        console.print(table)
    if status["problems"]:
        console.print()
    for problem in status["problems"][-_SHOWN:]:
        text = f"{_clock(problem['time'])}  round {problem['round']}  {problem['node']}  {problem['kind']}"
        console.print(f"{text}: {problem['text']}", highlight=False, markup=False, soft_wrap=True)


def _number(value: float | None) -> str:
    return "not yet" if value is None else f"{value:.3f}"


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
