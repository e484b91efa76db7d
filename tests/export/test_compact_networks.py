"""``export.compact``: the six networks shrink and stay equal."""

from collections.abc import Callable, Iterator

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edge_client.learning.models import build, names
from export.compact import compact
from export.convert import convert
from export.macs import multiply_accumulates
from tests.export.compacting import METADATA, differ, of, seeded

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
SHAPES = {name: (3, 32, 32) if name in {"cifar-cnn", "resnet18", "vgg9"} else (1, 28, 28) for name in names()}


@pytest.fixture(scope="module", params=names())
def network(request: pytest.FixtureRequest) -> tuple[str, nn.Module, bytes]:
    model = seeded(build(request.param, SHAPES[request.param], 10))
    return request.param, model, convert(model, SHAPES[request.param], METADATA)


def masked(model: nn.Module, data: bytes, mask: Callable[[str, torch.Tensor], torch.Tensor]) -> bytes:
    """Mask the model's weights and the file's alike: folding a batch norm moves no zero. Saves an export per mask."""
    proto = onnx.load_model_from_string(data)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            kept = mask(name, weight)
            weight.data *= kept
            tensor = tensors[name]
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * kept.numpy(), name))
    return bytes(proto.SerializeToString())


@pytest.fixture
def restored(network: tuple[str, nn.Module, bytes]) -> Iterator[None]:
    state = {name: tensor.clone() for name, tensor in network[1].state_dict().items()}
    yield
    network[1].load_state_dict(state)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("sparsity", [0.95, 0.99])
def test_networks_with_random_masks_stay_equal(network: tuple[str, nn.Module, bytes], sparsity: float) -> None:
    name, model, data = network
    generator = torch.Generator().manual_seed(2)
    data = masked(model, data, lambda _, w: (torch.rand(w.shape, generator=generator) > sparsity).float())
    result = compact(data)
    assert differ(of(model), result.model, SHAPES[name]) < 1e-4
    assert result.untouched == ()
    work = multiply_accumulates(data)
    assert work.remaining / work.dense == pytest.approx(1 - sparsity, rel=0.3)
    assert compact(result.model).model == result.model


FILTERS_LEFT = {"cifar-cnn": 12, "digits-mlp": 3.9, "fashion-mlp": 3.9, "lenet5": 5, "resnet18": 5, "vgg9": 12}
"""The least that pruning 0.75 of the filters divides the multiply-accumulates by."""


@pytest.mark.usefixtures("restored")
def test_networks_with_three_quarters_of_the_filters_dead_shrink(network: tuple[str, nn.Module, bytes]) -> None:
    name, model, data = network
    generator = torch.Generator().manual_seed(3)

    def mask(layer: str, weight: torch.Tensor) -> torch.Tensor:
        kept = torch.ones(weight.shape)
        if layer != "out.weight":
            kept[torch.randperm(len(weight), generator=generator)[: len(weight) * 3 // 4]] = 0
        return kept

    data = masked(model, data, mask)
    exact, rounded = compact(data), compact(data, round_to=16)
    for result in (exact, rounded):
        assert differ(of(model), result.model, SHAPES[name]) < 1e-4
    before, after, padded = (multiply_accumulates(file).dense for file in (data, exact.model, rounded.model))
    assert before > FILTERS_LEFT[name] * after
    assert after <= padded < before
    assert all(after % 16 == 0 for _, after in rounded.removed.values())
