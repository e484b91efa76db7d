"""The rounds of a run: train, announce the cohort, add, write down; and what happens when somebody is lost.

A round takes two messages. `train` carries the last aggregate and is answered with attendances; `contribute` carries
the announced cohort, those who answered in time, and is answered with contributions for exactly that cohort. If a
member is lost in between, a safe part of the survivors is asked again (`protocol/cohort.py` says which cohorts may
follow one another); where too few are left for that, the round starts over. Nothing is lost silently: after
``plan.attempts`` attempts at a round the run stops with an error that says what to do, and resumes from the last
complete round.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from math import ceil
from statistics import median_low

import numpy as np
from flwr.serverapp import Grid

from aggregator.admission import AttendanceAdmission, ContributionAdmission
from aggregator.agreement import FIELDS, agreeing, derived
from aggregator.asking import Answer, Asker, Refusals
from aggregator.journal import Attempt, Journal
from aggregator.observer import Observer
from aggregator.records import PhaseSeconds, Record, Scores
from aggregator.summation import CohortSum
from aggregator.tally import Tally
from protocol.call import Action
from protocol.cohort import Cohort, gather_cohort, successor_sizes
from protocol.errors import QuorumError
from protocol.plan import Plan
from protocol.roster import Roster
from protocol.wire import contribution_length, encode_aggregate

_WAIT_SECONDS = 0.5
_SAMPLING, _SURVIVORS = 0x53414D50, 0x53555256


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
        self._aggregate = b""
        self._unpublished: Record | None = None

    def run(self) -> None:
        """Run, or resume, to the last round of the plan.

        Raises:
            QuorumError: Too few clients answer.
            AgreementError: No majority of the clients derives the same model.
        """
        stored = self._journal.last()
        self._aggregate, self._unpublished = stored.aggregate, stored.record
        if stored.round:
            self._observer.message(f"resuming after round {stored.round} of {self._plan.rounds}")
        for number in range(stored.round + 1, self._plan.rounds + 1):
            self._round(self._tally(number))
        self._evaluate(Tally(self._plan.rounds + 1, attempt=1))

    def _tally(self, number: int) -> Tally:
        """The counts of a round that begins, or goes on where a killed process has left it."""
        begun = self._journal.begun()
        if begun is None or begun.round != number:
            return Tally(number)
        # Clients answer a repeated `train` as before, unless they have heard of a later attempt since.
        attempt = begun.attempt - (begun.trained == begun.attempt)
        return Tally(
            number,
            attempt=attempt,
            announced=begun.announced,
            cohorts=[frozenset(cohort) for cohort in begun.cohorts],
            sources=dict(begun.sources),
        )

    # --- one round -----------------------------------------------------------------------------

    def _round(self, tally: Tally) -> None:
        start = time.monotonic()
        cohort = None
        while cohort is None:
            trained = self._train(tally)
            cohort = self._contribute(tally, trained)
        weights = cohort.weights(self._plan.max_share)
        loss = sum(trained[node].metrics.get("loss", 0.0) * weight for node, weight in weights.items())
        spent = {phase: tally.seconds[phase] for phase in ("train", "contribute", "add")}
        seconds = PhaseSeconds(**spent, other=max(0.0, time.monotonic() - start - sum(spent.values())))
        opened = self._observer.summed(tally.round, tally.attempt, cohort, self._aggregate)
        record = Record(
            round=tally.round,
            cohort=len(cohort.members),
            dropped=tally.asked - tally.left_out - len(cohort.members),
            left_out=tally.left_out,
            attempts=tally.attempt,
            refused=sum(tally.refused.values()),
            refusals=dict(tally.refused),
            loss=loss / sum(weights.values()),
            clipped=tally.clipped,
            values=tally.values,
            value_bytes=tally.value_bytes,
            vote_bytes=tally.vote_bytes,
            uplink_bytes=tally.uplink,
            downlink_bytes=tally.downlink,
            seconds=seconds,
            **dict(opened),
        )
        self._journal.save(self._aggregate, record)
        self._unpublished = record

    def _train(self, tally: Tally) -> dict[int, Answer]:
        """Ask for attendances until enough are in; each by the number of its node."""
        while True:
            self._next_attempt(tally, Action.TRAIN)
            nodes, sitting_out = self._select(tally), len(tally.sitting_out)
            tally.asked, tally.left_out = len(nodes), 0
            admission = AttendanceAdmission(self._journal.run, tally.round, tally.attempt, self._plan, self._roster)
            present: dict[int, Answer] = {}
            said: dict[int, Sequence[object]] = {}
            start = time.monotonic()
            for answer in self._asker.ask(tally, Action.TRAIN, nodes, self._aggregate):
                with Refusals(tally, self._observer, answer.source):
                    attendance = admission.admit(answer.frame)
                    present[attendance.node], said[attendance.node] = answer, derived(attendance)
                    tally.sources[attendance.node] = answer.source
                    self._observer.phase(tally.round, "train", len(present), len(nodes))
            present = self._agreeing(tally, present, said, FIELDS)
            tally.seconds["train"] += time.monotonic() - start
            enough = len(present) >= self._plan.min_cohort
            if len(present) < len(nodes):
                lost = f"{len(nodes) - len(present)} of {len(nodes)} clients did not train{tally.reasons(tally.recent)}"
                self._tell(tally, lost if enough else f"{lost}; asking again")
            if enough:
                self._publish(list(present.values()))
                return present
            if len(tally.sitting_out) > sitting_out:
                tally.tries -= 1  # others are asked instead, and each node sits out a round once
            time.sleep(_WAIT_SECONDS)

    def _contribute(self, tally: Tally, trained: Mapping[int, Answer]) -> Cohort | None:
        """Add up the contributions of the largest safe cohort; None where no safe one is left."""
        able, lost = list(trained), ""
        while alive := self._members(tally, able):
            if lost:
                self._tell(tally, f"{lost}; asking {len(alive)} of {len(able)} survivors again")
            if tally.announced == tally.attempt and tally.cohorts[-1] != frozenset(alive):
                self._next_attempt(tally, Action.CONTRIBUTE)
            tally.left_out += len(able) - len(alive)
            tally.cohorts.append(frozenset(alive))
            tally.announced = tally.attempt
            self._begin(tally)
            cohort = gather_cohort([trained[node].frame for node in alive], self._roster)
            able = self._sum(tally, cohort, {trained[node].source: node for node in alive})
            if len(able) == len(alive):
                return cohort
            lost = f"{len(alive) - len(able)} of {len(alive)} clients were lost{tally.reasons(tally.recent)}"
        missing = lost or "members of the round's last cohort are missing"
        self._tell(tally, f"{missing}, too many for a safe sum of the others; the round starts over")
        return None

    def _wanted(self, tally: Tally, online: Collection[int]) -> str:
        """Why an attempt with these nodes would be in vain; empty where it would not."""
        least = self._plan.min_cohort
        if len(online) < least:
            return f"{len(online)} nodes are online; the plan needs {least}"
        if not tally.cohorts:
            return ""
        first, last = tally.cohorts[0], tally.cohorts[-1]
        if not any(source in online for source in tally.sources.values()):
            return ""  # Flower has numbered its nodes anew
        back = sum(tally.sources[node] in online for node in last)
        sizes = successor_sizes(len(first), len(last), least, self._plan.colluders)
        least = sizes.start if sizes else len(last)
        return "" if back >= least else f"{back} nodes of the round's last cohort are online; a safe sum needs {least}"

    def _members(self, tally: Tally, able: Sequence[int]) -> list[int]:
        """The members of the next cohort: as many of those who can answer as may follow the round's earlier cohorts."""
        if not tally.cohorts:
            return sorted(able)
        first, last = tally.cohorts[0], tally.cohorts[-1]
        left = sorted(last.intersection(able))
        if len(left) == len(last):
            return left
        sizes = [
            size
            for size in successor_sizes(len(first), len(last), self._plan.min_cohort, self._plan.colluders)
            if size <= len(left)
        ]
        if not sizes:
            return []
        order = np.random.default_rng([self._plan.seed, tally.round, tally.attempt, _SURVIVORS])
        return sorted(order.choice(left, max(sizes), replace=False).tolist())

    def _sum(self, tally: Tally, cohort: Cohort, members: Mapping[int, int]) -> list[int]:
        """Ask a cohort and add what arrives; the nodes whose contributions are in the sum."""
        admission = ContributionAdmission(cohort, tally.attempt, self._plan, self._roster)
        total = CohortSum(cohort, tally.attempt, self._plan)
        answered: list[int] = []
        clipped = 0
        start, added = time.monotonic(), tally.seconds["add"]
        try:
            for answer in self._asker.ask(tally, Action.CONTRIBUTE, list(members), cohort.encode()):
                with Refusals(tally, self._observer, answer.source):
                    node = members[answer.source]
                    contribution = admission.admit(node, answer.frame)
                    adding = time.monotonic()
                    total.add(contribution)
                    tally.seconds["add"] += time.monotonic() - adding
                    tally.values += contribution.values
                    bare = contribution_length(contribution.values, 0, len(contribution.sealed), self._plan.parameters)
                    tally.value_bytes += bare
                    tally.vote_bytes += len(answer.frame) - bare
                    clipped += int(answer.metrics.get("clipped", 0))
                    answered.append(node)
                    self._observer.phase(tally.round, "contribute", len(answered), len(members))
            if total.complete:
                self._aggregate = encode_aggregate(total.aggregate(), self._plan.parameters)
        finally:
            total.close()
        tally.clipped = clipped
        tally.seconds["contribute"] += time.monotonic() - start - (tally.seconds["add"] - added)
        return answered

    # --- after the last round ------------------------------------------------------------------

    def _evaluate(self, tally: Tally) -> None:
        """Let every node that is online score the final model."""
        nodes = sorted(self._grid.get_node_ids())
        answers: dict[int, Answer] = {}
        for answer in self._asker.ask(tally, Action.EVALUATE, nodes, self._aggregate):
            answers[answer.source] = answer
            self._observer.phase(self._plan.rounds, "evaluate", len(answers), len(nodes))
        answers = self._agreeing(tally, answers, {node: (a.frame,) for node, a in answers.items()}, ("model",))
        if not answers:
            raise QuorumError(
                f"no client scored the final model{tally.reasons(tally.errors)}; resume the run to ask again"
            )
        self._publish(list(answers.values()), tally.uplink, tally.downlink)

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

    def _publish(self, answers: Sequence[Answer], uplink: int = 0, downlink: int = 0) -> None:
        """Complete the last round's record with what the clients say of its model and further bytes, and write it."""
        record, self._unpublished = self._unpublished, None
        if record is None:
            return
        totals = {key: sum(a.metrics.get(key, 0) for a in answers) for key in ("correct", "tested", "test-loss")}
        # The middle one: a lying client cannot move it far, and clients may differ where each has a model of its own.
        sizes = [(a.metrics.get("parameters", 1), a.metrics.get("kept", 1)) for a in answers]
        parameters, kept = median_low(sizes)
        tested = totals["tested"]
        scores = Scores(
            accuracy=totals["correct"] / tested if tested else None,
            test_loss=totals["test-loss"] / tested if tested else None,
            kept=int(kept),
            sparsity=1 - kept / max(parameters, 1),
        )
        record = record.scored(scores, uplink, downlink)
        self._journal.publish(record)
        self._observer.round_done(record)

    # --- attempts and nodes ------------------------------------------------------------------------------

    def _tell(self, tally: Tally, text: str) -> None:
        self._observer.message(f"round {tally.round}: {text}")

    def _next_attempt(self, tally: Tally, action: Action) -> None:
        if tally.tries == self._plan.attempts:
            reasons = tally.reasons(tally.errors) or " (no answer in time)"
            back = " Those who were lost must come back: the others refuse a sum that would expose them."
            advice = (
                f"{back if tally.cohorts else ''} Look at the clients' logs, then resume the run; it goes on from the"
            )
            raise QuorumError(
                f"round {tally.round} failed {tally.tries} times: too few clients for a safe sum of at least "
                f"{self._plan.min_cohort}{reasons}.{advice} last complete round."
            )
        tally.attempt += 1
        tally.tries += 1
        if action is Action.TRAIN:
            tally.trained = tally.attempt
            self._begin(tally)

    def _begin(self, tally: Tally) -> None:
        """Note what is about to be sent, before it is."""
        self._journal.begin(
            Attempt(
                round=tally.round,
                attempt=tally.attempt,
                trained=tally.trained,
                announced=tally.announced,
                cohorts=tuple(tuple(sorted(cohort)) for cohort in tally.cohorts),
                sources=tuple(sorted(tally.sources.items())),
            )
        )

    def _select(self, tally: Tally) -> list[int]:
        """A random part of the nodes that are online; waits for the smallest cohort that can come to a safe sum."""
        end = time.monotonic() + self._plan.deadline
        while wanted := self._wanted(tally, names := {node.node_id: node.name for node in self._grid.get_nodes()}):
            if time.monotonic() > end:
                raise QuorumError(f"{wanted}. Start more clients, then resume the run.")
            time.sleep(_WAIT_SECONDS)
        self._observer.online(tally.round, names)
        online = sorted(names)
        count = min(self._plan.max_cohort, max(self._plan.min_cohort, ceil(self._plan.fraction * len(online))))
        # The same nodes in every attempt of a round, for clients follow only into a part of the cohort that they know;
        # but in place of those who sit the round out, others.
        order = np.random.default_rng([self._plan.seed, tally.round, _SAMPLING])
        drawn = [online[i] for i in order.permutation(len(online))]
        drawn.sort(key=tally.sitting_out.__contains__)
        members = {tally.sources[node] for node in tally.cohorts[-1]} if tally.cohorts else set()
        return sorted({*drawn[:count], *members.intersection(online)})
