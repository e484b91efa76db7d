"""What the aggregator keeps on disk: the last aggregate, and a line of metrics for every round.

``rounds/round-000007/`` holds ``aggregate.bin``, the whole state of the run, and ``record.json``, the round's metrics
so far. The folder is written under a temporary name, synced and renamed, so it exists complete or not at all; a killed
aggregator resumes from the newest. ``metrics.jsonl`` gets a round's line once the clients have told how its model does,
two rounds later; ``scores.bin`` is the sum that tells it of the last one.
``attempt.json`` says how far the round under way had come, and is written before its messages are sent; a complete
round keeps its last one, since clients may refuse its sum.
``masked-000007.npz`` is its sum, which waits to be released.
``lock`` is locked by the process that runs the rounds, and by the kernel's doing not a moment longer.
"""

import fcntl
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from aggregator.records import KEPT, RECORD_FILE, ROUNDS_FOLDER, Record, append_record, unpublished_records
from protocol.documents import Count, Document, Items
from protocol.errors import CheckpointError, ConfigError, StorageError
from protocol.files import replace_file, sync_directory
from protocol.frame import RUN_BYTES
from protocol.plan import Plan

AGGREGATE_FILE: Final = "aggregate.bin"
RUN_FILE: Final = "run.json"
LOCK_FILE: Final = "lock"
ATTEMPT_FILE: Final = "attempt.json"
SCORES_FILE: Final = "scores.bin"
MASKED_FILE: Final = "masked-{:06d}.npz"
_LOCK_SECONDS = 2.0


class RunName(Document):
    """Which run a folder belongs to: ``run.json``.

    Attributes:
        run: The run's name, in hex.
        plan: The digest of its plan, in hex.
    """

    refusal = ConfigError
    format: str = "pruneseal-run"
    version: str = "1.0"
    run: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    plan: str


@dataclass(frozen=True)
class Stored:
    """A completed round as it was found on disk.

    Attributes:
        round: Its number; 0 where there is none.
        aggregate: Its encoded aggregate; empty where there is none.
    """

    round: int
    aggregate: bytes


class Attempt(Document):
    """How far a round had come when its last message was about to be sent: ``attempt.json``.

    Attributes:
        round: The round.
        attempt: Its number within the round.
        invited: The numbers of the nodes that were invited last.
        announced: Whether a cohort was announced in this round; from then on, the same nodes have to be invited.
        spoiled: The sets of nodes whose sums were opened in earlier attempts and were none.
        sums: Of each sum that was opened in this one, the numbers of the nodes in it.
    """

    format: str = "pruneseal-attempt"
    version: str = "1.0"
    round: Count
    attempt: Count
    invited: Items[Count]
    announced: bool
    spoiled: Items[Items[Count]] = ()
    sums: Items[Items[Count]] = ()


