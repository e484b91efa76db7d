"""``edge_client.sparsify.local``: against a naive twin of the paper's method, and what the majority decides."""

from pathlib import Path

import numpy as np
import pytest

from edge_client.sparsify import GlobalState
from edge_client.sparsify.local import FedSparsifyLocal
from edge_client.state import load_pending
from protocol.layout import Layout, Mask, TensorSpec, Vector
from protocol.plan import Plan
from tests.edge_client.federation import tiny_plan
from tests.edge_client.sparsify import plaintext_twin
from tests.edge_client.sparsify.side_by_side import encrypted

LAYOUT = Layout((TensorSpec("a", (90,), True), TensorSpec("b", (7,), False), TensorSpec("c", (10,), True)))
EVERYTHING = np.ones(LAYOUT.size, np.bool_)
FALLING: Vector = np.linspace(2, 1, LAYOUT.size, dtype=np.float32)


def plan_of(**changes: object) -> Plan:
    return tiny_plan(**{"method": "fedsparsify-local", "sparsity": 0.8, "rounds": 8, "first_prune": 2, **changes})


def state_at(round_: int, mask: Mask = EVERYTHING) -> GlobalState:
    return GlobalState(round_, np.where(mask, FALLING, np.float32(0)), mask)


def submitted(method: FedSparsifyLocal, round_: int, mask: Mask = EVERYTHING) -> tuple[Vector, Mask]:
    """What a client gives that has trained to falling values."""
    state = state_at(round_ - 1, mask)
    return method.submit(state.vector, LAYOUT, state, lambda: pytest.fail("no gradient is needed"))


def test_three_encrypted_rounds_give_the_masks_and_weights_of_the_plaintext_method(tmp_path: Path) -> None:
    """A straight schedule to 0.75 of 64 parameters in four rounds: 16, then 32 positions go, whole numbers."""
    plan = tiny_plan(method="fedsparsify-local", sparsity=0.75, exponent=1.0, rounds=4, bits=20, seed=11)
    ours = encrypted(plan, tmp_path, 3)
    settings = plaintext_twin.Settings(0.75, 4, 1, 1, 1.0, plan.epochs, plan.batch_size, 0.1, plan.momentum)
    twin = plaintext_twin.train_local(ours.network.model, ours.learners, settings, ours.seed_of)[:3]
    counts = []
    for (weights, kept), state, tolerance in zip(twin, ours.states, ours.tolerances, strict=True):
        assert state.mask.tolist() == (ours.flat(kept) == 1).tolist()
        assert not state.vector[~state.mask].any()
        assert tolerance < 1e-4
        np.testing.assert_allclose(state.vector, ours.flat(weights), rtol=0, atol=tolerance)
        counts.append(int(state.mask.sum()))
    assert counts[0] == 64 > counts[1] > counts[2] > 16
    ballots = [load_pending(tmp_path / str(node) / "state").votes for node in ours.clients]
    assert {int(votes.sum()) for votes in ballots} == {32}
    assert len({votes.tobytes() for votes in ballots}) > 1


@pytest.mark.parametrize(("clients", "quorum", "strict"), [(10, 5, 6), (5, 2, 3), (4, 2, 3), (3, 1, 2)])
def test_a_tie_is_kept_unless_the_majority_must_be_strict(clients: int, quorum: int, strict: int) -> None:
    for wanted, value in ((False, quorum), (True, strict)):
        method = FedSparsifyLocal(plan_of(strict_majority=wanted))
        exact = np.where(np.arange(LAYOUT.size) % 2, value, value - 1)
        kept = method.survivors(FALLING, exact, clients, LAYOUT, state_at(4))
        assert kept.tolist() == (exact == value).tolist()


def test_a_client_votes_for_the_largest_of_its_own_weights_and_gives_zeros_elsewhere() -> None:
    method = FedSparsifyLocal(plan_of())
    values, votes = submitted(method, 8)
    assert np.flatnonzero(votes).tolist() == [*range(20), *range(90, 97)]
    assert values.tolist() == np.where(votes, FALLING, 0).tolist()


def test_a_client_never_votes_for_what_the_majority_has_purged() -> None:
    mask = ~LAYOUT.prunable
    mask[50:80] = True
    _, votes = submitted(FedSparsifyLocal(plan_of()), 8, mask)
    assert np.flatnonzero(votes & LAYOUT.prunable).tolist() == list(range(50, 70))


@pytest.mark.parametrize("round_", [1, 2])
def test_nobody_votes_and_nothing_goes_before_the_first_purge(round_: int) -> None:
    method = FedSparsifyLocal(plan_of())
    values, votes = submitted(method, round_)
    assert votes.size == 0
    assert values.tolist() == FALLING.tolist()
    none = np.zeros(LAYOUT.size, np.int64)
    assert method.survivors(FALLING, none, 4, LAYOUT, state_at(round_)).all()


def test_the_last_round_reaches_the_target_where_the_clients_disagree() -> None:
    """All positions have the votes, so the mean is purged to the 20 of 100 that S leaves room for."""
    votes = np.full(LAYOUT.size, 4)
    kept = FedSparsifyLocal(plan_of()).survivors(FALLING, votes, 4, LAYOUT, state_at(8))
    assert np.flatnonzero(kept).tolist() == [*range(20), *range(90, 97)]


def test_a_majority_that_is_sparser_than_the_schedule_stays_as_it_is() -> None:
    votes = np.where(np.arange(LAYOUT.size) < 5, 4, 0)
    votes[90:97] = 4
    kept = FedSparsifyLocal(plan_of()).survivors(FALLING, votes, 4, LAYOUT, state_at(8))
    assert np.flatnonzero(kept).tolist() == [*range(5), *range(90, 97)]


def test_votes_cost_at_most_a_quarter_of_the_values_at_ten_clients() -> None:
    p = Plan(bits=16, max_cohort=10).parameters
    for values in (861, 17_226, 118_282):
        assert p.votes.slots(values) <= 0.25 * p.values.slots(values + p.trailing)
