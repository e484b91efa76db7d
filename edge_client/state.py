"""The pair save_pending / load_pending: what a client keeps between the messages of a round, and of its roster.

Law: ``load_pending(folder)`` gives what ``save_pending(folder, …)`` was last given, also after a crash in between.

A client is a new process for every message, so its trained values wait on its own disk (mode 0600). What was answered
once is answered again, alike, if the same is asked again: a killed aggregator can repeat a message and nobody learns
anything new. What the node has contributed to is in its ledger (`ledger.py`).

Of its roster a client keeps the highest serial number that it has accepted, so nobody can hand it an old one again.
"""

import json
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np

from edge_client.dealing import Secrets
from protocol.errors import CheckpointError, RosterRefused
from protocol.files import replace_file
from protocol.grid import Reals
from protocol.layout import Mask, Vector
from protocol.npz import read_arrays
from protocol.openings import Nodes
from protocol.roster import Roster

PENDING_FILE: Final = "pending.npz"


@dataclass(frozen=True)
class Measured:
    """What a client has measured in a round.

    Attributes:
        loss: The mean loss of its training.
        correct: Rows for testing that the model the round began with gets right.
        tested: Rows for testing.
        test_loss: The sum of that model's losses on them.
        parameters: The parameters of that model.
        kept: Those that are not zero.
    """

    loss: float = 0.0
    correct: int = 0
    tested: int = 0
    test_loss: float = 0.0
    parameters: int = 0
    kept: int = 0


@dataclass(frozen=True, eq=False)
class Pending:
    """A trained update that waits for its cohort to be announced, and then for its sum to be released.

    Attributes:
        attendance: The signed attendance that was sent for it.
        dealt: The shares that went with it.
        secrets: What masks it.
        invited: Who was invited with it.
        values: The trained values on the support, float32[n].
        votes: The votes, bool[n], or bool[0].
        step: The grid's step of each value, float64[n].
        sealed: The sealed terms.
        state: The digest of the state that it was trained from, 32 bytes.
        cohort: The encoded cohort that it was contributed to; empty before.
        shares: What each member of that cohort has dealt this node, 64 bytes or None.
        measured: What the client has measured, but for what was clipped.
    """

    attendance: bytes
    dealt: bytes
    secrets: Secrets
    invited: Nodes
    values: Vector
    votes: Mask
    step: Reals
    sealed: bytes
    state: bytes
    cohort: bytes = b""
    shares: tuple[bytes | None, ...] = ()
    measured: Measured = Measured()


def save_pending(folder: Path, pending: Pending) -> None:
    """Write durably: temporary file, fsync, rename."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    notes = {
        "measured": asdict(pending.measured),
        "state": pending.state.hex(),
        "invited": sorted(pending.invited),
        "exchange": pending.secrets.exchange.hex(),
        "seed": pending.secrets.seed.hex(),
        "shares": [None if share is None else share.hex() for share in pending.shares],
    }
    buffer = BytesIO()
    np.savez(
        buffer,
        attendance=np.frombuffer(pending.attendance, np.uint8),
        dealt=np.frombuffer(pending.dealt, np.uint8),
        cohort=np.frombuffer(pending.cohort, np.uint8),
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
            attendance=file["attendance"].tobytes(),
            dealt=file["dealt"].tobytes(),
            secrets=Secrets(bytes.fromhex(notes["exchange"]), bytes.fromhex(notes["seed"])),
            invited=frozenset(map(int, notes["invited"])),
            values=file["values"],
            votes=file["votes"],
            step=file["step"],
            sealed=file["sealed"].tobytes(),
            state=bytes.fromhex(notes["state"]),
            cohort=file["cohort"].tobytes(),
            shares=tuple(None if share is None else bytes.fromhex(share) for share in notes["shares"]),
            measured=Measured(**notes["measured"]),
        )
    except FileNotFoundError:
        raise CheckpointError(f"no trained update waits in {folder}: this node has not answered `train`") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
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
