"""``edge_client.filters.shrink``: training the smaller network is training the whole one under the mask."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from edge_client.filters.shrink import shrink
from edge_client.learning.data import Share
from edge_client.learning.models import build
from edge_client.learning.network import extract, insert, layout_of, network_of
from edge_client.learning.training import local_update
from edge_client.sparsify.fedsparsify import FedSparsifyGlobal
from edge_client.sparsify.interface import GlobalState
from protocol.layout import Layout, Mask, Vector, unflatten
from tests.edge_client import networks
from tests.edge_client.federation import tiny_plan

PLAN = tiny_plan(
    method="fedsparsify-global", granularity="filter", sparsity=0.6, rounds=2, epochs=1, batch_size=8,
    learning_rate=0.02, momentum=0.5,
)  # fmt: skip

Build = Callable[[], nn.Module]
SHIPPED: dict[str, tuple[Build, tuple[int, ...]]] = {
    "digits-mlp": (partial(build, "digits-mlp", (1, 8, 8), 4), (1, 8, 8)),
    "lenet5": (partial(build, "lenet5", (1, 12, 12), 4), (1, 12, 12)),
    "cifar-cnn": (partial(build, "cifar-cnn", (3, 8, 8), 4), (3, 8, 8)),
    "vgg9": (partial(build, "vgg9", (3, 8, 8), 4), (3, 8, 8)),
    "resnet18": (partial(build, "resnet18", (3, 8, 8), 4), (3, 8, 8)),
}
OWN: dict[str, tuple[Build, tuple[int, ...]]] = {
    "chain": (networks.chain, networks.IMAGE),
    "residual": (networks.Residual, networks.IMAGE),
    "opaque": (networks.Opaque, networks.IMAGE),
    "branching": (networks.Branching, networks.IMAGE),
    "shared": (networks.Shared, networks.IMAGE),
    "depthwise": (networks.Depthwise, networks.IMAGE),
    "plain-mlp": (networks.plain_mlp, (5,)),
    "plain-mlp on sequences": (lambda: nn.Sequential(networks.plain_mlp(), nn.Flatten(), nn.Linear(6, 3)), (2, 5)),
    "signal": (networks.signal, (2, 9)),
}


def purged(make: Build) -> tuple[nn.Module, FedSparsifyGlobal, Layout, Vector, Mask]:
    """A network whose filters were purged to 0.6, twice as in a run, and what is left of it."""
    method = FedSparsifyGlobal(PLAN)
    model = method.wear(networks.seeded(make))
    layout = layout_of(model, method)
    vector, mask = extract(network_of(model, method)), np.ones(layout.size, np.bool_)
    early = FedSparsifyGlobal(replace(PLAN, sparsity=0.3))
    early.wear(model)
    for each in (early, method):
        state = GlobalState(2, vector, mask)
        mask = each.survivors(vector, np.zeros(layout.size, np.int64), 3, layout, state)
        vector = np.where(mask, vector, np.float32(0))
    return model, method, layout, vector, mask


def share(shape: tuple[int, ...], rows: int = 16) -> Share:
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(rows, *shape)).astype(np.float32), rng.integers(0, 3, rows)
    return Share(x, y, x[:0], y[:0])


@pytest.mark.slow
@pytest.mark.parametrize(("make", "shape"), (SHIPPED | OWN).values(), ids=(SHIPPED | OWN).keys())
def test_the_smaller_network_trains_as_the_masked_one_does(make: Build, shape: tuple[int, ...]) -> None:
    model, method, _, vector, mask = purged(make)
    results, losses = [], []
    for granularity in ("filter", "weight"):
        insert(network_of(model, method), vector)
        losses.append(
            local_update(network_of(model, method), mask, share(shape), replace(PLAN, granularity=granularity), seed=3)
        )
        results.append(extract(network_of(model, method)))
    small, masked = results
    assert np.abs(masked - vector).max() > 1e-3
    np.testing.assert_allclose(small, masked, rtol=0, atol=2e-5)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert not small[~mask].any()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_network_loses_every_dead_filter_and_about_the_square_of_its_weights(name: str) -> None:
    model, method, layout, _, mask = purged(SHIPPED[name][0])
    small = shrink(model, layout, mask)
    most = {"digits-mlp": 0.4, "resnet18": 0.4}.get(name, 0.2)
    assert small.layout.size / layout.size < most
    if name != "resnet18":  # whose additions keep a channel while one side needs it
        assert small.mask.all()
        assert small.layout.size == mask.sum()
    for layer in (f"{name}.weight" for name in method._structure.filters):
        assert small.model.get_parameter(layer).numel() < model.get_parameter(layer).numel()


def test_the_statistics_of_batch_norm_and_its_count_come_back() -> None:
    model, method, layout, vector, mask = purged(networks.chain)
    insert(network_of(model, method), vector)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    local_update(network_of(model, method), mask, share(networks.IMAGE), PLAN, seed=3)
    after = model.state_dict()
    kept = unflatten(mask, layout)["norm1.running_mean"]
    assert int(kept.sum()) == 1
    for name in ("norm1.running_mean", "norm1.running_var"):
        moved = (after[name] != before[name]).numpy()
        assert moved.tolist() == kept.tolist()
        assert not after[name].numpy()[~kept].any()
    assert int(after["norm1.num_batches_tracked"]) == int(before["norm1.num_batches_tracked"]) + 2


def test_restore_undoes_shrink() -> None:
    for make in (networks.chain, networks.Residual):
        model, method, layout, vector, mask = purged(make)
        insert(network_of(model, method), vector)
        shrink(model, layout, mask).restore(model)
        assert extract(network_of(model, method)).tobytes() == vector.tobytes()


def test_a_network_that_is_not_understood_is_trained_whole() -> None:
    model, _, layout, _, mask = purged(networks.Branching)
    assert not mask.all()
    small = shrink(model, layout, mask)
    assert small.layout == layout
    assert small.mask.tolist() == mask.tolist()


def test_a_module_says_its_new_width() -> None:
    model, _, layout, _, mask = purged(networks.chain)
    small = shrink(model, layout, mask).model
    conv, norm, linear = (cast("Any", small.get_submodule(name)) for name in ("conv2", "norm1", "fc"))
    assert (conv.in_channels, conv.out_channels) == (1, 1)
    assert norm.num_features == 1
    assert (linear.in_features, linear.out_features) == (9, 3)


def test_dropout_in_evaluation_does_nothing_and_draws_nothing() -> None:
    model, method, layout, vector, mask = purged(networks.chain)
    insert(network_of(model, method), vector)
    small = shrink(model, layout, mask).model.eval()
    state = torch.random.get_rng_state()
    x = torch.from_numpy(share(networks.IMAGE).x)
    assert torch.allclose(small(x), model.eval()(x), atol=1e-6)
    assert torch.equal(state, torch.random.get_rng_state())
