"""What a node is asked to do, and of which round: the words for it, without Flower.

`protocol/messages.py` puts them into Flower's records and takes them out again.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from protocol.errors import MalformedMessage
from protocol.frame import RUN_BYTES

_END: Final = 1 << 32


class Action(StrEnum):
    """What a node is asked to do; its value is the type of Flower's message."""

    TRAIN = "train"
    CONTRIBUTE = "train.contribute"
    RELEASE = "train.release"
    REPORT = "query"
    NAME = "query.name"

    @property
    def request(self) -> tuple[str, ...]:
        """The names of the frames that the message can carry."""
        return _FRAMES[self][0]

    @property
    def reply(self) -> tuple[str, ...]:
        """The names of the frames that it is answered with, all of them."""
        return _FRAMES[self][1]


_FRAMES: Final[dict[Action, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    Action.TRAIN: (("invited", "aggregate"), ("attendance", "shares")),
    Action.CONTRIBUTE: (("cohort", "shares"), ("contribution",)),
    Action.RELEASE: (("release",), ("consent",)),
    Action.REPORT: (("aggregate", "scores"), ("model", "figures", "spoiled")),
    Action.NAME: ((), ("name",)),
}


@dataclass(frozen=True)
class Call:
    """Which message of which round is being answered.

    Attributes:
        run: The run's name, 16 bytes.
        round: From 1.
        attempt: From 1, counted by the aggregator within the round.

    Raises:
        MalformedMessage: A value is out of its range.
    """

    run: bytes
    round: int
    attempt: int

    def __post_init__(self) -> None:
        if len(self.run) != RUN_BYTES:
            raise MalformedMessage("the message names no run, round and attempt")
        if not 0 < self.round < _END or not 0 < self.attempt < _END:
            raise MalformedMessage("rounds and attempts are counted from 1")
