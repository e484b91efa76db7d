"""What is counted while a round goes on."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field


@dataclass
class Tally:
    """The counts of one round, over all its attempts, and who is invited to it.

    Attempts are numbered over all starts of the aggregator; tries are those of this start. ``invited`` stands once a
    cohort was announced: from then on the others of a round hold it to the same nodes. ``spoiled`` are the sets whose
    sums were opened in this round and were none; ``refusing`` are the nodes that say so of the sum before, in answer to
    the message under way.
    """

    round: int
    attempt: int = 0
    tries: int = 0
    invited: frozenset[int] = frozenset()
    announced: bool = False
    asked: int = 0
    uplink: int = 0
    downlink: int = 0
    values: int = 0
    value_bytes: int = 0
    vote_bytes: int = 0
    spoiled: frozenset[frozenset[int]] = frozenset()
    sitting_out: set[int] = field(default_factory=set)
    refusing: set[int] = field(default_factory=set)
    excluded: set[int] = field(default_factory=set)
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
