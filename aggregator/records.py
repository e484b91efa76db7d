"""What is written down of a round: `Record`, one in ``record.json`` and one in each line of ``metrics.jsonl``.

A complete round has its ``record.json`` in ``rounds/round-000007/``, of which the newest two are kept, and its line in
``metrics.jsonl`` once it is known how its model does.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from protocol.documents import Count, Document, Part, Seconds, Table
from protocol.errors import CheckpointError
from protocol.figures import UNIT, Figures
from protocol.files import replace_file

ROUNDS_FOLDER: Final = "rounds"
RECORD_FILE: Final = "record.json"
METRICS_FILE: Final = "metrics.jsonl"
KEPT: Final = 2
_MOST_METRICS: Final = 1 << 30


class PhaseSeconds(Part):
    """Where the time of a round went, over all its attempts.

    Attributes:
        train: Until attendances were in.
        contribute: Until contributions were in, without adding them.
        release: Until consents were in.
        add: Adding ciphertexts, and taking the masks from the sum.
        other: What is left of the round.
    """

    train: Seconds
    contribute: Seconds
    release: Seconds
    add: Seconds
    other: Seconds

    def by_phase(self) -> dict[str, float]:
        """The seconds by the name of the phase, in the order above."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self.by_phase().values())


class MaskFigures(Part):
    """What only an observer that can open the sum knows of a round; an aggregator cannot, and leaves it all out.

    Attributes:
        regrown: Positions that the new model uses and the last one did not.
        agreement: Of two clients' masks, intersection over union, pooled over all pairs; None without votes.
        layer_density: The share of each trainable tensor that is left.
        work_left: The share of the weights' multiply-accumulates that is left.
    """

    regrown: Count | None = None
    agreement: float | None = None
    layer_density: Table[float] | None = None
    work_left: float | None = None


class Record(MaskFigures, Document):
    """A complete round.

    What clients measure is in their sums, and they report what a sum says with the message after it. So the training's
    loss and clipped values are known one round later, and how the round's model does two rounds later; the last ones
    after two messages more.

    Attributes:
        round: Its number, from 1.
        cohort: Clients in the sum.
        dropped: Clients that were asked and are not in the sum.
        attempts: Attempts that it took.
        refused: Messages that did not count.
        refusals: The same by kind.
        values: Values that travelled, over all attempts.
        value_bytes: Bytes of contributions without votes.
        vote_bytes: Bytes of votes.
        uplink_bytes: Bytes of all frames from the clients.
        downlink_bytes: Bytes of all frames to the clients.
        seconds: Where the time went.
        loss: The cohort's mean training loss, weighted by samples.
        clipped: Values that were clipped to the grid, over the cohort.
        accuracy: Of the round's model on the clients' test rows; None where nobody has measured it.
        test_loss: Its mean loss on them.
        kept: How many of its parameters are not zero.
        sparsity: The share of those that are.
    """

    format: str = "pruneseal-round"
    version: str = "1.0"
    round: Count
    cohort: Count
    dropped: Count
    attempts: Count
    refused: Count
    refusals: Table[Count]
    values: Count
    value_bytes: Count
    vote_bytes: Count
    uplink_bytes: Count
    downlink_bytes: Count
    seconds: PhaseSeconds
    loss: float | None = None
    clipped: Count | None = None
    accuracy: float | None = None
    test_loss: float | None = None
    kept: Count | None = None
    sparsity: float | None = None

    def sent(self, uplink: int, downlink: int) -> Self:
        """The same with the bytes of further messages."""
        return self.model_copy(
            update={"uplink_bytes": self.uplink_bytes + uplink, "downlink_bytes": self.downlink_bytes + downlink}
        )

    def trained(self, figures: Figures, weight: int) -> Self:
        """The same with what the round's own sum says of its training.

        Args:
            figures: Of that sum.
            weight: What the clients in it count for together.
        """
        return self.model_copy(update={"loss": figures.loss * UNIT / weight, "clipped": max(0, figures.clipped)})

    def scored(self, figures: Figures, clients: int) -> Self:
        """The same with what the sum after it says of its model.

        Figures that cannot be, since some client has told anything, are left out.

        Args:
            figures: Of the sum after it.
            clients: How many clients' they are.
        """
        changes: dict[str, object] = {}
        if 0 < figures.tested and 0 <= figures.correct <= figures.tested:
            changes["accuracy"] = figures.correct / figures.tested
            changes["test_loss"] = figures.test_loss * UNIT / figures.tested
        if 0 <= figures.kept <= figures.parameters:
            changes["kept"] = round(figures.kept / clients)
            changes["sparsity"] = 1 - figures.kept / max(1, figures.parameters)
        return self.model_copy(update=changes)


def read_records(folder: Path) -> list[Record]:
    """The metrics of all complete rounds, without touching anything; the last two may not know yet how they went.

    Raises:
        CheckpointError: A line or the newest round's record is damaged.
    """
    return [*_published(folder), *unpublished_records(folder)]


def unpublished_records(folder: Path) -> list[Record]:
    """The complete rounds that have no line in ``metrics.jsonl`` yet: the newest two at most.

    Raises:
        CheckpointError: A line or a record is damaged.
    """
    path = folder / METRICS_FILE
    whole = [line for line in _lines(path) if line.endswith(b"\n")]
    published = _parsed(whole[-1], path).round if whole else 0
    records = []
    for kept in sorted((folder / ROUNDS_FOLDER).glob("round-*"))[-KEPT:]:
        with suppress(FileNotFoundError):  # it has just been forgotten, for a newer one
            records.append(Record.read(kept / RECORD_FILE))
    return [record for record in records if record.round > published]


def append_record(folder: Path, record: Record) -> None:
    """Append a round's line to ``metrics.jsonl``; what a killed run left of this round or later goes.

    Raises:
        OSError: The disk does not take it.
        CheckpointError: A line that is there already is damaged.
    """
    path = folder / METRICS_FILE
    lines = _lines(path)
    kept = [line for line in lines if line.endswith(b"\n") and _parsed(line, path).round < record.round]
    if kept == lines:
        with path.open("ab") as file:
            file.write(record.to_json() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    else:
        replace_file(path, b"".join([*kept, record.to_json(), b"\n"]))


def _published(folder: Path) -> list[Record]:
    path = folder / METRICS_FILE
    return [_parsed(line, path) for line in _lines(path) if line.endswith(b"\n")]


def _lines(path: Path) -> list[bytes]:
    """The lines of the metrics, each with its end; the last has none where a crash has left a part of it.

    Raises:
        CheckpointError: The file cannot be read, or is larger than any run makes it.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > _MOST_METRICS:
                raise CheckpointError(f"{path} is damaged: it is larger than {_MOST_METRICS} bytes")
            return list(file)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _parsed(line: bytes, path: Path) -> Record:
    return Record.parse(line, f"a line of {path}")
