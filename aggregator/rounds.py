"""The rounds of a run: train, announce the cohort, add, release, write down; and what happens when somebody is lost.

A round takes three messages. `train` invites, carries the last aggregate and is answered with attendances;
`contribute` carries the announced cohort, those who attended in time, and is answered with masked contributions;
`release` names those whose contributions are in the sum, and is answered with shares of what is left of their masks.
Whoever is lost after any of them is not needed any more, as long as a quorum of the invited is left
(`protocol/openings.py`). Where too few attend or contribute, the round starts over with a new attempt, and clients
answer with what they have trained already. A sum whose release was asked for waits on disk: from then on no other may
be opened.

Whoever is in a sum can spoil it, and clients say so when they open it. Then the round is gone back to, once, and its
cohort divided into groups (`aggregator/dividing.py`), of which all but the spoiler's have a sum; the members of its
group are named and left out of the next rounds.

After the last round of the plan comes one of no values, whose sum says how the final model does; then
clients `report` what it says. Nothing is lost silently: after ``plan.attempts`` tries the run stops with an error that
says what to do, and resumes where it was.
"""

import time
from collections.abc import Mapping, Sequence

from flwr.serverapp import Grid

from aggregator.absences import Absences
from aggregator.admission import AttendanceAdmission, require_some
from aggregator.agreement import FIELDS, agreeing, derived
from aggregator.asking import Answer, Asker, Refusals
from aggregator.contributing import Contributing
from aggregator.journal import Attempt, Journal
from aggregator.observer import Observer
from aggregator.records import PhaseSeconds, Record
from aggregator.releasing import Releasing
from aggregator.reopening import NoSum, Reopening
from aggregator.selection import Selection
from aggregator.summation import MaskedSum
from aggregator.tally import Tally
from protocol.attendance import decode_attendance
from protocol.call import Action, Call
from protocol.errors import QuorumError, ShareError
from protocol.figures import Figures, figures_from_bytes
from protocol.openings import Nodes, encode_nodes, spoiled_from_bytes, unspoiled
from protocol.plan import Plan
from protocol.roster import Roster
from protocol.wire import aggregates

_WAIT_SECONDS = 0.5


