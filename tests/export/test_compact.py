"""``export.compact``: dead channels and neurons go, the function stays."""

import onnx
import pytest
import torch
from torch import nn

from export.compact import compact
from export.convert import convert
from export.macs import multiply_accumulates
from protocol.errors import ExportError
from tests.export.compacting import IMAGE, METADATA, compacted, differ, ignore, kill, of, operators, plain, seeded

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
def test_a_model_without_dead_structure_is_handed_back_byte_for_byte() -> None:
    data = convert(plain(), IMAGE, METADATA)
    result = compact(data)
    assert result.model == data
    assert result.removed == {}
    assert result.untouched == ()
    assert result.parameters_before == result.parameters_after == 8 * 27 + 8 + 4 * 512 + 4
    macs = multiply_accumulates(data)
    assert macs.dense == macs.remaining == 8 * 27 * 64 + 4 * 512


@pytest.mark.slow
def test_dead_and_unread_neurons_go_and_their_constants_move_into_the_next_bias() -> None:
    model = seeded(nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 9), nn.Sigmoid(), nn.Linear(9, 3)))
    kill(model[0], 0, 1, 2)
    ignore(model[2], 3)
    kill(model[2], 4)
    result = compacted(model, (6,))
    assert result.removed == {"0": (10, 6), "2": (9, 8)}
    assert result.parameters_after == 6 * 6 + 6 + 6 * 8 + 8 + 8 * 3 + 3


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_whole_dead_layer_leaves_constant_logits() -> None:
    model = seeded(nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 9), nn.ReLU(), nn.Linear(9, 3)))
    kill(model[2])
    assert compacted(model, (6,)).removed == {"0": (10, 1), "2": (9, 1)}


@pytest.mark.slow
def test_a_whole_dead_convolution_leaves_constant_logits() -> None:
    model = plain(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    kill(model[2])
    assert compacted(model).removed == {"0": (8, 1), "2": (8, 1)}


@pytest.mark.slow
def test_dead_last_weights_leave_constant_logits() -> None:
    model = plain()
    kill(model[3])
    assert compacted(model).removed == {"0": (8, 1)}


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize("data", [b"", b"not onnx", b"\x08\x0a"])
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    with pytest.raises(ExportError, match="not a valid ONNX file"):
        compact(data)
    with pytest.raises(ExportError, match="not a valid ONNX file"):
        multiply_accumulates(data)


@pytest.mark.slow
def test_a_constant_that_does_not_fill_its_shape_is_refused() -> None:
    proto = onnx.load_model_from_string(convert(nn.Linear(6, 3).eval(), (6,), METADATA))
    proto.graph.initializer[0].raw_data = b"\0" * 4
    with pytest.raises(ExportError, match=r"cannot be read|not a valid ONNX file"):
        compact(proto.SerializeToString())


def test_a_rounding_below_one_is_refused() -> None:
    with pytest.raises(ExportError, match="multiples of 0"):
        compact(b"", round_to=0)