class Journal:
    """The folder of one run.

    Args:
        folder: Made if it is absent.
        plan: The plan of the run.
        name: What a new run is called, 16 bytes; by default at random.

    Raises:
        ConfigError: The folder belongs to a run of another plan, or cannot be written.
    """

    def __init__(self, folder: Path, plan: Plan, name: bytes | None = None) -> None:
        self.folder = folder
        """Where it is."""
        try:
            (folder / ROUNDS_FOLDER).mkdir(parents=True, exist_ok=True)
            path = folder / RUN_FILE
            if not path.exists():
                name = name or secrets.token_bytes(RUN_BYTES)
                RunName(run=name.hex(), plan=plan.digest.hex()).write(path)
            stored = RunName.read(path)
        except OSError as error:
            raise ConfigError(f"the state folder {folder} cannot be written: {error.strerror}") from error
        except ConfigError as error:
            raise ConfigError(f"{folder} does not name a run ({error}): choose another folder") from error
        if stored.plan != plan.digest.hex():
            raise ConfigError(
                f"{folder} holds a run of another plan ({stored.plan[:16]}; this one is {plan.digest.hex()[:16]}): "
                "choose another folder, or start with the settings of that run"
            )
        self.run = bytes.fromhex(stored.run)
        """The run's name, 16 bytes."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the run to this process, for the rounds must be run by one; clear away what a killed one has left.

        Raises:
            ConfigError: Another process runs it.
        """
        with (self.folder / LOCK_FILE).open("w") as file:
            end = time.monotonic() + _LOCK_SECONDS
            while not _try_lock(file.fileno(), fcntl.LOCK_EX):  # it may be that somebody only looks whether it is held
                if time.monotonic() > end:
                    raise ConfigError(f"another process runs the rounds of {self.folder}: wait for it, or stop it")
                time.sleep(0.05)
            for torn in (self.folder / ROUNDS_FOLDER).glob(".*"):
                shutil.rmtree(torn)  # what a killed run was about to write
            yield

    def last(self) -> Stored:
        """The newest complete round.

        Raises:
            CheckpointError: Its files are damaged.
        """
        folders = sorted((self.folder / ROUNDS_FOLDER).glob("round-*"))
        if not folders:
            return Stored(0, b"")
        try:
            record = Record.read(folders[-1] / RECORD_FILE)
            return Stored(record.round, (folders[-1] / AGGREGATE_FILE).read_bytes())
        except (OSError, CheckpointError) as error:
            raise CheckpointError(
                f"{folders[-1]} is damaged ({error}); put it back from a copy. Removing it goes back a round, "
                "which clients refuse where they have been asked for another since: start a new run then"
            ) from error

    def begin(self, attempt: Attempt) -> None:
        """Write down what is about to be sent, so that a killed aggregator knows what clients hold it to.

        Raises:
            StorageError: The disk does not take it; nothing may be sent.
        """
        with self._writing(attempt.round):
            attempt.write(self.folder / ATTEMPT_FILE)

    def begun(self) -> Attempt | None:
        """The attempt that was written down last, if any.

        Raises:
            CheckpointError: The file is damaged.
        """
        try:
            return Attempt.read(self.folder / ATTEMPT_FILE)
        except FileNotFoundError:
            return None
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; put it back from a copy. Without it the round can be gone on with only where its attempt "
                "had not come to a cohort: remove it then, else start a new run"
            ) from error

    def wait(self, round_: int, masked: bytes) -> None:
        """Write down a sum that is about to be released; from then on, no other sum of this round may be.

        Raises:
            StorageError: The disk does not take it; nothing may be sent.
        """
        with self._writing(round_):
            replace_file(self.folder / MASKED_FILE.format(round_), masked)

    def waiting(self, round_: int) -> bytes:
        """The sum of a round that waits to be released; empty where none does.

        Raises:
            StorageError: It cannot be read.
        """
        return self._read(MASKED_FILE.format(round_))

    def save(self, aggregate: bytes, record: Record, attempt: Attempt) -> None:
        """Write a completed round durably, with its last attempt, and forget all but the newest few.

        Raises:
            StorageError: The disk does not take it; the rounds before are as they were.
        """
        rounds = self.folder / ROUNDS_FOLDER
        temporary = rounds / f".{secrets.token_hex(8)}"
        with self._writing(record.round):
            temporary.mkdir()
            try:
                replace_file(temporary / AGGREGATE_FILE, aggregate)
                record.write(temporary / RECORD_FILE)
                attempt.write(temporary / ATTEMPT_FILE)
                temporary.replace(rounds / f"round-{record.round:06d}")
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            sync_directory(rounds)
            for old in sorted(rounds.glob("round-*"))[:-KEPT]:
                shutil.rmtree(old)
            (self.folder / MASKED_FILE.format(record.round)).unlink(missing_ok=True)

    def opened(self, round_: int) -> Attempt:
        """The last attempt of a complete round, or of the one after the last.

        Raises:
            CheckpointError: Its file is damaged or missing.
        """
        kept = self.folder / ROUNDS_FOLDER / f"round-{round_:06d}" / ATTEMPT_FILE
        try:
            return Attempt.read(kept if kept.parent.exists() else self.folder / ATTEMPT_FILE)
        except FileNotFoundError as error:
            raise CheckpointError(f"{kept} is missing: put it back from a copy, or start a new run") from error

    def reopen(self, attempt: Attempt) -> None:
        """Forget the sum of a round, since it is none, and all that came of it; the round is gone on with after.

        Args:
            attempt: The round's last, with the sums that were opened in it among the spoiled.

        Raises:
            StorageError: The disk does not take it.
        """
        self.begin(attempt)
        with self._writing(attempt.round):
            if (folder := self.folder / ROUNDS_FOLDER / f"round-{attempt.round:06d}").exists():
                shutil.rmtree(folder.replace(folder.with_name(f".{secrets.token_hex(8)}")))
                sync_directory(folder.parent)
            for name in (SCORES_FILE, MASKED_FILE.format(attempt.round)):
                (self.folder / name).unlink(missing_ok=True)

    def unpublished(self) -> list[Record]:
        """The complete rounds that have no line in ``metrics.jsonl`` yet: the newest two at most.

        Raises:
            CheckpointError: A line or a record is damaged.
        """
        return unpublished_records(self.folder)

    def amend(self, record: Record) -> None:
        """Write a complete round's metrics anew.

        Raises:
            StorageError: The disk does not take it.
        """
        with self._writing(record.round):
            record.write(self.folder / ROUNDS_FOLDER / f"round-{record.round:06d}" / RECORD_FILE)

    def close(self, scores: bytes, attempt: Attempt) -> None:
        """Write down the sum that says how the final model does, and the attempt that it was opened in.

        Raises:
            StorageError: The disk does not take it.
        """
        self.begin(attempt)
        with self._writing(attempt.round):
            replace_file(self.folder / SCORES_FILE, scores)
            (self.folder / MASKED_FILE.format(attempt.round)).unlink(missing_ok=True)

    def scores(self) -> bytes:
        """What :meth:`close` has written; empty where it has not.

        Raises:
            StorageError: It cannot be read.
        """
        return self._read(SCORES_FILE)

    def _read(self, name: str) -> bytes:
        path = self.folder / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from error

    def publish(self, record: Record) -> None:
        """Append a round's line to ``metrics.jsonl``; what a killed run left of this round or later goes.

        Raises:
            StorageError: The disk does not take it.
            CheckpointError: A line that is there already is damaged.
        """
        with self._writing(record.round):
            append_record(self.folder, record)

    @contextmanager
    def _writing(self, round_: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"round {round_} cannot be written to {self.folder}: {error.strerror}. Free space or mend "
                "the disk, then resume the run; it goes on from the last complete round."
            ) from error


def is_held(folder: Path) -> bool:
    """Whether a process runs the rounds of this folder now."""
    try:
        with (folder / LOCK_FILE).open() as file:
            return not _try_lock(file.fileno(), fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def _try_lock(descriptor: int, kind: int) -> bool:
    """Lock an open file until it is closed, or say that somebody else holds it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
