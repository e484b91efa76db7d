"""What becomes of a round whose sum is none: it is gone back to, once, and whoever may have spoiled it is left out.

Whoever is in a sum can spoil it with what it contributes, or keep it shut with shares that fit no polynomial.
"""

from collections import defaultdict
from collections.abc import Mapping

from aggregator.absences import Absence, Absences, told
from aggregator.journal import Attempt, Journal
from aggregator.observer import Observer
from aggregator.records import Record
from aggregator.summation import MaskedSum
from aggregator.tally import Tally
from protocol.errors import QuorumError
from protocol.openings import Nodes, unspoiled
from protocol.plan import Plan
from protocol.roster import Roster


class NoSum(Exception):
    """What was opened in a round is no sum.

    Attributes:
        attempt: The attempt that it was opened in.
        dealer: Who has dealt shares that open nothing, if that is why.
    """

    def __init__(self, reason: str, attempt: Attempt, dealer: int | None = None) -> None:
        super().__init__(reason)
        self.attempt, self.dealer = attempt, dealer


class Reopening:
    """Goes back to rounds.

    Args:
        plan: The plan.
        roster: The names of the nodes.
        journal: Where the run is kept.
        absences: Who is left out for some rounds.
        observer: Who is told.
    """

    def __init__(self, plan: Plan, roster: Roster, journal: Journal, absences: Absences, observer: Observer) -> None:
        self._plan, self._roster, self._journal = plan, roster, journal
        self._absences, self._observer = absences, observer
        self._reopened: set[tuple[int, int | None]] = set()
        self._dealers: defaultdict[int, set[int]] = defaultdict(set)
        self._discarded: dict[int, Record] = {}

    def tally(self, number: int) -> Tally:
        """The counts of a round that begins, or goes on where it was left."""
        begun = self._journal.begun()
        if begun is None or begun.round != number:
            return Tally(number)
        tally = Tally(number, attempt=begun.attempt, invited=frozenset(begun.invited), announced=begun.announced)
        tally.spoiled = frozenset(map(frozenset, begun.spoiled))
        tally.excluded |= self._dealers[number]
        if before := self._discarded.pop(number, None):
            tally.uplink, tally.downlink = before.uplink_bytes, before.downlink_bytes
            tally.values, tally.value_bytes, tally.vote_bytes = before.values, before.value_bytes, before.vote_bytes
        return tally

    def require_sum(self, tally: Tally, answers: int, round_: int) -> None:
        """Go back to a round if clients refuse its sum: more of them than go on with it, and than may be lying.

        Raises:
            NoSum: They do.
        """
        if len(tally.refusing) > max(answers, self._plan.colluders):
            attempt = self._journal.opened(round_)
            raise NoSum(f"{len(tally.refusing)} clients refuse its sum, which is spoiled", attempt)

    def reopen(self, error: NoSum, record: Record | None) -> None:
        """Go back to a round whose sum is none, once for each reason.

        Args:
            error: Why.
            record: What is known of the round, if it was complete.

        Raises:
            QuorumError: It was gone back to before.
        """
        attempt = error.attempt
        if (attempt.round, error.dealer) in self._reopened:
            members = self._roster.names({node for one in attempt.sums for node in one})
            raise QuorumError(
                f"round {attempt.round}: {error}, and it was asked for twice. One of {members} spoils it; revoke that "
                "node and start a new run, or resume this one to ask once more."
            )
        self._reopened.add((attempt.round, error.dealer))
        if error.dealer is not None:
            self._dealers[attempt.round].add(error.dealer)
        if record is not None:
            self._discarded[attempt.round] = record
        spoiled = {*attempt.spoiled, *attempt.sums}
        self._journal.reopen(attempt.model_copy(update={"spoiled": tuple(sorted(spoiled)), "sums": ()}))
        self._observer.message(f"round {attempt.round}: {error}; asking again, in groups where it can be divided")

    def spoilers(self, round_: int, spoiled: int) -> Nodes:
        """Those whose groups' sums of a complete round were none, by what clients say; they are left out for a while.

        Args:
            round_: Which.
            spoiled: A bit for each sum.
        """
        attempt = self._journal.opened(round_)
        sums = [frozenset(one) for one in attempt.sums]
        good = Nodes().union(*unspoiled(sums, spoiled))
        bad = Nodes().union(*sums) - good
        self._tell(round_, self._absences.judged(round_, good, bad))
        return bad

    def missing(self, round_: int, total: MaskedSum) -> None:
        """Leave out for a while who is missing from one sum after the other."""
        self._tell(round_, self._absences.summed(round_, total.invited, total.nodes))

    def _tell(self, round_: int, news: Mapping[str, Absence]) -> None:
        for text in told(round_, news):
            self._observer.message(text)
