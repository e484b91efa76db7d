"""A malicious aggregator: on the path of its processes, it announces cohorts of two, and asks everybody."""

from collections.abc import Sequence

try:
    from aggregator import rounds
except ImportError:  # a process of Flower's own, in which there is no aggregator to spoil
    pass
else:

    def two(self: rounds.Run, tally: object, able: Sequence[int]) -> list[int]:
        """Two members, whatever the plan says."""
        return sorted(able)[:2]

    rounds.Run._members = two  # type: ignore[method-assign]
