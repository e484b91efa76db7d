"""``export.compact``: dead channels and neurons go, the function stays."""

from collections.abc import Callable, Iterator
from itertools import chain, count
from typing import Any, TypeVar

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edge_client.models import build, names
from export.compact import Compaction, compact
from export.convert import convert
from export.macs import LayerWork, multiply_accumulates
from export.parity import infer, open_session
from protocol.errors import ExportError

Network = TypeVar("Network", bound=nn.Module)
METADATA = {"model": "tiny", "run": "r1"}
IMAGE = (3, 8, 8)
SHAPES = {name: (3, 32, 32) if name in {"cifar-cnn", "resnet18", "vgg9"} else (1, 28, 28) for name in names()}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded(model: Network) -> Network:
    """The model in evaluation mode, with a bias and statistics that are not their defaults anywhere."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "num_batches" in name:
                continue
            if "running_var" in name:
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.dim() == 1:
                tensor.normal_(0.3, 0.3, generator=generator)
            else:
                fan = tensor[0].numel()
                tensor.normal_(0, (2 / fan) ** 0.5, generator=generator)
    return model.eval()


def kill(layer: nn.Module, *rows: int) -> None:
    """Zero all incoming weights of some output channels; the bias stays."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    layer.weight.data[list(rows) or slice(None)] = 0


def ignore(layer: nn.Module, *columns: int) -> None:
    """Zero all weights that read some input channels."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    layer.weight.data[:, list(columns)] = 0


def differ(expected: Callable[[np.ndarray], np.ndarray], data: bytes, shape: tuple[int, ...]) -> float:
    """The largest difference of the outputs, relative to their scale; on random inputs, zeros and two batch sizes."""
    session, random = open_session(data), np.random.default_rng(0)
    worst = 0.0
    for x in (random.normal(size=(7, *shape)), random.normal(0, 5, size=(1, *shape)), np.zeros((2, *shape))):
        want, got = expected(x.astype(np.float32)), infer(session, x.astype(np.float32))
        assert got.shape == want.shape
        worst = max(worst, float(np.abs(got - want).max()) / float(np.abs(want).max() + 1e-9))
    return worst


def of(model: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    def run(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(model(torch.from_numpy(x)).numpy())

    return run


def checked(data: bytes, expected: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> Compaction:
    """The exact compaction, after it and the one rounded to 4 were compared with what the file must compute."""
    for round_to in (4, 1):
        result = compact(data, round_to)
        onnx.checker.check_model(result.model, full_check=True)
        assert differ(expected, result.model, shape) < 1e-4
        assert multiply_accumulates(result.model).dense <= multiply_accumulates(data).dense
        again = compact(result.model, round_to)
        assert again.model == result.model
        assert not again.removed
    return result


def compacted(model: nn.Module, shape: tuple[int, ...] = IMAGE) -> Compaction:
    return checked(convert(model, shape, METADATA), of(model), shape)


def operators(data: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_model_from_string(data).graph.node]


class Residual(nn.Module):
    """A stem, a branch of two convolutions beside a shortcut, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.out = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = (x + self.conv2(self.conv1(x).relu())).relu()
        return torch.as_tensor(self.out(x.mean((2, 3))))


def plain(*middle: nn.Module, channels: int = 8, flat: int = 512) -> nn.Sequential:
    """A padded convolution, whatever comes in between, flatten and a linear layer."""
    model = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), *middle, nn.Flatten(), nn.Linear(flat, 4))
    return seeded(model)


def test_a_model_without_dead_structure_is_handed_back_byte_for_byte() -> None:
    data = convert(plain(), IMAGE, METADATA)
    result = compact(data)
    assert result.model == data
    assert result.removed == {}
    assert result.untouched == ()
    assert result.parameters_before == result.parameters_after == 8 * 27 + 8 + 4 * 512 + 4
    macs = multiply_accumulates(data)
    assert macs.dense == macs.remaining == 8 * 27 * 64 + 4 * 512


def test_dead_and_unread_neurons_go_and_their_constants_move_into_the_next_bias() -> None:
    model = seeded(nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 9), nn.Sigmoid(), nn.Linear(9, 3)))
    kill(model[0], 0, 1, 2)
    ignore(model[2], 3)
    kill(model[2], 4)
    result = compacted(model, (6,))
    assert result.removed == {"0": (10, 6), "2": (9, 8)}
    assert result.parameters_after == 6 * 6 + 6 + 6 * 8 + 8 + 8 * 3 + 3


