"""``edge_client.learning.training``: SGD under a mask that holds after every step; scores that add up."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edge_client.learning import training as train
from edge_client.learning.data import Share, part
from edge_client.learning.network import extract, insert, layout_of, network_of
from edge_client.learning.training import Score, evaluate, gradient_at, local_update
from edge_client.learning.training import _step as sgd_step
from edge_client.sparsify.fedavg import FedAvg
from protocol.errors import ConfigError, TrainingError
from protocol.layout import Layout, Mask, TensorSpec, Vector, unflatten
from protocol.plan import Plan
from tests.edge_client import tiny
from tests.edge_client.federation import random_vector, tiny_plan

PLAN = tiny_plan(epochs=3, batch_size=8, momentum=0.9)
METHOD = FedAvg(PLAN)
DATA = tiny.data()
SHARE = part(DATA, np.arange(44), 0, 2)


def model(build: Callable[[tuple[int, ...], int], nn.Module] = tiny.build) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(DATA.input_shape, DATA.classes)


def some_mask(layout: Layout, seed: int = 0, density: float = 0.4) -> Mask:
    return (np.random.default_rng(seed).random(layout.size) < density) | ~layout.prunable


def trained(build: Callable[[tuple[int, ...], int], nn.Module], mask_seed: int, plan: Plan = PLAN) -> Vector:
    network = model(build)
    layout = layout_of(network, METHOD)
    local_update(network_of(network, METHOD), some_mask(layout, mask_seed), SHARE, plan, seed=5)
    return extract(network_of(network, METHOD))


# --- what travels -------------------------------------------------------------------------------


def test_the_layout_holds_sorted_float_tensors_and_knows_buffers_from_parameters() -> None:
    assert layout_of(model(tiny.normed), METHOD) == Layout(
        (
            TensorSpec("fc1.bias", (6,), True),
            TensorSpec("fc1.weight", (6, 5), True),
            TensorSpec("fc2.bias", (4,), True),
            TensorSpec("fc2.weight", (4, 6), True),
            TensorSpec("norm.bias", (6,), True),
            TensorSpec("norm.running_mean", (6,), False),
            TensorSpec("norm.running_var", (6,), False),
            TensorSpec("norm.weight", (6,), True),
        )
    )


def test_a_frozen_parameter_travels_and_cannot_be_pruned() -> None:
    network = model()
    network.get_parameter("fc1.bias").requires_grad_(False)
    tensors = {tensor.name: tensor.trainable for tensor in layout_of(network, METHOD).tensors}
    assert tensors == {"fc1.bias": False, "fc1.weight": True, "fc2.bias": True, "fc2.weight": True}


def test_a_model_of_another_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trained in float32, but fc1\.weight is torch\.float64"):
        layout_of(model(tiny.doubled), METHOD)


def test_a_model_with_nothing_to_train_is_refused() -> None:
    network = model().requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable floating-point tensor"):
        layout_of(network, METHOD)


def test_insert_undoes_extract_and_extract_undoes_insert() -> None:
    network = model(tiny.normed)
    layout = layout_of(network, METHOD)
    vector = random_vector(3, layout.size)
    insert(network_of(network, METHOD), vector)
    assert extract(network_of(network, METHOD)).tobytes() == vector.tobytes()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    insert(network_of(network, METHOD), extract(network_of(network, METHOD)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_an_inserted_vector_is_copied_whatever_the_method_does_with_it() -> None:
    class Careless(FedAvg):
        def absorb(self, model: nn.Module, shared: Mapping[str, torch.Tensor]) -> None:
            super().absorb(model, shared)
            for tensor in shared.values():
                tensor.zero_()

    network = model()
    layout = layout_of(network, METHOD)
    vector = random_vector(3, layout.size)
    insert(network_of(network, Careless(PLAN)), vector)
    local_update(network_of(network, METHOD), np.ones(layout.size, np.bool_), SHARE, PLAN, seed=5)
    assert vector.tobytes() == random_vector(3, layout.size).tobytes()


# --- the step -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_a_step_is_that_of_torch_to_the_last_bit(momentum: float) -> None:
    plan = replace(PLAN, momentum=momentum, learning_rate=0.02)
    ours = torch.from_numpy(random_vector(1, 1003))
    theirs, velocity = nn.Parameter(ours.clone()), torch.zeros_like(ours)
    optimiser = torch.optim.SGD([theirs], lr=plan.learning_rate, momentum=momentum)
    for seed in range(20):
        gradient = torch.from_numpy(random_vector(seed, 1003)) * (torch.arange(1003) % 3 > 0)
        theirs.grad = gradient.clone()
        optimiser.step()
        sgd_step(ours, gradient, velocity, plan)
    assert torch.equal(ours, theirs.detach())


# --- the mask -----------------------------------------------------------------------------------


@contextmanager
def watched(network: nn.Module, layout: Layout) -> Iterator[tuple[list[Vector], list[Vector]]]:
    """The travelling tensors at every forward pass, and right after every step, before the mask."""
    forward: list[Vector] = []
    stepped: list[Vector] = []

    def see_forward(*arguments: object) -> None:
        forward.append(extract(network_of(network, METHOD)))

    def see_step(*arguments: Any) -> None:
        sgd_step(*arguments)
        stepped.append(extract(network_of(network, METHOD)))

    hook = network.register_forward_pre_hook(see_forward)
    try:
        with patch.object(train, "_step", see_step):
            yield forward, stepped
    finally:
        hook.remove()


@pytest.mark.parametrize("build", [tiny.build, tiny.normed])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_after_every_step_exactly_the_surviving_positions_may_be_non_zero(
    build: Callable[[tuple[int, ...], int], nn.Module], momentum: float
) -> None:
    network = model(build)
    layout = layout_of(network, METHOD)
    mask = some_mask(layout)
    with watched(network, layout) as (forward, stepped):
        local_update(network_of(network, METHOD), mask, SHARE, replace(PLAN, momentum=momentum), seed=5)
    assert len(forward) == len(stepped) == 3 * 6
    for vector in [*forward, extract(network_of(network, METHOD))]:
        assert not vector[~mask].any()
        assert np.count_nonzero(vector[mask & layout.prunable]) > 0
    # Not an idle wish: each step alone would have brought purged positions back.
    assert all(vector[~mask].any() for vector in stepped)


def test_every_surviving_position_is_trained_and_no_buffer_is_masked() -> None:
    network = model(tiny.normed)
    layout = layout_of(network, METHOD)
    names = np.repeat([tensor.name for tensor in layout.tensors], layout.sizes)
    mask = (names != "fc1.weight") | (np.arange(layout.size) % 2 == 0)
    before = extract(network_of(network, METHOD))
    local_update(network_of(network, METHOD), mask, SHARE, PLAN, seed=5)
    after = extract(network_of(network, METHOD))
    # A bias in front of batch norm has no gradient to speak of.
    assert (before != after)[mask & (names != "fc1.bias")].all()
    assert after[~layout.prunable].all()


def test_a_parameter_that_does_not_travel_is_trained_without_a_mask() -> None:
    class OutputOnly(FedAvg):
        def travelling(self, model: nn.Module) -> dict[str, torch.Tensor]:
            return {name: t for name, t in model.state_dict().items() if name.startswith("fc2")}

    method, network = OutputOnly(PLAN), model()
    layout = layout_of(network, method)
    assert layout.size == 28
    mask = np.arange(layout.size) % 5 != 0
    before = network.get_parameter("fc1.weight").detach().clone()
    local_update(network_of(network, method), mask, SHARE, PLAN, seed=5)
    assert not extract(network_of(network, method))[~mask].any()
    after = network.get_parameter("fc1.weight").detach()
    assert bool((after != before).all())
    assert bool(after.all())


# --- training -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_under_a_mask_is_plain_sgd_that_purges_after_every_step() -> None:
    """The one-vector form against torch's usual loop over parameters."""
    network, naive = model(), model()
    layout = layout_of(network, METHOD)
    mask = some_mask(layout)
    loss = local_update(network_of(network, METHOD), mask, SHARE, PLAN, seed=5)

    kept = {spec.name: cut for spec, cut in zip(layout.tensors, np.split(mask, layout.offsets[1:-1]), strict=True)}
    parameters = dict(naive.named_parameters())

    def purge() -> None:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.mul_(torch.from_numpy(kept[name].reshape(parameter.shape)))

    optimiser = torch.optim.SGD(naive.parameters(), lr=PLAN.learning_rate, momentum=PLAN.momentum)
    order = np.random.default_rng(5)
    purge()
    for _ in range(PLAN.epochs):
        rows, losses = order.permutation(44), []
        for start in range(0, 44, 8):
            batch = rows[start : start + 8]
            optimiser.zero_grad()
            each = functional.cross_entropy(naive(torch.from_numpy(SHARE.x[batch])), torch.from_numpy(SHARE.y[batch]))
            each.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            purge()
            losses += [float(each.detach())] * len(batch)
    np.testing.assert_allclose(
        extract(network_of(network, METHOD)), extract(network_of(naive, METHOD)), rtol=0, atol=1e-6
    )
    assert loss == pytest.approx(np.mean(losses), abs=1e-5)


