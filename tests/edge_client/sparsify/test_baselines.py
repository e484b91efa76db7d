"""``edge_client.sparsify.baselines``: plain Top-K and SNIP, each against the few lines it comes to in the clear."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from edge_client.learning.network import build_network
from edge_client.sparsify import GlobalState
from edge_client.sparsify.allocation import weights
from edge_client.sparsify.topk import top_k
from edge_client.state import load_pending
from protocol.errors import ConfigError
from protocol.layout import unflatten
from protocol.plan import Plan
from tests.edge_client import tiny
from tests.edge_client.federation import RUN, tiny_plan
from tests.edge_client.sparsify import plaintext_twin
from tests.edge_client.sparsify.plaintext_twin import Model
from tests.edge_client.sparsify.side_by_side import encrypted

WEIGHTS = ("fc1.weight", "fc2.weight")


def plan_of(method: str, **changes: object) -> Plan:
    return tiny_plan(**{"method": method, "sparsity": 0.5, "rounds": 4, "bits": 20, "seed": 11, **changes})


def settings(plan: Plan) -> plaintext_twin.Settings:
    return plaintext_twin.Settings(0.5, 4, 1, 1, 3.0, plan.epochs, plan.batch_size, 0.1, plan.momentum)


def top(model: Model, count: int) -> Model:
    """The largest weights of both layers together; biases stay."""
    flat = torch.cat([model[name].abs().ravel() for name in WEIGHTS]).sort(descending=True).values
    return {
        name: (t.abs() >= flat[count - 1]).float() if name in WEIGHTS else torch.ones_like(t)
        for name, t in model.items()
    }


def test_three_encrypted_rounds_of_topk_give_the_weights_of_the_plaintext_method(tmp_path: Path) -> None:
    """Dense local training, then the 22 of 54 weights that a half of 64 parameters leaves; the mean of what is left."""
    plan = plan_of("topk")
    ours = encrypted(plan, tmp_path, 3)
    w = {name: p.detach().clone() for name, p in ours.network.model.named_parameters()}
    everything = {name: torch.ones_like(tensor) for name, tensor in w.items()}
    total = sum(len(y) for _, y in ours.learners)
    regrown = 0
    for round_, (state, tolerance) in enumerate(zip(ours.states, ours.tolerances, strict=True), start=1):
        before = ours.flat(w)
        tuned = [
            plaintext_twin.tune(ours.network.model, w, everything, rows, settings(plan), ours.seed_of(round_, k))
            for k, rows in enumerate(ours.learners)
        ]
        masks = [top(each, 22) for each in tuned]
        w = {
            name: sum(  # type: ignore[misc]
                len(y) / total * each[name] * m[name]
                for each, m, (_, y) in zip(tuned, masks, ours.learners, strict=True)
            )
            for name in w
        }
        assert state.mask.all()
        alive = ours.network.method.alive(ours.network.layout, state)
        ranked = weights(ours.network.layout)
        assert alive[ranked].tolist() == (ours.flat(w) != 0)[ranked].tolist()
        np.testing.assert_allclose(state.vector, ours.flat(w), rtol=0, atol=tolerance)
        assert ours.network.method.sizes(ours.network.model, ours.network.layout, state) == (64, int(alive.sum()))
        regrown += int(((ours.flat(w) != 0) & (before == 0) & ranked).sum()) if round_ > 1 else 0
    assert regrown > 0


def test_three_encrypted_rounds_of_snip_give_the_mask_and_weights_of_the_plaintext_method(tmp_path: Path) -> None:
    plan = plan_of("snip")
    ours = encrypted(plan, tmp_path, 3)
    network, layout = ours.network, ours.network.layout
    w = {name: p.detach().clone() for name, p in network.model.named_parameters()}
    votes = np.zeros(64, np.int64)
    for k, (x, y) in enumerate(ours.learners):
        network.model.load_state_dict(w)
        rows = np.random.default_rng(ours.seed_of(1, k)).permutation(len(y))[:128]
        loss = functional.cross_entropy(network.model(torch.from_numpy(x[rows])), torch.from_numpy(y[rows]))
        gradients = torch.autograd.grad(loss, list(network.model.parameters()))
        sensitivity = {name: g * w[name] for g, name in zip(gradients, w, strict=True)}
        votes += (ours.flat(top(sensitivity, 22)) == 1).astype(np.int64)
    ranked = np.flatnonzero(weights(layout))
    order = (votes + np.abs(ours.flat(w)) / (1 + np.abs(ours.flat(w)).max())).astype(np.float32)
    kept = ~weights(layout)
    kept[ranked[top_k(order[ranked], 22)]] = True
    assert {tuple(state.mask.tolist()) for state in ours.states} == {tuple(kept.tolist())}
    assert int(kept.sum()) == 32
    mask = {name: torch.from_numpy(cut) for name, cut in unflatten(kept.astype(np.float32), layout).items()}
    w = {name: tensor * mask[name] for name, tensor in w.items()}
    np.testing.assert_allclose(ours.states[0].vector, ours.flat(w), rtol=0, atol=ours.tolerances[0])
    total = sum(len(y) for _, y in ours.learners)
    for round_ in (2, 3):
        tuned = [
            plaintext_twin.tune(network.model, w, mask, rows, settings(plan), ours.seed_of(round_, k))
            for k, rows in enumerate(ours.learners)
        ]
        w = {n: sum(len(y) / total * each[n] for each, (_, y) in zip(tuned, ours.learners, strict=True)) for n in w}  # type: ignore[misc]
        state, tolerance = ours.states[round_ - 1], ours.tolerances[round_ - 1]
        np.testing.assert_allclose(state.vector, ours.flat(w), rtol=0, atol=tolerance)
    last = load_pending(tmp_path / "2" / "state")
    assert (last.votes.size, last.values.size) == (0, 32)


@pytest.mark.parametrize("method", ["topk", "snip"])
def test_a_target_that_would_leave_no_weight_is_refused_before_the_run(method: str) -> None:
    with pytest.raises(ConfigError, match=r"sparsity 0.9 leaves no weight: \w+ does not prune 10 of the positions"):
        build_network(plan_of(method, sparsity=0.9), (5,), 4, RUN)


def test_topk_reaches_its_target_in_the_last_round() -> None:
    network = build_network(plan_of("topk"), (5,), 4, RUN)
    vector = np.linspace(1, 2, 64, dtype=np.float32)
    state = GlobalState(4, vector, np.ones(64, np.bool_))
    kept = network.method.survivors(vector, np.zeros(64, np.int64), 4, network.layout, state)
    assert int(kept.sum()) == 32
    assert tiny.PARAMETERS == 64
