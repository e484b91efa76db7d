"""``edge_client.sparsify.sparsyfed``: against a naive twin of the paper's method, and what it promises beyond it."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge_client.learning.data import part
from edge_client.learning.network import build_network, extract, insert
from edge_client.learning.training import local_update
from edge_client.sparsify import GlobalState, sparsifier
from edge_client.sparsify.allocation import weights
from edge_client.sparsify.powerprop import layers
from edge_client.sparsify.sparsyfed import SparsyFed, largest
from edge_client.state import load_pending
from protocol.errors import ConfigError
from protocol.layout import unflatten
from protocol.plan import Plan
from tests.edge_client import tiny
from tests.edge_client.federation import RUN, tiny_plan
from tests.edge_client.sparsify import sparsyfed_twin
from tests.edge_client.sparsify.side_by_side import encrypted

Build = Callable[[tuple[int, ...], int], nn.Module]
INPUTS = torch.randn(40, 5, generator=torch.Generator().manual_seed(3))


def plan_of(**changes: object) -> Plan:
    return tiny_plan(**{"method": "sparsyfed", "powerprop": 1.25, "sparsity": 0.5, "rounds": 4, **changes})


def convolutional(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Convolutions of all kinds: strided, grouped, with batch norm behind them."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 5)),
        nn.Conv1d(1, 4, 3, padding=1),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.Conv1d(4, 4, 3, stride=2, groups=2, bias=False),
        nn.Flatten(),
        nn.Linear(8, classes),
    )


@pytest.mark.slow
def test_three_encrypted_rounds_give_the_supports_and_weights_of_the_plaintext_method(tmp_path: Path) -> None:
    """From a dense start, as the authors; 22 of 54 weights and 10 biases are the half that stays."""
    plan = plan_of(start_sparsity=0.0, bits=20, seed=11)
    ours = encrypted(plan, tmp_path, 3)
    settings = sparsyfed_twin.Settings(1.25, 22, 3, plan.epochs, plan.batch_size, 0.1, plan.momentum)
    twin = sparsyfed_twin.train(ours.network.model, ours.learners, settings, ours.seed_of)
    counts = []
    for (theta, support), state, tolerance in zip(twin, ours.states, ours.tolerances, strict=True):
        assert state.mask.tolist() == (ours.flat(support) == 1).tolist()
        assert not state.vector[~state.mask].any()
        assert tolerance < 1e-4
        np.testing.assert_allclose(state.vector, ours.flat(theta), rtol=0, atol=tolerance)
        counts.append(int(state.mask.sum()))
    assert 64 > counts[0] > counts[1] >= counts[2] >= 32
    ballots = [load_pending(tmp_path / str(node) / "state") for node in ours.clients]
    assert {int(pending.votes.sum()) for pending in ballots} == {32}
    assert all(not pending.values[~pending.votes].any() for pending in ballots)


def test_the_last_round_reaches_the_target(tmp_path: Path) -> None:
    states = encrypted(plan_of(rounds=2), tmp_path, 2).states
    assert [int(state.mask.sum()) for state in states][1] == 32
    assert np.count_nonzero(states[1].vector) <= 32


@pytest.mark.parametrize(("start", "kept"), [(0.0, 64), (0.25, 48), (0.9, 32)])
def test_the_first_round_is_as_sparse_as_the_plan_says_but_never_sparser_than_the_target(
    start: float, kept: int
) -> None:
    network = build_network(plan_of(start_sparsity=start), (5,), 4, RUN)
    assert int(network.initial.mask.sum()) == kept
    assert not network.initial.vector[~network.initial.mask].any()
    assert network.initial.mask[~weights(network.layout)].all()


def test_no_layer_is_lost_at_the_start() -> None:
    """By magnitudes alone the layer with the larger fan-in would be: its initial weights are the smallest."""
    plan = plan_of(model="fashion-mlp", sparsity=0.95, start_sparsity=0.95)
    network = build_network(plan, (1, 28, 28), 10, RUN)
    kept = unflatten(network.initial.mask.astype(np.float32), network.layout)
    densities = {name: float(cut.mean()) for name, cut in kept.items() if cut.ndim > 1}
    assert len(densities) == 3
    assert all(density > 0.02 for density in densities.values())


def test_a_zero_stays_zero_through_local_training_though_no_mask_holds_it() -> None:
    network = build_network(plan_of(start_sparsity=0.5, momentum=0.9), (5,), 4, RUN)
    insert(network, network.initial.vector)
    share = part(tiny.data(), np.arange(44), 0, 2)
    local_update(network, np.ones(64, np.bool_), share, network.method.plan, seed=1)
    trained = extract(network)
    assert not trained[~network.initial.mask].any()
    assert (trained != network.initial.vector)[network.initial.mask].mean() > 0.5


def test_the_first_layer_can_stay_dense() -> None:
    kept = {}
    for dense in (False, True):
        network = build_network(plan_of(start_sparsity=0.3, sparsity=0.3, dense_first=dense), (5,), 4, RUN)
        cuts = unflatten(network.initial.mask.astype(np.float32), network.layout)
        kept[dense] = [int(cuts[f"fc{i}.parametrizations.weight.original"].sum()) for i in (1, 2)]
    assert sum(kept[False]) == sum(kept[True]) == 44 - 10
    assert kept[True] == [30, 4]
    assert kept[False][0] < 30


def test_a_client_does_not_vote_for_zeros() -> None:
    network = build_network(plan_of(start_sparsity=0.0), (5,), 4, RUN)
    layout = network.layout
    trained = np.where(weights(layout), 0, 1).astype(np.float32)
    trained[np.flatnonzero(weights(layout))[:3]] = 0.5
    everything = GlobalState(0, trained, np.ones(64, np.bool_))
    _, votes = network.method.submit(trained, layout, everything, lambda: pytest.fail("not needed"))
    assert int(votes.sum()) == 10 + 3


def test_without_powerpropagation_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"powerprop must be above 1, not 1.0"):
        sparsifier(plan_of(powerprop=1.0))


def test_a_target_that_would_leave_no_weight_is_refused_before_the_run() -> None:
    with pytest.raises(
        ConfigError, match=r"sparsity 0.9 leaves no weight: sparsyfed does not prune 10 of the positions"
    ):
        build_network(plan_of(sparsity=0.9), (5,), 4, RUN)


# --- activations --------------------------------------------------------------------------------


@pytest.mark.parametrize(("density", "kept"), [(1.0, 40), (0.5, 20), (0.01, 1)])
def test_the_largest_magnitudes_of_a_batch_are_kept(density: float, kept: int) -> None:
    batch = INPUTS[:8]
    pruned = largest(batch, density)
    stays = pruned != 0
    assert int(stays.sum()) == kept
    assert torch.equal(pruned[stays], batch[stays])
    assert batch[~stays].abs().max() <= batch[stays].abs().min() if kept < 40 else stays.all()


def some_worn(build: Build) -> nn.Module:
    torch.manual_seed(0)
    worn = SparsyFed(plan_of()).wear(build((5,), 4))
    with torch.no_grad():
        for name, parameter in worn.named_parameters():
            if name.endswith("original"):
                parameter.mul_(torch.rand_like(parameter) < 0.25)
    return worn.train()


@pytest.mark.parametrize("build", [tiny.build, convolutional])
def test_only_the_gradient_of_the_weights_sees_pruned_inputs(build: Build) -> None:
    gradients = []
    for pruning in (True, False):
        worn, inputs = some_worn(build), INPUTS.clone().requires_grad_()
        if not pruning:
            for _, layer in layers(worn):
                del layer.forward
        logits = worn(inputs)
        logits.square().sum().backward()
        by_name = {name: p.grad for name, p in worn.named_parameters()}
        gradients.append((logits, inputs.grad, by_name))
    (logits, by_input, by_name), (other_logits, other_by_input, other_by_name) = gradients
    torch.testing.assert_close(logits, other_logits)
    torch.testing.assert_close(by_input, other_by_input)
    for name, gradient in by_name.items():
        other = other_by_name[name]
        assert gradient is not None
        assert other is not None
        same = torch.allclose(gradient, other)
        assert same == (not name.endswith("original"))


def test_in_evaluation_and_after_shedding_nothing_is_pruned() -> None:
    method = SparsyFed(plan_of())
    torch.manual_seed(0)
    plain = convolutional((5,), 4).eval()
    worn = method.wear(copy.deepcopy(plain)).eval()
    torch.testing.assert_close(worn(INPUTS), plain(INPUTS))
    shed = method.shed(worn)
    assert set(shed.state_dict()) == set(plain.state_dict())
    assert all("forward" not in vars(module) for module in shed.modules())
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(shed.state_dict()[name], tensor)
    torch.testing.assert_close(shed(INPUTS), plain(INPUTS))
