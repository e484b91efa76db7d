"""The pair save_pending / load_pending: what a client keeps between the two messages of a round, and of its roster.

Law: ``load_pending(folder)`` gives what ``save_pending(folder, …)`` was last given, also after a crash in between.

A client is a new process for every message, so its trained values wait on its own disk (mode 0600), with every cohort
that it has contributed to: a cohort that it must not follow is refused however often the process restarts. What was
answered once is answered again, alike, if the same is asked again: a killed aggregator can repeat a round and nobody
learns anything new.

Of its roster a client keeps the highest serial number that it has accepted, so nobody can hand it an old one again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np

from protocol.errors import CheckpointError, RosterRefused
from protocol.files import replace_file
from protocol.grid import Reals
from protocol.layout import Mask, Vector
from protocol.npz import read_arrays
from protocol.roster import Roster

PENDING_FILE: Final = "pending.npz"


@dataclass(frozen=True)
class Sent:
    """A contribution that was sent.

    Attributes:
        attempt: To which attempt.
        cohort: The digest of that attempt's cohort, 32 bytes.
        nodes: The numbers of its members.
    """

    attempt: int
    cohort: bytes
    nodes: frozenset[int]


@dataclass(frozen=True, eq=False)
class Pending:
    """A trained update that waits for its cohort to be announced.

    Attributes:
        attendance: The signed attendance that was sent for it.
        values: The trained values on the support, float32[n].
        votes: The votes, bool[n], or bool[0].
        step: The grid's step of each value, float64[n].
        sealed: The sealed terms.
        metrics: The scalars that went with the attendance.
        given: The contributions that were sent of it, in order of attempt.
    """

    attendance: bytes
    values: Vector
    votes: Mask
    step: Reals
    sealed: bytes
    metrics: Mapping[str, int | float] = field(default_factory=dict)
    given: tuple[Sent, ...] = ()


def save_pending(folder: Path, pending: Pending) -> None:
    """Write durably: temporary file, fsync, rename."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    notes = {
        "metrics": dict(pending.metrics),
        "given": [[given.attempt, given.cohort.hex(), sorted(given.nodes)] for given in pending.given],
    }
    buffer = BytesIO()
    np.savez(
        buffer,
        attendance=np.frombuffer(pending.attendance, np.uint8),
        values=pending.values,
        votes=pending.votes,
        step=pending.step,
        sealed=np.frombuffer(pending.sealed, np.uint8),
        notes=np.frombuffer(json.dumps(notes).encode(), np.uint8),
    )
    replace_file(folder / PENDING_FILE, buffer.getvalue(), mode=0o600)


def load_pending(folder: Path) -> Pending:
    """Read what waits.

    Raises:
        CheckpointError: Nothing waits, or the file is damaged.
    """
    path = folder / PENDING_FILE
    try:
        file = read_arrays(path.read_bytes())
        notes = json.loads(file["notes"].tobytes())
        return Pending(
            file["attendance"].tobytes(),
            file["values"],
            file["votes"],
            file["step"],
            file["sealed"].tobytes(),
            dict(notes["metrics"]),
            tuple(Sent(int(a), bytes.fromhex(cohort), frozenset(nodes)) for a, cohort, nodes in notes["given"]),
        )
    except FileNotFoundError:
        raise CheckpointError(f"no trained update waits in {folder}: this node has not answered `train`") from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); the node joins again with the next round") from error


def accept_roster(folder: Path, roster: Roster) -> None:
    """Refuse a roster that is older than one that this node has accepted before; remember a newer one.

    The first roster of a federation leaves no file: none is older.

    Raises:
        RosterRefused: The roster is an old one.
        CheckpointError: The file that remembers the newest is damaged.
    """
    path = folder / f"roster-{roster.cohort_id.hex()}.serial"
    try:
        newest = int(path.read_text()) if path.exists() else 1
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): put the number of the newest roster there") from error
    if roster.serial < newest:
        raise RosterRefused(
            f"the roster in this node's kit is number {roster.serial}, but number {newest} was in force here before: "
            "ask the operator for the newest roster"
        )
    if roster.serial > newest:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(path, str(roster.serial).encode(), mode=0o600)
