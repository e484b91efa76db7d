"""The sum of one cohort, added up as contributions arrive; memory does not grow with their number."""

import numpy as np

from protocol.bits import packed_length
from protocol.ciphertext import Seal, Summer, restore, truncate
from protocol.cohort import Cohort
from protocol.parameters import COEFFICIENT_BITS, DEGREE, SEED_BYTES
from protocol.plan import Plan
from protocol.wire import Aggregate, Contribution


class CohortSum:
    """A running sum; close it to free SEAL's memory.

    Args:
        cohort: Whose sum.
        attempt: Of which attempt.
        plan: The plan of the run.
    """

    def __init__(self, cohort: Cohort, attempt: int, plan: Plan) -> None:
        self._cohort, self._attempt, self._plan = cohort, attempt, plan
        self._seal = Seal(plan.parameters)
        self._summer = Summer(self._seal)
        # Seeds are kept only while they are shorter than the summed second half that they would replace.
        self._by_seeds = len(cohort.members) * SEED_BYTES < packed_length(DEGREE, COEFFICIENT_BITS)
        self._seeds: list[tuple[bytes, ...]] = []
        self._sealed = b""
        self._count = 0

    def add(self, contribution: Contribution) -> None:
        """Add one admitted contribution.

        Raises:
            MalformedMessage: A residue is out of range; nothing was added.
        """
        self._summer.add(restore(contribution.first, self._plan.parameters.drop_up), contribution.seeds)
        if self._by_seeds:
            self._seeds.append(contribution.seeds)
        self._sealed = self._sealed or contribution.sealed
        self._count += 1

    @property
    def complete(self) -> bool:
        """Whether every member's contribution is in; before that, the blinding does not cancel."""
        return self._count == len(self._cohort.members)

    def aggregate(self) -> Aggregate:
        """The sum as a message, once it is complete."""
        first, second = self._summer.halves()
        member, p = self._cohort.members[0], self._plan.parameters
        used = np.ravel(first)[: p.slots(member.values, member.votes)]
        return Aggregate(
            run=member.run,
            round=member.round,
            attempt=self._attempt,
            clients=self._count,
            values=member.values,
            votes=member.votes,
            plan=member.plan,
            key=member.key,
            cohort=self._cohort.digest(self._attempt),
            support=member.support,
            first=truncate(used, p.drop_down),
            second=tuple(zip(*self._seeds, strict=True)) if self._by_seeds else second,
            sealed=self._sealed,
        )

    def close(self) -> None:
        """Free SEAL's memory."""
        self._seal.close()
