"""Who is told how a run goes."""

from collections.abc import Mapping
from typing import Protocol

from aggregator.records import MaskFigures, Record
from aggregator.summation import MaskedSum
from protocol.errors import PeerError


class Observer(Protocol):
    """Who is told how a run goes. All calls come from the thread of the run. Nodes go by their number in Flower."""

    def online(self, round_: int, nodes: Mapping[int, str]) -> None:
        """These nodes are online as a round begins; each with the name that it is registered under, or none."""

    def phase(self, round_: int, name: str, done: int, total: int) -> None:
        """``done`` of ``total`` clients have answered in a phase of a round."""

    def refused(self, round_: int, node: int, error: PeerError) -> None:
        """What a node sent does not count."""

    def failed(self, round_: int, node: int, reason: str) -> None:
        """A node, or Flower in its place, has answered with an error."""

    def summed(self, round_: int, total: MaskedSum, aggregate: bytes) -> MaskFigures:
        """A sum is open to the clients, and about to be written.

        Args:
            round_: Whose.
            total: Who is in it, and of which attempt.
            aggregate: The sum as it is sent.

        Returns:
            Figures for the round's line of metrics, from an observer that can open the sum. An aggregator cannot: none.
        """

    def round_done(self, record: Record) -> None:
        """A round's metrics are complete."""

    def message(self, text: str) -> None:
        """Something that an operator wants to know."""


def refusal(round_: int, error: PeerError) -> str:
    """A refusal as a line for an operator."""
    return f"round {round_}: refused a message: {type(error).__name__}: {error}"
