"""The second message of a round: a cohort is announced, and what its members send is added up, masked and encrypted."""

import time
from collections.abc import Callable, Mapping

import numpy as np

from aggregator.admission import ContributionAdmission, forbidding
from aggregator.asking import Answer, Asker, Refusals
from aggregator.dividing import divide, openable
from aggregator.observer import Observer
from aggregator.selection import Selection
from aggregator.summation import CohortSum, MaskedSum, dealt_to
from aggregator.tally import Tally
from protocol.call import Action
from protocol.cohort import Cohort, gather_cohort
from protocol.errors import PeerError, QuorumError, ShareError
from protocol.openings import Nodes
from protocol.plan import Plan
from protocol.roster import Roster
from protocol.wire import contribution_length


class Contributing:
    """Adds cohorts up.

    Args:
        asker: Carries the messages.
        selection: Knows how many are needed.
        plan: The plan.
        roster: The public keys of the nodes.
        observer: Who is told.
        begin: Called before a cohort is announced, to write that down.
    """

    def __init__(
        self,
        asker: Asker,
        selection: Selection,
        plan: Plan,
        roster: Roster,
        observer: Observer,
        begin: Callable[[Tally], None],
    ) -> None:
        self._asker, self._selection, self._plan = asker, selection, plan
        self._roster, self._observer, self._begin = roster, observer, begin

    def contribute(self, tally: Tally, trained: Mapping[int, Answer], invited: Nodes) -> MaskedSum | None:
        """Announce the cohort and add up what its members send; None where that cannot be opened."""
        order = np.random.default_rng([self._plan.seed, tally.round, tally.attempt])
        groups = divide(tally.spoiled, frozenset(trained), self._plan, order)
        trained = {node: answer for node, answer in trained.items() if any(node in group for group in groups)}
        least = self._selection.quorum(len(invited))
        if len(trained) < least:
            self._require_divisible(tally, order)
            self._observer.message(
                f"round {tally.round}: {len(trained)} clients of {least} can be in a sum; the round starts over"
            )
            return None
        frames = [answer.frames["attendance"] for answer in trained.values()]
        cohort = gather_cohort(frames, self._roster, groups if len(groups) > 1 else ())
        dealt = {node: answer.frames["shares"] for node, answer in trained.items()}
        tally.announced = True
        self._begin(tally)
        start, added = time.monotonic(), tally.seconds["add"]
        total, held = CohortSum(cohort, self._plan), dict.fromkeys(cohort.nodes, 0)
        try:
            self._add(tally, cohort, trained, total, held, invited, dealt)
            places = openable(tally.spoiled, cohort.parts, total.sets, invited, self._plan)
            masked = total.masked(tally.attempt, invited, dealt, places)
        finally:
            total.close()
        tally.seconds["contribute"] += time.monotonic() - start - (tally.seconds["add"] - added)
        members, enough = len(cohort.members), len(masked.nodes) >= least
        if len(total.nodes) < members:
            lost = f"round {tally.round}: {members - len(total.nodes)} of {members} clients were lost"
            lost += tally.reasons(tally.recent)
            self._observer.message(
                lost if enough else f"{lost}; {least} are needed for a sum, so the round starts over"
            )
        if not enough:
            return None
        asked = Nodes().union(*(cohort.parts[place] for place in places))
        wrong: dict[int, PeerError] = {node: ShareError(node) for node in sorted(asked) if held[node] < least}
        wrong |= forbidding(cohort, masked.sets, invited, self._plan.colluders)
        if wrong:
            self._exclude(tally, wrong, trained, invited)
            return None
        return masked

    def _require_divisible(self, tally: Tally, order: np.random.Generator) -> None:
        """Stop where not even all who are invited, but for those with whom no sum can be opened, could be in a sum.

        Raises:
            QuorumError: They could not.
        """
        all_there = divide(tally.spoiled, tally.invited - tally.excluded, self._plan, order)
        if sum(map(len, all_there)) < self._selection.quorum(len(tally.invited)):
            raise QuorumError(
                f"round {tally.round}: its sum can never be opened, and the others are too few for one without "
                f"{self._roster.names(tally.excluded)} that tells nobody apart. Revoke that node and start a new run."
            )

    def _exclude(
        self, tally: Tally, wrong: Mapping[int, PeerError], trained: Mapping[int, Answer], invited: Nodes
    ) -> None:
        """Name the members with whom no sum can be opened, and leave them out of the round's next attempts.

        Raises:
            QuorumError: Too few are left.
        """
        for node in sorted(wrong):
            with Refusals(tally, self._observer, trained[node].source):
                raise wrong[node]
            tally.excluded.add(node)
        names = self._roster.names(wrong)
        least = self._selection.quorum(len(invited))
        if len(invited - tally.excluded) < least:
            raise QuorumError(
                f"round {tally.round}: {wrong[min(wrong)]}. Without {names} too few are left for a sum of at least "
                f"{least}; resume the run to ask again, or start a new one."
            )
        self._observer.message(f"round {tally.round}: no sum can be opened with {names}; the round starts over without")

    def _add(
        self,
        tally: Tally,
        cohort: Cohort,
        trained: Mapping[int, Answer],
        total: CohortSum,
        held: dict[int, int],
        invited: Nodes,
        dealt: Mapping[int, bytes],
    ) -> None:
        """Ask a cohort, add what arrives, and count by member how many of those who contribute hold its shares."""
        admission = ContributionAdmission(cohort, tally.attempt, self._plan, self._roster)
        announced, members = cohort.encode(), {trained[node].source: node for node in sorted(trained)}
        frames = {
            source: {"cohort": announced, "shares": dealt_to(node, cohort, invited, dealt)}
            for source, node in members.items()
        }
        for answer in self._asker.ask(tally, Action.CONTRIBUTE, frames):
            with Refusals(tally, self._observer, answer.source):
                frame = answer.frames["contribution"]
                contribution = admission.admit(members[answer.source], frame)
                adding = time.monotonic()
                total.add(contribution)
                tally.seconds["add"] += time.monotonic() - adding
                bare = contribution_length(contribution.values, 0, len(members), self._plan.parameters)
                tally.values += contribution.values
                tally.value_bytes += bare
                tally.vote_bytes += len(frame) - bare
                for member, holds in zip(cohort.members, contribution.held, strict=True):
                    held[member.node] += holds
                self._observer.phase(tally.round, "contribute", len(total.nodes), len(members))
