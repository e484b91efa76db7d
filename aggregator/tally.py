"""What is counted while a round goes on."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field


@dataclass
class Tally:
    """The counts of one round, over all its attempts, the cohorts announced in it, and where each node is reached.

    Attempts are numbered over all starts of the aggregator; tries are those of this start. ``trained`` and
    ``announced`` are the attempts in which clients were last asked to train, and last told of a cohort.
    """

    round: int
    attempt: int = 0
    tries: int = 0
    trained: int = 0
    announced: int = 0
    asked: int = 0
    left_out: int = 0
    uplink: int = 0
    downlink: int = 0
    values: int = 0
    value_bytes: int = 0
    vote_bytes: int = 0
    clipped: int = 0
    cohorts: list[frozenset[int]] = field(default_factory=list)
    sources: dict[int, int] = field(default_factory=dict)
    sitting_out: set[int] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    errors: Counter[str] = field(default_factory=Counter)
    recent: Counter[str] = field(default_factory=Counter)

    def fail(self, reason: str) -> None:
        """Count why a client did not answer, for the round and for the message under way."""
        self.errors[reason] += 1
        self.recent[reason] += 1

    def reasons(self, errors: Counter[str]) -> str:
        """The commonest reasons in brackets, or nothing."""
        common = ", ".join(f"{count} x {reason!r}" for reason, count in errors.most_common(3))
        return f" ({common})" if common else ""