def test_training_lowers_the_loss() -> None:
    network = model()
    layout = layout_of(network, METHOD)
    everything = np.ones(layout.size, np.bool_)
    before = evaluate(network, SHARE.x, SHARE.y)
    for seed in range(5):
        loss = local_update(network_of(network, METHOD), everything, SHARE, PLAN, seed)
    after = evaluate(network, SHARE.x, SHARE.y)
    assert loss < before.loss / before.tested / 2
    assert after.correct > before.correct


@pytest.mark.slow
def test_training_repeats_bit_by_bit_and_follows_its_seed_and_leaves_torchs_generator_alone() -> None:
    state = torch.random.get_rng_state()
    vectors = [trained(tiny.normed, mask_seed=1) for _ in range(2)]
    assert vectors[0].tobytes() == vectors[1].tobytes()
    network = model(tiny.normed)
    layout = layout_of(network, METHOD)
    local_update(network_of(network, METHOD), some_mask(layout, 1), SHARE, PLAN, seed=6)
    assert extract(network_of(network, METHOD)).tobytes() != vectors[0].tobytes()
    assert torch.equal(state, torch.random.get_rng_state())


def test_dropout_is_on_while_training_and_off_while_scoring() -> None:
    network = model(tiny.normed)
    layout = layout_of(network, METHOD)
    drop = network.get_submodule("drop")
    seen: list[bool] = []
    evaluate(network, SHARE.test_x, SHARE.test_y)
    drop.register_forward_pre_hook(lambda *_: seen.append(drop.training))
    local_update(network_of(network, METHOD), some_mask(layout), SHARE, PLAN, seed=5)
    assert seen == [True] * 18
    scores = {evaluate(network, SHARE.test_x, SHARE.test_y) for _ in range(3)}
    assert len(scores) == 1
    assert seen[18:] == [False] * 3


