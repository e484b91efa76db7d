"""What is written down of a round: `Record`, one in ``record.json`` and one in each line of ``metrics.jsonl``."""

from typing import Self

from protocol.documents import Count, Document, Part, Seconds, Table
from protocol.figures import UNIT, Figures


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
