"""How a run is going, as a file that outlives its process: ``status.json`` in the run's folder.

The process that runs the rounds writes it, whole and by renaming; whoever looks, on this machine or through the
service's endpoint, only reads it. It says nothing that the log does not say, and no aggregator needs it to resume.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pydantic import Field

from aggregator.journal import Journal
from aggregator.logs import LogObserver
from aggregator.records import MaskFigures, Record
from aggregator.summation import MaskedSum
from protocol.documents import Count, Document, Items, Part, Seconds, Table
from protocol.errors import CheckpointError, PeerError, PruneSealError, StorageError
from protocol.plan import Plan
from protocol.roster import Roster

STATUS_FILE: Final = "status.json"
RUNNING, FINISHED, FAILED, STOPPED = "running", "finished", "failed", "stopped"
"""Under way; at its end; ended by an error that an operator must look at; ended by a signal, a full disk or a fault."""
_PROBLEMS = 50
_WRITE_SECONDS = 1.0

_log = logging.getLogger("pruneseal.aggregator")


class NodeStatus(Part):
    """What is known of one node.

    Attributes:
        online: Whether it was there as the last round began.
        seen: When it was seen last, in seconds since 1970; None where it never was.
        round: The last round whose sum holds it; 0 for none.
    """

    online: bool = False
    seen: Seconds | None = None
    round: Count = 0


class Problem(Part):
    """A refusal or an error.

    Attributes:
        time: When, in seconds since 1970.
        round: In which round.
        node: From which node.
        kind: Which kind.
        text: What was said.
    """

    time: Seconds
    round: Count
    node: str
    kind: str
    text: str


class Status(Document):
    """How a run is going.

    Attributes:
        run: The run's name, in hex.
        plan: The digest of its plan, in hex.
        method: Its method.
        rounds: How many rounds it has.
        state: One of `RUNNING`, `FINISHED`, `FAILED` and `STOPPED`.
        error: What ended it, and what to do; empty otherwise.
        updated: When this was written, in seconds since 1970.
        starts: How often it was started or resumed.
        round: The round under way.
        phase: Its phase.
        answered: How many clients have answered in it.
        asked: How many were asked.
        nodes: The nodes by name.
        refused: How many messages of this run did not count, by kind.
        failed: How many answers were errors.
        problems: The last refusals and errors.
    """

    format: str = "pruneseal-status"
    version: str = "1.0"
    run: str
    plan: str
    method: str
    rounds: Count
    state: str = RUNNING
    error: str = ""
    updated: Seconds = 0.0
    starts: Count = 0
    round: Count = 0
    phase: str = ""
    answered: Count = 0
    asked: Count = 0
    nodes: Table[NodeStatus] = Field(default_factory=dict)
    refused: Table[Count] = Field(default_factory=dict)
    failed: Count = 0
    problems: Items[Problem] = ()


def read_status(folder: Path) -> Status | None:
    """What was last written, or None where nothing was.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        return Status.read(folder / STATUS_FILE)
    except FileNotFoundError:
        return None
    except CheckpointError as error:
        raise CheckpointError(f"{error} (It may be removed; nothing of the run depends on it.)") from error


class StatusWriter:
    """Tells the log and keeps the status; a context manager around the rounds, which says how they ended.

    Args:
        folder: The run's folder.
        plan: The plan.
        journal: The run's journal.
        roster: The names of the nodes.
    """

    def __init__(self, folder: Path, plan: Plan, journal: Journal, roster: Roster) -> None:
        self._path, self._roster = folder / STATUS_FILE, roster
        self._told = LogObserver()
        self._written = 0.0
        run = journal.run.hex()
        before = read_status(folder)
        if before is None or before.run != run:
            before = Status(run=run, plan=plan.digest.hex(), method=plan.method, rounds=plan.rounds)
        self._status = before
        self._refused, self._failed, self._nodes = Counter(before.refused), before.failed, dict(before.nodes)

    def __enter__(self) -> Self:
        self._write(state=RUNNING, error="", starts=self._status.starts + 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._write(state=FINISHED)
            _log.info("the run is finished", extra={"event": "finished"})
        elif isinstance(error, PruneSealError) and not isinstance(error, StorageError):
            self._write(state=FAILED, error=f"{type(error).__name__}: {error}")
            fields = {"event": "failed", "round": self._status.round, "reason": type(error).__name__}
            _log.error("%s", error, extra=fields)
        else:
            self._write(state=STOPPED, error=f"{type(error).__name__}: {error}" if isinstance(error, Exception) else "")
            text = str(error) if isinstance(error, StorageError) else "the run is stopped and can be resumed"
            unexpected = isinstance(error, Exception) and not isinstance(error, StorageError)
            _log.error("%s", text, extra={"event": "stopped"}, exc_info=unexpected)

    # --- what an observer is told ----------------------------------------------------------------

    def online(self, round_: int, nodes: Mapping[int, str]) -> None:
        """Note who is online."""
        self._told.online(round_, nodes)
        there, now = {self._told.name(node) for node in nodes}, time.time()
        for name in {*self._nodes, *there}:
            self._note(name, online=name in there, **({"seen": now} if name in there else {}))
        self._write(round=round_, phase="train", answered=0, asked=0)

    def phase(self, round_: int, name: str, done: int, total: int) -> None:
        """Note how far it is; at most once a second, but for the last answer."""
        self._told.phase(round_, name, done, total)
        if done == total or time.monotonic() - self._written > _WRITE_SECONDS:
            self._write(round=round_, phase=name, answered=done, asked=total)

    def refused(self, round_: int, node: int, error: PeerError) -> None:
        """Count it, and keep its text."""
        self._told.refused(round_, node, error)
        self._refused[type(error).__name__] += 1
        self._problem(round_, node, type(error).__name__, str(error))

    def failed(self, round_: int, node: int, reason: str) -> None:
        """Count it, and keep its text."""
        self._told.failed(round_, node, reason)
        self._failed += 1
        self._problem(round_, node, "error", reason)

    def summed(self, round_: int, total: MaskedSum, aggregate: bytes) -> MaskFigures:
        """Note whose contributions are in the sum."""
        for node in sorted(total.nodes):
            self._note(self._roster.nodes[node].name, round=round_, seen=time.time())
        return self._told.summed(round_, total, aggregate)

    def round_done(self, record: Record) -> None:
        """Tell the log; the figures are in ``metrics.jsonl``."""
        self._told.round_done(record)
        self._write()

    def message(self, text: str) -> None:
        """Tell the log."""
        self._told.message(text)

    def _problem(self, round_: int, node: int, kind: str, text: str) -> None:
        entry = Problem(time=time.time(), round=round_, node=self._told.name(node), kind=kind, text=text)
        self._write(round=round_, problems=(*self._status.problems, entry)[-_PROBLEMS:])

    def _note(self, name: str, **changes: bool | int | float) -> None:
        """Change what is known of a node; one that is new here is there."""
        self._nodes[name] = self._nodes.get(name, NodeStatus(online=True)).model_copy(update=changes)

    def _write(self, **changes: object) -> None:
        counted = {"nodes": dict(self._nodes), "refused": dict(self._refused), "failed": self._failed}
        self._status = self._status.model_copy(update={**changes, **counted, "updated": time.time()})
        self._written = time.monotonic()
        try:
            self._status.write(self._path)
        except OSError as error:  # the rounds do not depend on it; where the disk is full, they say so themselves
            _log.warning("%s cannot be written: %s", self._path, error.strerror)
