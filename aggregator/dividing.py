"""How a cohort is divided once clients have refused a sum of its round, and which of its groups' sums may be opened.

Whoever has spoiled a sum is not to be told from it; but of sums of disjoint groups only that of its own group is none.
Groups lie inside the sets that were opened before, and what these have left over is nothing, or enough to hide its
members among each other (`protocol/openings.py`).
"""

from collections.abc import Collection, Sequence
from typing import Final

import numpy as np

from protocol.errors import CohortRefused
from protocol.openings import Nodes, Opening, require_openable, smallest
from protocol.plan import Plan

_MOST_GROUPS: Final = 16
"""A sum is held in memory for each."""


def divide(spoiled: Collection[Nodes], present: Nodes, plan: Plan, order: np.random.Generator) -> tuple[Nodes, ...]:
    """Groups that are as small, so as many, as the plan allows.

    Args:
        spoiled: The sets whose sums were opened in this round and were none; none for a cohort that is not divided.
        present: Who may be a member.
        plan: The plan.
        order: Deals the nodes out at random, so that whoever spoils one sum after the other is in other company each
            time.

    Returns:
        One where so few cannot be divided, and none where a sum would be too small.
    """
    if not spoiled:
        return (present,)
    groups = list[Nodes]()
    parts = [one.difference(*(other for other in spoiled if other < one)) for one in sorted(spoiled, key=sorted)]
    for part in [*parts, present.difference(*spoiled)]:
        here, lost = order.permutation(sorted(part & present)), len(part - present)
        if lost:  # they cannot be told apart from the others that are left over
            here = here[max(0, smallest(plan.colluders) - lost) :]
        count = min(len(here) // plan.min_cohort, _MOST_GROUPS - len(groups))
        if count:
            groups += [frozenset(map(int, group)) for group in np.array_split(here, count)]
    return tuple(groups)


def openable(
    spoiled: Collection[Nodes], groups: Sequence[Nodes], sets: Sequence[Nodes], invited: Nodes, plan: Plan
) -> list[int]:
    """The places of the groups whose sums may be opened together, beside what was opened before.

    Args:
        spoiled: The sets whose sums were opened in this round.
        groups: Of each group, who was asked to contribute.
        sets: Of each group, who has.
        invited: Who was invited to the attempt.
        plan: The plan.
    """
    before, chosen = (Opening(invited, frozenset(spoiled)),), list[int]()
    for place in sorted(range(len(groups)), key=lambda one: sets[one] != groups[one]):  # whole ones first
        if len(sets[place]) < plan.min_cohort:
            continue
        try:
            require_openable(before, invited, [sets[one] for one in [*chosen, place]], plan.colluders)
        except CohortRefused:
            continue  # its lost members would be told apart
        chosen.append(place)
    return sorted(chosen)
