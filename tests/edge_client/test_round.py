"""``edge_client.round``: what a client says, sends and derives; that it adds up is in ``tests/test_round.py``."""

from dataclasses import replace

import numpy as np
import pytest

from edge_client.learning.network import first_state
from edge_client.round import Update, attend, dither_of, model_digest, quantised, state_digest, terms_of
from edge_client.sparsify import GlobalState
from edge_client.sparsify.fedavg import FedAvg
from edge_client.sparsify.interface import Sparsifier
from edge_client.state import Measured
from edge_client.sums import UNTOLD, Sum, next_state, open_sum
from protocol.attendance import decode_attendance
from protocol.call import Call
from protocol.errors import TrainingError
from protocol.grid import Integers, clips
from protocol.layout import Layout, Mask, TensorSpec, Vector
from protocol.support import Support
from protocol.terms import Terms, support_digest
from protocol.wire import decode_contribution, encode_aggregate
from tests.edge_client.federation import FIRST, NODES, RUN, federation, random_vector
from tests.edge_client.scene import LAYOUT, PLAN, SIZE, STATE, Scene

# --- attending ----------------------------------------------------------------------------------


def test_an_attendance_says_what_the_client_holds_and_the_pending_update_keeps_the_rest(four: Scene) -> None:
    for node, pending in four.waiting.items():
        said = decode_attendance(pending.attendance, four.fed.roster)
        assert (said.run, said.round, said.attempt, said.node) == (RUN, 1, 1, node)
        assert (said.samples, said.values, said.votes) == (10 + node, SIZE, 0)
        assert said.plan == PLAN.digest
        assert said.key == four.fed.roster.key_id(RUN, 1)
        assert said.model == model_digest(STATE, FIRST, four.kits[node])
        assert said.support == support_digest(pending.sealed)
        assert (pending.measured, pending.state) == (Measured(), state_digest(STATE))
    assert len({pending.sealed for pending in four.waiting.values()}) == 1
    for field in ("exchange", "seed", "dealt"):
        assert (
            len({getattr(decode_attendance(p.attendance, four.fed.roster), field) for p in four.waiting.values()}) == 4
        )


def test_only_the_values_and_votes_on_the_support_travel() -> None:
    kit = federation(PLAN).kits[NODES[0]]
    mask = np.arange(SIZE) % 3 == 1
    state = GlobalState(1, np.where(mask, STATE.vector, 0).astype(np.float32), mask)
    trained, votes = random_vector(1, SIZE), np.arange(SIZE) % 2 == 0
    pending = attend(Call(RUN, 2, 1), kit, PLAN, LAYOUT, state, Update(trained, votes, 3), frozenset(NODES[:4]))
    assert pending.values.tolist() == trained[1::3].tolist()
    assert pending.votes.tolist() == votes[1::3].tolist()
    said = decode_attendance(pending.attendance, kit.roster)
    assert (said.values, said.votes) == (17, 17)
    clip = clips(state.vector, LAYOUT)[0]
    assert pending.step.tolist() == [float(clip) / PLAN.parameters.grid.levels] * 17


def test_the_model_digest_names_the_weights_and_the_mask_of_one_round() -> None:
    kit = federation(PLAN).kits[NODES[0]]
    vector, mask = STATE.vector.copy(), STATE.mask.copy()
    vector[7] = np.nextafter(vector[7], np.float32(9))
    mask[SIZE - 1] = False
    digests = [
        model_digest(STATE, FIRST, kit),
        model_digest(replace(STATE, vector=vector), FIRST, kit),
        model_digest(replace(STATE, mask=mask), FIRST, kit),
        model_digest(STATE, Call(RUN, 2, 1), kit),
        model_digest(STATE, Call(bytes(16), 1, 1), kit),
    ]
    assert len(set(digests)) == 5
    assert digests[0] == model_digest(replace(STATE, round=9), Call(RUN, 1, 5), kit)


def test_the_dither_repeats_in_every_attempt_and_is_never_shared() -> None:
    plans = [PLAN, replace(PLAN, seed=1)]
    drawn = {
        tuple(dither_of(plan, Call(run, round_, attempt), node, 8).tolist())
        for plan in plans
        for run in (RUN, bytes(16))
        for round_ in (1, 2)
        for attempt in (1, 2)
        for node in (2, 3)
    }
    assert len(drawn) == 16
    again = dither_of(PLAN, FIRST, 2, 8)
    assert tuple(again.tolist()) in drawn
    assert (again >= 0).all()
    assert (again < 1).all()


# --- contributing -------------------------------------------------------------------------------


def test_a_contribution_is_for_its_cohort_and_says_whose_shares_its_sender_holds(four: Scene) -> None:
    for member in four.cohort.members:
        data = four.contribution(member.node)
        contribution = decode_contribution(data, member, 4, PLAN.parameters, four.fed.roster)
        assert contribution.cohort == four.cohort.digest(1)
        assert contribution.held == (True,) * 4
        assert len(contribution.first) == PLAN.parameters.slots(SIZE, 0)