class Run:
    """One run on a grid.

    Args:
        grid: Flower's grid of nodes.
        plan: The plan.
        roster: The public keys of the nodes.
        journal: Where the run is kept.
        observer: Who is told.
    """

    def __init__(self, grid: Grid, plan: Plan, roster: Roster, journal: Journal, observer: Observer) -> None:
        self._grid, self._plan, self._roster = grid, plan, roster
        self._journal, self._observer = journal, observer
        self._asker = Asker(grid, journal.run, plan.deadline, observer)
        absences = Absences(journal.folder, roster)
        self._selection = Selection(grid, self._asker, plan, roster, absences, observer)
        self._reopening = Reopening(plan, roster, journal, absences, observer)
        self._contributing = Contributing(self._asker, self._selection, plan, roster, observer, self._begin)
        self._releasing = Releasing(self._asker, self._selection, plan, roster, observer)
        self._aggregate = b""
        self._unpublished: dict[int, Record] = {}

    def run(self) -> None:
        """Run, or resume, to the last round of the plan.

        Raises:
            QuorumError: Too few clients answer.
            AgreementError: No majority of the clients derives the same model.
        """
        stored = self._journal.last()
        self._aggregate = stored.aggregate
        self._unpublished = {record.round: record for record in self._journal.unpublished()}
        if stored.round:
            self._observer.message(f"resuming after round {stored.round} of {self._plan.rounds}")
        number = stored.round + 1
        while number <= self._plan.rounds + 1:
            tally = self._reopening.tally(number)
            try:
                if number <= self._plan.rounds:
                    self._round(tally)
                else:
                    self._report(self._journal.scores() or self._score(tally))
                number += 1
            except NoSum as error:
                number = error.attempt.round
                self._reopening.reopen(error, self._unpublished.pop(number, None))
                self._aggregate = self._journal.last().aggregate

    # --- one round -----------------------------------------------------------------------------

    def _round(self, tally: Tally) -> None:
        start = time.monotonic()
        total, aggregate = self._sum(tally)
        spent = {phase: tally.seconds[phase] for phase in ("train", "contribute", "release", "add")}
        seconds = PhaseSeconds(**spent, other=max(0.0, time.monotonic() - start - sum(spent.values())))
        opened = self._observer.summed(tally.round, total, aggregate)
        record = Record(
            round=tally.round,
            cohort=len(total.nodes),
            dropped=max(tally.asked, len(total.cohort.members)) - len(total.nodes),
            attempts=total.attempt,
            refused=sum(tally.refused.values()),
            refusals=dict(tally.refused),
            values=tally.values,
            value_bytes=tally.value_bytes,
            vote_bytes=tally.vote_bytes,
            uplink_bytes=tally.uplink,
            downlink_bytes=tally.downlink,
            seconds=seconds,
            **dict(opened),
        )
        self._reopening.missing(tally.round, total)
        self._journal.save(aggregate, record, self._opened(tally, total))
        self._aggregate, self._unpublished[tally.round] = aggregate, record

    def _sum(self, tally: Tally) -> tuple[MaskedSum, bytes]:
        """The three messages: a sum, and the aggregate that is made of it."""
        waiting = self._journal.waiting(tally.round)
        total = MaskedSum.from_bytes(waiting, self._roster) if waiting else None
        while total is None:
            trained, invited = self._train(tally)
            total = self._contributing.contribute(tally, trained, invited)
        self._journal.wait(tally.round, total.to_bytes())
        try:
            return total, self._releasing.release(tally, total)
        except ShareError as error:
            raise NoSum(f"its sum can never be opened: {error}", self._opened(tally, total), error.node) from error

    def _opened(self, tally: Tally, total: MaskedSum) -> Attempt:
        """The attempt whose sums were opened."""
        sums = tuple(tuple(sorted(one)) for one in total.sets)
        return self._attempt(tally).model_copy(update={"invited": tuple(sorted(total.invited)), "sums": sums})

    def _train(self, tally: Tally) -> tuple[dict[int, Answer], Nodes]:
        """Ask for attendances until enough are in: each by the number of its node, and who was invited."""
        while True:
            invited, nodes = self._selection.select(tally)
            tally.invited, sitting_out = invited, len(tally.sitting_out)
            self._next_attempt(tally)
            tally.asked = len(nodes)
            present = self._attending(tally, nodes)
            enough = len(present) >= self._selection.quorum(len(invited))
            if len(present) < len(nodes):
                lost = f"{len(nodes) - len(present)} of {len(nodes)} clients did not train{tally.reasons(tally.recent)}"
                self._tell(tally, lost if enough else f"{lost}; asking again")
            if enough and (not self._aggregate or self._heard(tally, present, invited)):
                return present, invited
            if len(tally.sitting_out) > sitting_out:
                tally.tries -= 1  # others are asked instead, and each node sits out a round once
            time.sleep(_WAIT_SECONDS)

    def _heard(self, tally: Tally, present: dict[int, Answer], invited: Nodes) -> bool:
        """Take in what those who attend say of the sum before; whether enough of them are left."""
        told = decode_attendance(next(iter(present.values())).frames["attendance"], self._roster)
        self._told(told.figures, told.spoiled, self._aggregate)
        for node in self._reopening.spoilers(tally.round - 1, told.spoiled) & present.keys():
            del present[node]
        return len(present) >= self._selection.quorum(len(invited))

    def _attending(self, tally: Tally, nodes: Mapping[int, int]) -> dict[int, Answer]:
        """Ask these nodes to train; the answers of those that agree, by their numbers."""
        sums = len([*aggregates(self._aggregate)])
        admission = AttendanceAdmission(self._call(tally), tally.invited, sums, self._plan, self._roster)
        frames = {"invited": encode_nodes(tally.invited), "aggregate": self._aggregate}
        numbers = {source: number for number, source in nodes.items()}
        present: dict[int, Answer] = {}
        said: dict[int, Sequence[object]] = {}
        start = time.monotonic()
        for answer in self._asker.ask(tally, Action.TRAIN, dict.fromkeys(numbers, frames)):
            with Refusals(tally, self._observer, answer.source):
                node = numbers[answer.source]
                attendance = admission.admit(node, answer.frames["attendance"], answer.frames["shares"])
                present[node], said[node] = answer, derived(attendance)
                self._observer.phase(tally.round, "train", len(present), len(nodes))
        self._reopening.require_sum(tally, len(present), tally.round - 1)
        present = self._agreeing(tally, present, said, FIELDS)
        tally.seconds["train"] += time.monotonic() - start
        return present

    # --- after the last round ------------------------------------------------------------------

    def _score(self, tally: Tally) -> bytes:
        """One more round, of no values: the sum of what the clients measure of the final model."""
        total, scores = self._sum(tally)
        self._observer.summed(tally.round, total, scores)
        self._journal.close(scores, self._opened(tally, total))
        self._sent(tally)
        return scores

    def _report(self, scores: bytes) -> None:
        """Let every node that is online open the last two sums, and say what the second one says of the first."""
        tally = Tally(self._plan.rounds + 1, attempt=1)
        nodes = sorted(self._grid.get_node_ids())
        answers: dict[int, Answer] = {}
        said: dict[int, tuple[bytes, Figures, int]] = {}
        frames, sums = {"aggregate": self._aggregate, "scores": scores}, len([*aggregates(scores)])
        for answer in self._asker.ask(tally, Action.REPORT, dict.fromkeys(nodes, frames)):
            with Refusals(tally, self._observer, answer.source):
                figures = figures_from_bytes(answer.frames["figures"])
                spoiled = spoiled_from_bytes(answer.frames["spoiled"])
                require_some(spoiled, sums)
                said[answer.source] = answer.frames["model"], figures, spoiled
                answers[answer.source] = answer
                self._observer.phase(self._plan.rounds, "report", len(answers), len(nodes))
        self._reopening.require_sum(tally, len(answers), tally.round)
        answers = self._agreeing(tally, answers, said, ("model", "figures", "spoiled"))
        if not answers:
            raise QuorumError(
                f"no client could open the final model{tally.reasons(tally.errors)}; resume the run to ask again"
            )
        self._sent(tally)
        _, figures, spoiled = said[next(iter(answers))]
        self._told(figures, spoiled, scores)
        self._reopening.spoilers(tally.round, spoiled)

    def _agreeing(
        self, tally: Tally, answers: Mapping[int, Answer], said: Mapping[int, Sequence[object]], fields: Sequence[str]
    ) -> dict[int, Answer]:
        """The answers of the majority; the others are refused.

        Raises:
            AgreementError: There is no majority.
        """
        kept = {}
        for node, error in agreeing(said, fields) if said else ():
            with Refusals(tally, self._observer, answers[node].source):
                if error is not None:
                    raise error
                kept[node] = answers[node]
        return kept

    def _told(self, figures: Figures, spoiled: int, aggregate: bytes) -> None:
        """Write down what a sum says: of the training in its own round, and of the model of the round before.

        Args:
            figures: What all say that it says.
            spoiled: Which of its groups' sums all say are none.
            aggregate: The sums.
        """
        heads = [head for _, head in unspoiled(aggregates(aggregate), spoiled)]
        number, clients, weight = heads[0]["round"], sum(h["clients"] for h in heads), sum(h["weight"] for h in heads)
        if trained := self._unpublished.get(number):
            self._amend(trained.trained(figures, weight))
        if scored := self._unpublished.pop(number - 1, None):
            scored = scored.scored(figures, clients)
            self._journal.publish(scored)
            self._observer.round_done(scored)

    def _sent(self, tally: Tally) -> None:
        """Count what was sent after the last round as the last round's."""
        if last := self._unpublished.get(self._plan.rounds):
            self._amend(last.sent(tally.uplink, tally.downlink))

    def _amend(self, record: Record) -> None:
        self._unpublished[record.round] = record
        self._journal.amend(record)

    # --- attempts and nodes ------------------------------------------------------------------------------

    def _tell(self, tally: Tally, text: str) -> None:
        self._observer.message(f"round {tally.round}: {text}")

    def _call(self, tally: Tally) -> Call:
        return Call(self._journal.run, tally.round, tally.attempt)

    def _next_attempt(self, tally: Tally) -> None:
        if tally.tries == self._plan.attempts:
            reasons = tally.reasons(tally.errors) or " (no answer in time)"
            raise QuorumError(
                f"round {tally.round} failed {tally.tries} times: too few clients for a sum of at least "
                f"{self._selection.quorum(len(tally.invited))}{reasons}. Look at the clients' logs, then resume the "
                "run; it goes on from the last complete round."
            )
        tally.attempt += 1
        tally.tries += 1
        self._begin(tally)

    def _begin(self, tally: Tally) -> None:
        """Note what is about to be sent, before it is."""
        self._journal.begin(self._attempt(tally))

    def _attempt(self, tally: Tally) -> Attempt:
        return Attempt(
            round=tally.round,
            attempt=tally.attempt,
            invited=tuple(sorted(tally.invited)),
            announced=tally.announced,
            spoiled=tuple(sorted(tuple(sorted(one)) for one in tally.spoiled)),
        )