@pytest.mark.parametrize(("rows", "size", "expected"), [(17, 8, [8, 9]), (16, 8, [8, 8]), (1, 8, [1]), (9, 8, [9])])
def test_a_last_batch_of_one_row_joins_the_one_before_it(rows: int, size: int, expected: list[int]) -> None:
    network = model()
    layout = layout_of(network, METHOD)
    sizes: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    share = Share(SHARE.x[:rows], SHARE.y[:rows], SHARE.test_x, SHARE.test_y)
    everything = np.ones(layout.size, np.bool_)
    local_update(network_of(network, METHOD), everything, share, replace(PLAN, epochs=1, batch_size=size), seed=5)
    assert sizes == expected


def test_every_row_is_seen_once_an_epoch_in_another_order_each_time() -> None:
    network = model()
    layout = layout_of(network, METHOD)
    epochs: list[list[float]] = [[]]

    def see(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(epochs[-1]) == 44:
            epochs.append([])
        epochs[-1] += inputs[0][:, 0].tolist()

    network.register_forward_pre_hook(see)
    local_update(network_of(network, METHOD), np.ones(layout.size, np.bool_), SHARE, PLAN, seed=5)
    assert [sorted(epoch) for epoch in epochs] == [sorted(SHARE.x[:, 0].tolist())] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    network = model()
    layout = layout_of(network, METHOD)
    with pytest.raises(TrainingError, match="not finite: lower the learning rate or look at the data"):
        local_update(
            network_of(network, METHOD),
            np.ones(layout.size, np.bool_),
            SHARE,
            replace(PLAN, learning_rate=1e38),
            seed=5,
        )


def test_data_that_is_not_finite_stops_the_training() -> None:
    """`DataSet` refuses such rows; this is the second line of defence."""
    network = model()
    layout = layout_of(network, METHOD)
    x = SHARE.x.copy()
    x[7, 2] = np.nan
    with pytest.raises(TrainingError, match="look at the data"):
        local_update(network_of(network, METHOD), np.ones(layout.size, np.bool_), replace(SHARE, x=x), PLAN, seed=5)


# --- scores -------------------------------------------------------------------------------------


def identity() -> nn.Module:
    """A network whose logits are its inputs."""
    network = nn.Sequential(OrderedDict(fc=nn.Linear(3, 3, bias=False)))
    nn.init.eye_(network.get_parameter("fc.weight"))
    return network


def test_a_score_counts_rows_and_sums_their_cross_entropies() -> None:
    x = np.array([[4, 0, 0], [0, 1, 0], [0, 1, 2], [3, 3, 3]], np.float32)
    y = np.array([0, 2, 2, 0], np.int64)
    score = evaluate(identity(), x, y)
    true = sum(
        float(np.log(np.exp(row.astype(np.float64)).sum()) - row[label]) for row, label in zip(x, y, strict=True)
    )
    assert (score.correct, score.tested) == (3, 4)
    assert score.loss == pytest.approx(true, abs=1e-5)


def test_scores_of_parts_add_up_to_the_score_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, (1300, 3)).astype(np.float32), rng.integers(0, 3, 1300)
    whole, parts = evaluate(identity(), x, y), [evaluate(identity(), x[k::4], y[k::4]) for k in range(4)]
    assert whole.tested == sum(each.tested for each in parts) == 1300
    assert whole.correct == sum(each.correct for each in parts)
    assert whole.loss == pytest.approx(sum(each.loss for each in parts), rel=1e-5)