def test_each_client_is_weighed_by_its_own_samples(four: Scene) -> None:
    total = sum(10 + node for node in NODES[:4])
    for node, pending in four.waiting.items():
        ones = replace(pending, values=np.full(SIZE, pending.step[0] * 30_000, np.float32))
        integers, clipped = quantised(ones, four.cohort, node, PLAN, np.full(SIZE, 0.5))
        assert clipped == 0
        assert set(integers.tolist()) == {int(np.floor(30_000 * (10 + node) / total + 0.5))}


def test_clipped_values_are_counted(four: Scene) -> None:
    pending = four.waiting[NODES[0]]
    values = np.where(np.arange(SIZE) < 7, np.float32(1e9), np.float32(0))
    integers, clipped = quantised(replace(pending, values=values), four.cohort, NODES[0], PLAN, np.zeros(SIZE))
    assert clipped == 7
    assert np.count_nonzero(integers) == 7


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_model_that_is_not_finite_is_never_sent(bad: float, four: Scene) -> None:
    pending = four.waiting[NODES[0]]
    values = pending.values.copy()
    values[3] = bad
    with pytest.raises(TrainingError, match="not finite"):
        quantised(replace(pending, values=values), four.cohort, NODES[0], PLAN, np.zeros(SIZE))


# --- from a sum to a state ----------------------------------------------------------------------


class EveryOther(Sparsifier):
    """Keeps what is named, and remembers what it was asked."""

    name = "every-other"

    def survivors(self, mean: Vector, votes: Integers, clients: int, layout: Layout, state: GlobalState) -> Mask:
        self.asked = (mean, votes, clients, state)
        kept: Mask = np.arange(layout.size) % 2 == 0
        return kept


def test_the_next_state_is_the_mean_of_those_who_are_left_on_what_survives_and_zero_elsewhere() -> None:
    mask = np.arange(SIZE) < 20
    support = Support.of(mask)
    terms = Terms(support, np.array([2.0], np.float32))
    values, votes = np.arange(20, dtype=np.int64) - 10, np.arange(20, dtype=np.int64) % 4
    method = EveryOther(PLAN)
    state = next_state(Sum(terms, 4, 1.5, values, votes, UNTOLD), 3, PLAN, LAYOUT, method)
    mean = np.zeros(SIZE, np.float32)
    mean[:20] = (values * (2.0 / PLAN.parameters.grid.levels * 1.5)).astype(np.float32)
    seen_mean, seen_votes, clients, merged = method.asked
    assert seen_mean.tolist() == merged.vector.tolist() == mean.tolist()
    assert seen_votes.tolist() == votes.tolist() + [0] * (SIZE - 20)
    assert (clients, merged.round, state.round) == (4, 3, 3)
    assert merged.mask.tolist() == mask.tolist()
    assert state.mask.tolist() == (np.arange(SIZE) % 2 == 0).tolist()
    assert state.vector.tolist() == np.where(np.arange(SIZE) % 2 == 0, mean, 0).tolist()


def test_without_votes_a_method_sees_none(four: Scene) -> None:
    method = EveryOther(PLAN)
    next_state(four.open(four.aggregate()), 1, PLAN, LAYOUT, method)
    assert method.asked[1].tolist() == [0] * SIZE


def test_the_first_state_is_the_initial_model_and_everything_travels() -> None:
    state = first_state(STATE.vector, LAYOUT)
    assert (state.round, state.mask.tolist()) == (0, [True] * SIZE)
    assert state.vector.tolist() == STATE.vector.tolist()
    assert terms_of(state, LAYOUT).support.mask.all()


def test_all_clients_derive_one_state_from_one_sum(four: Scene) -> None:
    data = encode_aggregate(four.aggregate(), PLAN.parameters)
    call = Call(RUN, 2, 1)
    digests = set()
    for kit in four.kits.values():
        state = next_state(open_sum(data, RUN, 1, kit, PLAN, LAYOUT), 1, PLAN, LAYOUT, FedAvg(PLAN))
        digests.add(model_digest(state, call, kit))
    assert len(digests) == 1


def test_two_tensors_have_a_clip_each_and_so_a_step_each() -> None:
    layout = Layout((TensorSpec("a", (3,), True), TensorSpec("b", (2,), False)))
    state = first_state(np.array([0.1, -4, 0, 10, 1], np.float32), layout)
    kit = federation(PLAN).kits[NODES[0]]
    pending = attend(
        FIRST, kit, PLAN, layout, state, Update(state.vector, np.zeros(0, np.bool_), 1), frozenset(NODES[:4])
    )
    levels = PLAN.parameters.grid.levels
    assert pending.step.tolist() == [8 / levels] * 3 + [20 / levels] * 2
