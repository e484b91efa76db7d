"""What is written down of a round: `Record`, one in ``record.json`` and one in each line of ``metrics.jsonl``."""

from typing import Self

from protocol.documents import Count, Document, Part, Seconds, Table


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


class Scores(Part):
    """How the model of a round does; the attributes are those of `Record`."""

    accuracy: float | None
    test_loss: float | None
    kept: Count
    sparsity: float


class Record(MaskFigures, Document):
    """A complete round.

    The last four attributes are known, and written, only when the next message has told how its model does.

    Attributes:
        round: Its number, from 1.
        cohort: Clients in the sum.
        dropped: Clients that were asked and are not in the sum.
        attempts: Attempts that it took.
        refused: Messages that did not count.
        refusals: The same by kind.
        loss: The cohort's mean training loss, weighted by samples.
        clipped: Values that were clipped to the grid, over the cohort.
        values: Values that travelled, over all attempts.
        value_bytes: Bytes of contributions without votes.
        vote_bytes: Bytes of votes.
        uplink_bytes: Bytes of all frames from the clients.
        downlink_bytes: Bytes of all frames to the clients.
        seconds: Where the time went.
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
    loss: float
    clipped: Count
    values: Count
    value_bytes: Count
    vote_bytes: Count
    uplink_bytes: Count
    downlink_bytes: Count
    seconds: PhaseSeconds
    accuracy: float | None = None
    test_loss: float | None = None
    kept: Count | None = None
    sparsity: float | None = None

    def scored(self, scores: Scores, uplink: int, downlink: int) -> Self:
        """The same with how its model does, and with the bytes of the messages that told it."""
        sent = {"uplink_bytes": self.uplink_bytes + uplink, "downlink_bytes": self.downlink_bytes + downlink}
        return self.model_copy(update={**sent, **dict(scores)})