def test_a_node_without_test_rows_has_a_score_of_nothing() -> None:
    assert evaluate(identity(), np.zeros((0, 3), np.float32), np.zeros(0, np.int64)) == Score(0, 0, 0.0)


# --- the gradient at the global model -----------------------------------------------------------


def test_the_gradient_is_that_of_the_mean_loss_at_the_given_vector_and_zero_for_statistics() -> None:
    network = tiny.normed((5,), 4)
    method = FedAvg(PLAN)
    layout = layout_of(network, method)
    vector = extract(network_of(network, method))
    with torch.no_grad():
        network.get_parameter("fc1.weight").add_(1.0)
    gradient = gradient_at(network_of(network, method), vector, SHARE, seed=5)
    assert extract(network_of(network, method)).tolist() == vector.tolist()
    naive = tiny.normed((5,), 4)
    insert(network_of(naive, method), vector)
    naive.eval()
    rows = np.random.default_rng(5).permutation(len(SHARE.y))[:128]
    loss = functional.cross_entropy(naive(torch.from_numpy(SHARE.x[rows])), torch.from_numpy(SHARE.y[rows]))
    expected = torch.autograd.grad(loss, list(naive.parameters()))
    cuts = unflatten(gradient, layout)
    for (name, _), wanted in zip(naive.named_parameters(), expected, strict=True):
        np.testing.assert_allclose(cuts[name], wanted.numpy(), rtol=1e-5, atol=1e-7)
    assert not gradient[~layout.prunable].any()
    assert gradient.any()


# --- what is added to the loss ------------------------------------------------------------------


@pytest.mark.slow
def test_fedprox_pulls_every_weight_back_to_where_the_round_began() -> None:
    """Against the objective written out: the mean cross-entropy plus mu / 2 times the squared distance."""
    plan = replace(PLAN, proximal=0.7)
    network = model()
    layout = layout_of(network, METHOD)
    local_update(network_of(network, METHOD), np.ones(layout.size, np.bool_), SHARE, plan, seed=5)
    naive = model()
    start = [p.detach().clone() for p in naive.parameters()]
    optimiser = torch.optim.SGD(naive.parameters(), lr=plan.learning_rate, momentum=plan.momentum)
    order = np.random.default_rng(5)
    for _ in range(plan.epochs):
        for rows in torch.split(torch.from_numpy(order.permutation(len(SHARE.y))), plan.batch_size):
            optimiser.zero_grad()
            loss = functional.cross_entropy(naive(torch.from_numpy(SHARE.x)[rows]), torch.from_numpy(SHARE.y)[rows])
            distance = sum((p - w).square().sum() for p, w in zip(naive.parameters(), start, strict=True))
            (loss + plan.proximal / 2 * distance).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    for (name, ours), theirs in zip(network.named_parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_a_penalty_is_trained_on_but_not_reported() -> None:
    networks = [model(), model()]
    layout = layout_of(networks[0], METHOD)
    everything = np.ones(layout.size, np.bool_)

    def towards_one(network: nn.Module) -> torch.Tensor:
        return sum(((p - 1).square().sum() for p in network.parameters()), torch.zeros(()))

    class TowardsOne(FedAvg):
        def penalty(self, model: nn.Module) -> torch.Tensor:
            return towards_one(model)

    held_plan = replace(PLAN, momentum=0.0)
    free = local_update(network_of(networks[0], METHOD), everything, SHARE, PLAN, 5)
    held = local_update(network_of(networks[1], TowardsOne(held_plan)), everything, SHARE, held_plan, 5)
    away = [towards_one(network).item() for network in networks]
    assert away[1] < away[0]
    assert 0 < held < 50
    assert free != held