def test_inputs_and_outputs_keep_their_places_and_metadata_stays() -> None:
    model = seeded(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    ignore(model[0], 1, 2)
    kill(model[2], 1)
    kill(model[0], 0)
    proto = onnx.load_model_from_string(compacted(model, (6,)).model)
    for value, width in ((proto.graph.input[0], 6), (proto.graph.output[0], 3)):
        batch, channels = value.type.tensor_type.shape.dim
        assert batch.dim_param == "batch"
        assert channels.dim_value == width
    assert {entry.key: entry.value for entry in proto.metadata_props} == METADATA


def test_a_whole_dead_layer_leaves_constant_logits() -> None:
    model = seeded(nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 9), nn.ReLU(), nn.Linear(9, 3)))
    kill(model[2])
    assert compacted(model, (6,)).removed == {"0": (10, 1), "2": (9, 1)}


def test_a_whole_dead_convolution_leaves_constant_logits() -> None:
    model = plain(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    kill(model[2])
    assert compacted(model).removed == {"0": (8, 1), "2": (8, 1)}


def test_dead_last_weights_leave_constant_logits() -> None:
    model = plain()
    kill(model[3])
    assert compacted(model).removed == {"0": (8, 1)}


def test_a_dead_residual_branch_goes_and_its_constant_stays() -> None:
    model = seeded(Residual())
    kill(model.get_submodule("conv2"))
    result = compacted(model)
    assert result.removed == {"conv1": (6, 0), "conv2": (8, 0)}
    assert operators(result.model).count("Conv") == 1
    assert operators(result.model).count("Add") == 1


def test_a_residual_branch_of_zeros_goes_with_its_addition() -> None:
    model = seeded(Residual())
    kill(model.get_submodule("conv2"))
    model.get_parameter("conv2.bias").data.zero_()
    assert "Add" not in operators(compacted(model).model)


def test_a_residual_channel_stays_while_one_side_lives() -> None:
    model = seeded(Residual())
    kill(model.get_submodule("stem"), 0, 1)
    kill(model.get_submodule("conv2"), 1, 2)
    ignore(model.get_submodule("out"), 3)
    result = compacted(model)
    assert result.removed == {"stem": (8, 7), "conv2": (8, 7)}, "channel 1 is dead on both sides, 3 feeds conv1"


def test_a_dead_channel_before_flatten_takes_its_positions_along() -> None:
    model = plain(nn.MaxPool2d(2), flat=128)
    kill(model[0], 2, 5)
    ignore(model[4], *range(7 * 16, 8 * 16))
    result = compacted(model)
    assert result.removed == {"0": (8, 5)}
    assert result.parameters_after == 5 * 27 + 5 + 4 * 5 * 16 + 4


def test_a_flattened_channel_stays_while_one_position_is_read() -> None:
    model = plain()
    ignore(model[3], *range(63))
    assert compacted(model).removed == {}


def test_a_shift_of_batch_norm_on_a_dead_channel_is_kept() -> None:
    model = seeded(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 5, 3),
            nn.Flatten(),
            nn.Linear(180, 4),
        )
    )
    kill(model[0], 1, 2, 3)
    assert compacted(model).removed == {"0": (8, 5)}, "no padding: the shift moves into the bias"


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_a_standalone_batch_norm_after_pooling_is_folded_through(scale: float) -> None:
    model = plain(nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.ReLU(), flat=32)
    kill(model[0], 0)
    norm = model[3]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.weight.data[4] = scale
    result = compacted(model)
    assert "BatchNormalization" in operators(result.model)
    assert result.removed == {"0": (8, 7 if scale else 6)}


