"""A malicious aggregator: on the path of its processes, it announces cohorts of two, and asks everybody."""

from collections.abc import Sequence

try:
    from aggregator import contributing
    from protocol.cohort import Cohort, gather_cohort
    from protocol.openings import Nodes
    from protocol.roster import Roster
except ImportError:  # a process of Flower's own, in which there is no aggregator to spoil
    pass
else:

    def two(encoded: Sequence[bytes], roster: Roster, groups: Sequence[Nodes] = ()) -> Cohort:
        """Two members, whatever the plan says."""
        return gather_cohort(gather_cohort(encoded, roster).encoded[:2], roster)

    contributing.gather_cohort = two  # type: ignore[attr-defined]
