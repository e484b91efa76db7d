"""``edge_client.filters``, structure and trace: what dies with a filter, what could go, what is not guessed."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edge_client.filters.structure import Structure
from edge_client.filters.trace import trace
from edge_client.learning.models import build, names
from edge_client.learning.network import layout_of
from edge_client.sparsify.fedavg import FedAvg
from protocol.layout import Layout, Mask, unflatten
from tests.edge_client import networks
from tests.edge_client.federation import tiny_plan

METHOD = FedAvg(tiny_plan())


def without(layout: Layout, structure: Structure, dead: dict[str, list[int]]) -> Mask:
    """The closed mask after these filters have gone."""
    mask = np.ones(layout.size, np.bool_)
    cuts = unflatten(mask, layout)
    for name, rows in dead.items():
        cuts[f"{name}.weight"][rows] = False
        if f"{name}.bias" in cuts:
            cuts[f"{name}.bias"][rows] = False
    return structure.closed(mask, layout)


def read(make: Callable[[], nn.Module]) -> tuple[nn.Module, Layout, Structure]:
    network = networks.seeded(make)
    return network, layout_of(network, METHOD), trace(network)


def gone(mask: Mask, layout: Layout) -> dict[str, int]:
    """How many positions each tensor has lost."""
    return {name: int((~cut).sum()) for name, cut in unflatten(mask, layout).items() if not cut.all()}


# --- the networks that are shipped ----------------------------------------------------------------


@pytest.mark.parametrize("name", names())
def test_every_shipped_network_is_understood_to_the_last_layer(name: str) -> None:
    model = build(name, (3, 16, 16), 10)
    structure = trace(model)
    layers = [name for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert structure.unproved == ()
    assert list(structure.filters) == [layer for layer in layers if layer != "out"]


def test_tracing_leaves_the_network_as_it_was() -> None:
    model = networks.seeded(networks.chain).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trace(model)
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# --- what goes with a filter ----------------------------------------------------------------------


def test_with_a_filter_go_its_norm_statistics_included_and_the_weights_that_read_it() -> None:
    _, layout, structure = read(networks.chain)
    mask = without(layout, structure, {"conv1": [1], "conv2": [0, 3]})
    assert gone(mask, layout) == {
        "conv1.weight": 18, "conv1.bias": 1, "norm1.weight": 1, "norm1.bias": 1, "norm1.running_mean": 1,
        "norm1.running_var": 1, "conv2.weight": 2 * 36 + 2 * 9, "conv2.bias": 2, "norm2.weight": 18, "norm2.bias": 18,
        "norm2.running_mean": 18, "norm2.running_var": 18, "fc.weight": 18 * 8,
    }  # fmt: skip


def test_a_flattened_channel_takes_all_its_features_along() -> None:
    _, layout, structure = read(networks.chain)
    mask = without(layout, structure, {"conv2": [2]})
    columns = ~unflatten(mask, layout)["fc.weight"].any(axis=0)
    assert np.flatnonzero(columns).tolist() == list(range(18, 27))
    cut = structure.cuts(mask, layout)["fc"]
    assert cut.columns is not None
    assert cut.columns.tolist() == (~columns).tolist()


def test_a_residual_sum_is_dead_only_where_both_sides_are() -> None:
    _, layout, structure = read(networks.Residual)
    one_side = without(layout, structure, {"inner": [0, 1]})
    assert gone(one_side, layout) == {
        "inner.weight": 72, "inner_norm.weight": 2, "inner_norm.bias": 2, "inner_norm.running_mean": 2,
        "inner_norm.running_var": 2,
    }  # fmt: skip
    assert structure.cuts(one_side, layout) == {}
    both = without(layout, structure, {"inner": [0, 1], "stem": [1, 2]})
    cuts = structure.cuts(both, layout)
    # The branch and the projection read the sum; channel 1 alone is dead on both sides.
    assert {name: cut.rows.tolist() for name, cut in cuts.items() if not cut.rows.all()} == {
        name: [True, False, True, True] for name in ("stem", "norm", "inner", "inner_norm")
    }
    assert cuts["branch"].columns is not None
    assert cuts["branch"].columns.tolist() == [True, False, True, True]


def test_a_projection_and_its_branch_keep_the_same_channels() -> None:
    _, layout, structure = read(networks.Residual)
    cuts = structure.cuts(without(layout, structure, {"branch": [0, 5], "project": [5, 7]}), layout)
    assert {name: np.flatnonzero(~cut.rows).tolist() for name, cut in cuts.items()} == {
        "branch": [5], "project": [5], "fc": []
    }  # fmt: skip


def test_every_tensor_keeps_a_channel() -> None:
    _, layout, structure = read(networks.chain)
    cuts = structure.cuts(without(layout, structure, {"conv1": [0, 1, 2, 3]}), layout)
    assert cuts["conv1"].rows.tolist() == [True, False, False, False]


@pytest.mark.slow
@given(st.data())
@settings(max_examples=25, deadline=None)
def test_closing_changes_nothing_that_training_computes(data: st.DataObject) -> None:
    """Outputs and gradients at what stays are those of a network in which the filters alone are zero."""
    make: Callable[[], nn.Module] = data.draw(st.sampled_from([networks.chain, networks.Residual]))
    network, layout, structure = read(make)
    sizes = {name: len(network.get_parameter(f"{name}.weight")) for name in structure.filters}
    dead = {name: data.draw(st.lists(st.integers(0, size - 1), unique=True)) for name, size in sizes.items()}
    first = without(layout, Structure(), dead)
    results = []
    for mask in (first, structure.closed(first, layout)):
        copy = networks.seeded(make).train()
        for name, cut in unflatten(mask, layout).items():
            tensor = copy.state_dict()[name]
            # Of a norm behind a dead filter the shift would stay: what is compared is the network without it.
            tensor.mul_(
                torch.from_numpy((cut & unflatten(structure.closed(first, layout), layout)[name]) * np.float32(1))
            )
        results.append(copy)
    torch.manual_seed(1)
    x = torch.randn(5, *networks.IMAGE)
    outputs = []
    for copy in results:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            outputs.append(copy(x))
    assert torch.allclose(outputs[0], outputs[1])


# --- what is not understood -----------------------------------------------------------------------


def test_what_is_not_understood_keeps_its_channels_and_is_named() -> None:
    _, layout, structure = read(networks.Opaque)
    assert structure.filters == ("left", "right", "mix", "fc1")
    assert structure.unproved == ("cat: cat", "norm: LayerNorm")
    mask = without(layout, structure, {"left": [0], "right": [1], "mix": [2], "fc1": [3]})
    assert gone(mask, layout) == {
        "left.weight": 18, "left.bias": 1, "right.weight": 18, "right.bias": 1, "mix.weight": 8, "mix.bias": 1,
        "fc1.weight": 216, "fc1.bias": 1, "fc2.weight": 3,
    }  # fmt: skip
    assert set(structure.cuts(mask, layout)) == {"fc1", "fc2"}


def test_a_network_that_cannot_be_traced_has_filters_and_no_cuts() -> None:
    _, layout, structure = read(networks.Branching)
    assert structure.filters == ("fc",)
    assert len(structure.unproved) == 1
    assert structure.unproved[0].startswith("the whole network: torch.fx cannot trace it (TraceError: ")
    mask = without(layout, structure, {"fc": [0, 1]})
    assert gone(mask, layout) == {"fc.weight": 144, "fc.bias": 2}
    assert structure.cuts(mask, layout) == {}


def test_shared_weights_and_layers_called_twice_are_left_alone_and_a_head_is_one_behind_a_softmax() -> None:
    _, layout, structure = read(networks.Shared)
    assert structure.filters == ("first", "twice", "tied", "after")
    mask = without(layout, structure, {"first": [0], "twice": [1], "tied": [2], "after": [3]})
    assert set(structure.cuts(mask, layout)) == {"after", "out"}


def test_one_parameter_in_two_layers_makes_neither_a_filter() -> None:
    def tied() -> nn.Module:
        network = nn.Sequential(nn.Flatten(), nn.Linear(72, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        network[5].weight = network[3].weight
        return nn.Sequential(network, nn.ReLU(), nn.Linear(6, 3))

    assert trace(networks.seeded(tied)).filters == ("0.1",)


def test_groups_and_linear_layers_on_other_axes_block() -> None:
    _, layout, structure = read(networks.Depthwise)
    assert structure.filters == ("conv", "point", "last")
    mask = without(layout, structure, {"conv": [0], "point": [1], "last": [2]})
    assert structure.cuts(mask, layout) == {}
    assert structure.unproved == ("depth: Conv2d", "last: Linear")


def test_without_a_flatten_a_linear_chain_is_followed_and_a_norm_behind_it_is_not() -> None:
    _, layout, structure = read(networks.plain_mlp)
    assert structure.filters == ("0", "3")
    assert set(structure.cuts(without(layout, structure, {"0": [0], "3": [1]}), layout)) == {"0", "2", "3", "5"}
    normed = networks.seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)))
    assert trace(normed).unproved == ("_1: BatchNorm1d",)


def test_hooked_modules_are_not_understood() -> None:
    network = networks.seeded(networks.plain_mlp)
    network.get_submodule("1").register_forward_hook(lambda module, inputs, output: output + 1)
    assert trace(network).unproved == ("_1: Tanh",)


@pytest.mark.parametrize(
    "module", [nn.Sigmoid(), nn.GroupNorm(2, 4), nn.PReLU(4), nn.MaxPool2d(2, return_indices=True)]
)
def test_a_module_that_may_not_keep_zero_is_not_understood(module: nn.Module) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.inner, self.out = nn.Conv2d(2, 4, 3), module, nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.inner(self.conv(x))
            return self.out(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1))  # type: ignore[no-any-return]

    network = Around()
    layout, structure = layout_of(network, METHOD), trace(network)
    assert structure.unproved == (f"inner: {type(module).__name__}",)
    assert structure.cuts(without(layout, structure, {"conv": [0]}), layout) == {}


class InPlace(nn.Module):
    """Adds in place, to what only the addition sees, or to what somebody has looked at before and will again."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.shared = shared
        self.left, self.right, self.out = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.left(x), self.right(x)
        total = left
        total += right
        total = total + left if self.shared else total
        return self.out(nn.functional.adaptive_avg_pool2d(total, 1).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("shared", "unproved"), [(False, ()), (True, ("add: add", "add_1: add"))])
def test_an_addition_in_place_is_understood_where_nobody_else_sees_it(shared: bool, unproved: tuple[str, ...]) -> None:
    network = networks.seeded(lambda: InPlace(shared=shared))
    layout, structure = layout_of(network, METHOD), trace(network)
    assert structure.unproved == unproved
    mask = without(layout, structure, {"left": [1], "right": [1]})
    assert bool(structure.cuts(mask, layout)) != shared
    assert unflatten(mask, layout)["out.weight"][:, 1].any() == shared


class Aliased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(5, 6), nn.Linear(6, 3)
        self.alias = self.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.fc(x)))  # type: ignore[no-any-return]


def test_one_module_under_two_names_has_no_filters() -> None:
    assert trace(networks.seeded(Aliased)).filters == ()