def test_constants_that_meet_zero_padding_are_merged_into_one_channel() -> None:
    model = plain(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    kill(model[0], 1, 2, 3, 4)
    bias = model.get_parameter("0.bias").data
    bias[1:5] = torch.tensor([0.5, 1.5, 0.2, -1.0])
    assert compacted(model).removed == {"0": (8, 5)}, "three constants become one, the fourth is zero after the ReLU"


def test_one_constant_that_meets_zero_padding_stays() -> None:
    model = plain(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    kill(model[0], 1)
    model.get_parameter("0.bias").data[1] = 1.0
    assert compacted(model).removed == {}


def test_an_average_over_padding_does_not_keep_a_constant() -> None:
    model = plain(nn.AvgPool2d(2, padding=1), flat=8 * 25)
    kill(model[0], 1, 2)
    model.get_parameter("0.bias").data[1:3] = torch.tensor([1.0, -1.0])
    assert compacted(model).removed == {"0": (8, 7)}, "zero stays zero over padding, one does not stay one"


def test_activations_are_evaluated_on_constants() -> None:
    activations: list[nn.Module] = [nn.ELU(), nn.GELU(), nn.Hardsigmoid(), nn.Hardswish(), nn.LeakyReLU(0.2)]
    activations += [nn.PReLU(8), nn.ReLU6(), nn.SELU(), nn.Sigmoid(), nn.SiLU(), nn.Tanh()]
    linear = [nn.Linear(8, 8) for _ in activations]
    layers = chain.from_iterable(zip(linear, activations, strict=True))
    model = seeded(nn.Sequential(*layers, nn.Linear(8, 3)))
    for layer in linear:
        kill(layer, 0, 7)
    result = compacted(model, (8,))
    assert list(result.removed.values()) == [(8, 6)] * len(activations)
    assert result.untouched == ()


def test_depthwise_convolutions_lose_channels_with_their_neighbours() -> None:
    depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
    model = plain(depthwise, nn.ReLU(), nn.Conv2d(16, 6, 1), flat=384)
    kill(model[0], 0)
    model.get_parameter("0.bias").data[0] = -1.0
    ignore(model[4], 4, 5, 6)
    result = compacted(model)
    assert result.removed == {"0": (8, 6), "2": (16, 12)}, "channel 3 is still read through its second output"
    assert result.untouched == ()


def test_grouped_convolutions_keep_their_shape_and_are_named() -> None:
    model = plain(nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 8, 1), flat=288)
    kill(model[0], 0, 1)
    kill(model[2], 0, 1)
    kill(model[4], 2)
    result = compacted(model)
    assert result.removed == {"4": (8, 7)}
    assert result.untouched == ("2: a convolution in 2 groups of more than one input channel",)


def test_shared_weights_whose_copies_would_be_larger_stay_one_and_are_named() -> None:
    shared = nn.Linear(8, 8)
    model = seeded(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(8, 3)))
    kill(shared, 0)
    result = compacted(model, (6,))
    assert result.removed == {}
    assert len(result.untouched) == 2
    assert all("are shared, and two smaller copies would be larger" in reason for reason in result.untouched)
    assert result.parameters_after <= result.parameters_before


def test_shared_weights_are_split_where_that_is_smaller() -> None:
    shared = nn.Linear(8, 8)
    model = seeded(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(8, 3)))
    kill(shared, 0, 1, 2, 3, 4, 5)
    result = compacted(model, (6,))
    assert list(result.removed.values()) == [(8, 2), (8, 2)]
    assert result.untouched == ()


def test_matmul_with_an_addition_is_a_layer_too() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.b1 = nn.Parameter(torch.zeros(6, 9)), nn.Parameter(torch.zeros(9))
            self.w2 = nn.Parameter(torch.zeros(9, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x @ self.w1 + self.b1).tanh() @ self.w2

    model = seeded(Rows())
    model.get_parameter("w1").data[:, :4] = 0
    result = compacted(model, (6,))
    assert result.parameters_after == 6 * 5 + 5 + 5 * 3 + 3
    assert result.removed == {"w1": (9, 5)}
    assert operators(result.model) == ["MatMul", "Add", "Tanh", "Gemm"]


def test_what_is_not_understood_keeps_its_channels_and_is_named() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(10, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.out(torch.cat([self.a(x).relu(), self.b(x).relu()], dim=1)))

    model = seeded(Joined())
    kill(model.get_submodule("a"), 0)
    result = compacted(model, (6,))
    assert result.removed == {}
    assert result.untouched == ("cat: Concat is not an operator that can be followed",)


def test_rounding_keeps_dead_channels_as_zeros_and_never_more_than_there_were() -> None:
    model = seeded(nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 3)))
    kill(model[0], *range(21))
    kill(model[2], *range(3))
    data = convert(model, (6,), METADATA)
    assert compact(data).removed == {"0": (40, 19), "2": (20, 17)}
    rounded = compact(data, round_to=16)
    assert rounded.removed == {"0": (40, 32)}
    assert multiply_accumulates(rounded.model).remaining == multiply_accumulates(compact(data).model).remaining
    assert differ(of(model), rounded.model, (6,)) < 1e-4


