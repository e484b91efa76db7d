"""The third message of a round: those in a sum are asked to release it until the masks left in it can be taken off."""

import time
from collections.abc import Mapping
from typing import Final

from aggregator.asking import Asker, Refusals
from aggregator.observer import Observer
from aggregator.recovery import Recovery
from aggregator.selection import Selection
from aggregator.summation import MaskedSum
from aggregator.tally import Tally
from protocol.call import Action
from protocol.errors import QuorumError
from protocol.plan import Plan
from protocol.release import Release, encode_release
from protocol.roster import Roster
from protocol.wire import encode_aggregate

_WAIT_SECONDS: Final = 0.5


class Releasing:
    """Opens sums with the consent of those who are in them.

    Args:
        asker: Carries the messages.
        selection: Knows who is there, and how many are needed.
        plan: The plan.
        roster: The public keys of the nodes.
        observer: Who is told.
    """

    def __init__(self, asker: Asker, selection: Selection, plan: Plan, roster: Roster, observer: Observer) -> None:
        self._asker, self._selection, self._plan = asker, selection, plan
        self._roster, self._observer = roster, observer

    def release(self, tally: Tally, total: MaskedSum) -> bytes:
        """Ask for consents until there are enough, and make the aggregate.

        Raises:
            QuorumError: Too few consent.
            ShareError: A member has dealt shares that are none, so what was consented to can never be opened.
        """
        tally.attempt, tally.tries = total.attempt, 0
        recovery = Recovery(total, self._plan, self._roster)
        while not recovery.complete:
            if tally.tries == self._plan.attempts:
                raise QuorumError(self._unreleased(tally, total, recovery))
            online = self._selection.online(tally)
            there = {node: online[node] for node in sorted(total.nodes) if node in online}
            self._ask(tally, total, recovery, there)
            tally.tries += 1
            if not recovery.complete:
                released = f"{len(recovery.answered)} of {len(total.nodes)} clients released the sum"
                again = f"round {tally.round}: {released}{tally.reasons(tally.recent)}; asking again"
                self._observer.message(again)
                time.sleep(_WAIT_SECONDS)
        start = time.monotonic()
        made = total.aggregates(recovery.masks(), self._plan, recovery.vouchers, recovery.sealed)
        aggregate = b"".join(encode_aggregate(each, self._plan.parameters) for each in made)
        tally.seconds["add"] += time.monotonic() - start
        return aggregate

    def _ask(self, tally: Tally, total: MaskedSum, recovery: Recovery, there: Mapping[int, int]) -> None:
        """Ask those who have not answered yet to release a sum; one of all for the terms too.

        Where the one that was asked for the terms does not send them, the next time another is.
        """
        member, numbers = total.cohort.members[0], {source: node for node, source in there.items()}
        alive = [node for node in there if node in recovery.answered] or list(there)
        bearer = alive[tally.tries % len(alive)] if alive and not recovery.sealed else None
        frames = {}
        for node, source in there.items():
            if node in recovery.answered and node != bearer:
                continue
            release = Release(
                run=member.run,
                round=member.round,
                attempt=total.attempt,
                members=len(total.cohort.members),
                cohort=total.cohort.digest(total.attempt),
                terms=node == bearer,
                sets=total.sets,
            )
            frames[source] = {"release": encode_release(release)}
        start = time.monotonic()
        for answer in self._asker.ask(tally, Action.RELEASE, frames):
            with Refusals(tally, self._observer, answer.source):
                recovery.admit(numbers[answer.source], answer.frames["consent"])
                self._observer.phase(tally.round, "release", len(recovery.answered), len(total.nodes))
        tally.seconds["release"] += time.monotonic() - start

    def _unreleased(self, tally: Tally, total: MaskedSum, recovery: Recovery) -> str:
        names = [self._roster.nodes[node].name for node in sorted(total.nodes - recovery.answered)]
        return (
            f"round {tally.round}: {len(recovery.answered)} of the {len(total.nodes)} clients in its sum have released "
            f"it, and {self._selection.quorum(len(total.invited))} are needed{tally.reasons(tally.errors)}. No other "
            f"sum of the round may be opened. Bring back some of {', '.join(names)}, then resume the run."
        )
