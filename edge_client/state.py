"""The pair save_pending / load_pending: what a client keeps between the two messages of a round.

Law: ``load_pending(folder)`` gives what ``save_pending(folder, …)`` was last given, also after a crash in between.

A client is a new process for every message, so its trained values wait on its own disk (mode 0600), with every cohort
that it has contributed to: a cohort that it must not follow is refused however often the process restarts.
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final
from zipfile import BadZipFile

import numpy as np

from protocol.errors import CheckpointError
from protocol.files import replace_file
from protocol.grid import Reals
from protocol.layout import Mask, Vector

PENDING_FILE: Final = "pending.npz"


@dataclass(frozen=True, eq=False)
class Pending:
    """A trained update that waits for its cohort to be announced.

    Attributes:
        attendance: The signed attendance that was sent for it.
        values: The trained values on the support, float32[n].
        votes: The votes, bool[n], or bool[0].
        step: The grid's step of each value, float64[n].
        sealed: The sealed terms.
        attempt: The last attempt contributed to; 0 before the first.
        cohort: The numbers of that attempt's members.
    """

    attendance: bytes
    values: Vector
    votes: Mask
    step: Reals
    sealed: bytes
    attempt: int
    cohort: frozenset[int]


def save_pending(folder: Path, pending: Pending) -> None:
    """Write durably: temporary file, fsync, rename."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    buffer = BytesIO()
    np.savez(
        buffer,
        attendance=np.frombuffer(pending.attendance, np.uint8),
        values=pending.values,
        votes=pending.votes,
        step=pending.step,
        sealed=np.frombuffer(pending.sealed, np.uint8),
        attempt=np.int64(pending.attempt),
        cohort=np.array(sorted(pending.cohort), np.int64),
    )
    replace_file(folder / PENDING_FILE, buffer.getvalue(), mode=0o600)


def load_pending(folder: Path) -> Pending:
    """Read what waits.

    Raises:
        CheckpointError: Nothing waits, or the file is damaged.
    """
    path = folder / PENDING_FILE
    try:
        with np.load(BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return Pending(
                file["attendance"].tobytes(),
                file["values"],
                file["votes"],
                file["step"],
                file["sealed"].tobytes(),
                int(file["attempt"]),
                frozenset(file["cohort"].tolist()),
            )
    except FileNotFoundError:
        raise CheckpointError(f"no trained update waits in {folder}: this node has not answered `train`") from None
    except (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, BadZipFile) as error:
        raise CheckpointError(f"{path} is damaged ({error}); the node joins again with the next round") from error