def test_multiply_accumulates_count_each_weight_once_for_every_position() -> None:
    model = seeded(nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.Flatten(), nn.Linear(54, 2)))
    model.get_parameter("0.weight").data[0, 0, 0, 0] = 0
    model.get_parameter("2.weight").data[0, :5] = 0
    macs = multiply_accumulates(convert(model, (4, 8, 8), METADATA))
    assert (macs.dense, macs.remaining) == (6 * 18 * 9 + 108, (6 * 18 - 1) * 9 + 103)
    first, last = macs.layers
    assert first == LayerWork("0", weights=6 * 18, kept=6 * 18 - 1, dense=6 * 18 * 9, remaining=(6 * 18 - 1) * 9)
    assert (last.name, last.kept, last.weights) == ("2", 103, 108)


@pytest.mark.parametrize("data", [b"", b"not onnx", b"\x08\x0a"])
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    with pytest.raises(ExportError, match="not a valid ONNX file"):
        compact(data)
    with pytest.raises(ExportError, match="not a valid ONNX file"):
        multiply_accumulates(data)


def test_a_constant_that_does_not_fill_its_shape_is_refused() -> None:
    proto = onnx.load_model_from_string(convert(nn.Linear(6, 3).eval(), (6,), METADATA))
    proto.graph.initializer[0].raw_data = b"\0" * 4
    with pytest.raises(ExportError, match=r"cannot be read|not a valid ONNX file"):
        compact(proto.SerializeToString())


def test_a_graph_with_branches_is_left_alone_and_named() -> None:
    def branch(name: str) -> onnx.GraphProto:
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node("Identity", ["rows"], [name])], name, [], [value])

    nodes = [
        helper.make_node("MatMul", ["input", "weight"], ["rows"]),
        helper.make_node("If", ["flag"], ["logits"], then_branch=branch("yes"), else_branch=branch("no")),
    ]
    tensors = [
        numpy_helper.from_array(np.zeros((2, 2), np.float32), "weight"),
        numpy_helper.from_array(np.array(True), "flag"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("input", "logits")]
    graph = helper.make_graph(nodes, "branches", ends[:1], ends[1:], tensors)
    data = bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    )
    result = compact(data)
    assert result.model == data
    assert result.untouched == ("the whole graph: a node of it holds a graph of its own",)


def test_weights_that_the_graph_computes_are_not_counted_as_zero_work() -> None:
    nodes = [
        helper.make_node("Neg", ["stored"], ["weight"]),
        helper.make_node("MatMul", ["input", "weight"], ["logits"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("input", "logits")]
    stored = [numpy_helper.from_array(np.ones((2, 2), np.float32), "stored")]
    graph = helper.make_graph(nodes, "coded", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(ExportError, match="weights of logits are computed in the graph"):
        multiply_accumulates(model.SerializeToString())


def test_a_rounding_below_one_is_refused() -> None:
    with pytest.raises(ExportError, match="multiples of 0"):
        compact(b"", round_to=0)


# --- the six networks ---------------------------------------------------------------------------------


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


# --- any small network --------------------------------------------------------------------------------


class Builder:
    """An ONNX graph that grows at its end."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw, self.random, self.fresh = draw, np.random.default_rng(draw(st.integers(0, 2**32 - 1))), count()
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.end, self.width = "input", 3

    def constant(self, array: np.ndarray) -> str:
        self.tensors.append(numpy_helper.from_array(array, f"c{next(self.fresh)}"))
        return self.tensors[-1].name

    def add(self, operator: str, *inputs: str, **options: Any) -> str:
        self.end = f"t{next(self.fresh)}"
        self.nodes.append(helper.make_node(operator, inputs, [self.end], **options))
        return self.end

    def vector(self, width: int, low: float = -1) -> np.ndarray:
        return self.random.uniform(low, 1, width).astype(np.float32)

    def sparse(self, *shape: int) -> np.ndarray:
        """Weights of which some rows, some columns and some others are zero; sometimes all of them."""
        weight = self.random.normal(size=shape).astype(np.float32)
        weight *= self.random.random(shape) < self.draw(st.sampled_from([1.0, 0.5, 0.1]))
        weight[self.random.random(shape[0]) < self.draw(st.sampled_from([0.7, 0.3, 0.0, 1.0]))] = 0
        weight[:, self.random.random(shape[1]) < self.draw(st.sampled_from([0.0, 0.3, 0.7]))] = 0
        return weight

    def conv(self, width: int, groups: int = 1) -> str:
        kernel = self.draw(st.sampled_from([3, 1]))
        pad = kernel // 2
        weight = self.constant(self.sparse(width, self.width // groups, kernel, kernel))
        bias = [self.constant(self.vector(width))] if self.draw(st.booleans()) else []
        self.width = width
        return self.add("Conv", self.end, weight, *bias, pads=[pad] * 4, kernel_shape=[kernel] * 2, group=groups)

    def image_step(self) -> None:
        start, width = self.end, self.width
        match self.draw(st.integers(0, 9)):
            case 0 | 1 | 2:
                self.conv(self.draw(st.integers(1, 8)))
            case 3:
                self.conv(width * self.draw(st.integers(1, 2)), groups=width)
            case 4:
                self.conv(width * 2, groups=2) if width % 2 == 0 else self.conv(4)
            case 5:
                self.add("Add", start, self.conv(width))
            case 6:
                self.add("Mul", start, self.add("Sigmoid", self.conv(width)))
            case 7:
                norm = [self.vector(width) * (self.random.random(width) < 0.8), *(self.vector(width) for _ in "bm")]
                names = [self.constant(array.astype(np.float32)) for array in (*norm, self.vector(width, 0.5))]
                self.add("BatchNormalization", start, *names)
            case 8:
                options = self.draw(st.sampled_from([{}, {"count_include_pad": 0}, {"count_include_pad": 1}]))
                self.add("AveragePool" if options else "MaxPool", start, kernel_shape=[3, 3], pads=[1] * 4, **options)
            case 9:
                self.add("Add", start, self.constant(self.vector(width).reshape(1, width, 1, 1)))
        if self.draw(st.booleans()):
            self.add(self.draw(st.sampled_from(["Relu", "Tanh", "HardSwish"])), self.end)

    def row_step(self, width: int) -> None:
        transposed = self.draw(st.booleans())
        weight = self.sparse(width, self.width)
        if self.draw(st.booleans()):
            matrix, bias = self.constant(weight.T.copy()), self.constant(self.vector(width))
            self.add("Add", self.add("MatMul", self.end, matrix), bias)
        else:
            matrix, bias = self.constant(weight if transposed else weight.T.copy()), self.constant(self.vector(width))
            self.add("Gemm", self.end, matrix, bias, transB=int(transposed))
        self.width = width

    def build(self) -> bytes:
        for _ in range(self.draw(st.integers(0, 5))):
            self.image_step()
        match self.draw(st.integers(0, 2)):
            case 0:
                self.add("Flatten", self.end)
                self.width *= 16
            case 1:
                self.add("Reshape", self.end, self.constant(np.array([-1, self.width * 16])))
                self.width *= 16
            case 2:
                self.add("ReduceMean", self.end, self.constant(np.array([2, -1])), keepdims=0)
        for _ in range(self.draw(st.integers(0, 2))):
            self.row_step(self.draw(st.integers(1, 8)))
            self.add(self.draw(st.sampled_from(["Relu", "Sigmoid"])), self.end)
        self.row_step(3)
        self.nodes[-1].output[0] = "logits"
        graph = helper.make_graph(
            self.nodes,
            "any",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 4, 4])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
            self.tensors,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return bytes(model.SerializeToString())


@st.composite
def files(draw: st.DrawFn) -> bytes:
    return Builder(draw).build()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=files())
def test_any_small_network_with_dead_structure_computes_what_it_did(data: bytes) -> None:
    session = open_session(data)
    result = checked(data, lambda x: infer(session, x), (3, 4, 4))
    assert result.parameters_after <= result.parameters_before + 64, "a bias is all that may be added"
