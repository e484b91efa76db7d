"""``export.parity``: a file that computes something else is refused."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from export.convert import convert
from export.parity import accuracy, check_parity, infer, open_session
from protocol.errors import ExportError, ParityError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> nn.Sequential:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3))
    model(torch.randn(64, 6))
    return model.train()


@pytest.fixture(scope="module")
def exported(model: nn.Sequential) -> bytes:
    return convert(model, (6,), {})


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((40, 6)).astype(np.float32)


def with_last_bias(data: bytes, value: float) -> bytes:
    """The file with the first number of its last bias replaced."""
    proto = onnx.load_model_from_string(data)
    bias = next(tensor for tensor in proto.graph.initializer if list(tensor.dims) == [3])
    array = onnx.numpy_helper.to_array(bias).copy()
    array[0] = value
    bias.CopyFrom(onnx.numpy_helper.from_array(array, bias.name))
    return bytes(proto.SerializeToString())


def last_bias(model: nn.Sequential) -> float:
    last = model[-1]
    assert isinstance(last, nn.Linear)
    return last.bias[0].item()


def test_an_exported_model_agrees_with_torch(model: nn.Sequential, exported: bytes, inputs: np.ndarray) -> None:
    parity = check_parity(model, exported, inputs)
    assert parity.max_abs_diff < 1e-5
    assert parity.scale > 0
    assert parity.samples == 40
    assert model.training


def test_a_single_input_is_enough_for_every_batch_size(
    model: nn.Sequential, exported: bytes, inputs: np.ndarray
) -> None:
    assert check_parity(model, exported, inputs[:1]).samples == 1


@settings(max_examples=30, deadline=None)
@given(difference=st.floats(1e-3, 10.0) | st.floats(-10.0, -1e-3))
def test_an_altered_weight_is_refused_with_the_difference_that_it_makes(
    model: nn.Sequential, exported: bytes, inputs: np.ndarray, difference: float
) -> None:
    altered = with_last_bias(exported, last_bias(model) + difference)
    with pytest.raises(ParityError) as caught:
        check_parity(model, altered, inputs)
    assert caught.value.worst == pytest.approx(abs(difference), rel=1e-2)
    assert caught.value.tolerance >= 1e-4


def test_a_difference_below_the_tolerance_is_measured_and_accepted(
    model: nn.Sequential, exported: bytes, inputs: np.ndarray
) -> None:
    altered = with_last_bias(exported, last_bias(model) + 0.01)
    parity = check_parity(model, altered, inputs, tolerance=0.02)
    assert parity.max_abs_diff == pytest.approx(0.01, rel=1e-2)


def test_the_tolerance_grows_with_the_outputs(inputs: np.ndarray) -> None:
    model = nn.Linear(6, 3)
    with torch.no_grad():
        model.bias.fill_(1e6)
    exported = convert(model, (6,), {})
    altered = with_last_bias(exported, 1e6 + 50)
    assert check_parity(model, altered, inputs).max_abs_diff == pytest.approx(50, abs=1)
    with pytest.raises(ParityError):
        check_parity(model, with_last_bias(exported, 1e6 + 150), inputs)


def test_an_alteration_that_one_input_shows_is_found_among_many(
    model: nn.Sequential, exported: bytes, inputs: np.ndarray
) -> None:
    silent = np.zeros((100, 6), np.float32)
    silent[-1] = inputs[0]
    proto = onnx.load_model_from_string(exported)
    weight = next(tensor for tensor in proto.graph.initializer if 6 in tensor.dims)
    doubled = onnx.numpy_helper.to_array(weight) * np.float32(2)
    weight.CopyFrom(onnx.numpy_helper.from_array(doubled, weight.name))
    altered = bytes(proto.SerializeToString())
    check_parity(model, altered, silent[:-1])
    with pytest.raises(ParityError):
        check_parity(model, altered, silent)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_are_refused(
    model: nn.Sequential, exported: bytes, inputs: np.ndarray, value: float
) -> None:
    with pytest.raises(ParityError) as caught:
        check_parity(model, with_last_bias(exported, value), inputs)
    assert caught.value.worst == np.inf


def test_a_model_that_is_not_finite_is_refused_although_the_file_agrees(inputs: np.ndarray) -> None:
    model = nn.Linear(6, 3)
    with torch.no_grad():
        model.bias[0] = torch.inf
    with pytest.raises(ParityError):
        check_parity(model, convert(model, (6,), {}), inputs)


def test_outputs_of_another_shape_are_refused(exported: bytes, inputs: np.ndarray) -> None:
    with pytest.raises(ParityError) as caught:
        check_parity(nn.Linear(6, 4), exported, inputs)
    assert caught.value.worst == np.inf


def test_a_file_with_a_fixed_batch_size_is_refused(model: nn.Sequential, exported: bytes, inputs: np.ndarray) -> None:
    proto = onnx.load_model_from_string(exported)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(ExportError, match="cannot run a batch float32"):
        check_parity(model, bytes(proto.SerializeToString()), inputs)


@pytest.mark.parametrize(("n", "batches"), [(0, (1, 2)), (3, ()), (3, (0, 1))])
def test_nothing_to_compare_is_refused(
    model: nn.Sequential, exported: bytes, inputs: np.ndarray, n: int, batches: tuple[int, ...]
) -> None:
    with pytest.raises(ExportError, match="nothing to compare"):
        check_parity(model, exported, inputs[:n], batches=batches)


@pytest.mark.parametrize("data", [b"", b"no model"])
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    with pytest.raises(ExportError, match="cannot load"):
        open_session(data)


def test_a_file_with_other_names_is_refused(exported: bytes) -> None:
    with pytest.raises(ExportError, match="maps"):
        open_session(exported.replace(b"logits", b"scores"))


def test_a_session_runs_what_it_was_given(exported: bytes, inputs: np.ndarray) -> None:
    session = open_session(exported)
    assert infer(session, inputs[:5]).shape == (5, 3)
    with pytest.raises(ExportError, match="float64"):
        infer(session, inputs.astype(np.float64))


def test_accuracy_is_the_fraction_of_labels_that_are_met(exported: bytes) -> None:
    x = np.random.default_rng(4).standard_normal((600, 6)).astype(np.float32)
    y = infer(open_session(exported), x).argmax(axis=1)
    assert accuracy(exported, x, y) == 1.0
    y[:150] = (y[:150] + 1) % 3
    assert accuracy(exported, x, y) == 0.75
    assert accuracy(exported, x[:150], y[:150]) == 0.0


def test_accuracy_needs_one_label_for_each_sample(exported: bytes, inputs: np.ndarray) -> None:
    for x, y in ((inputs, np.zeros(39, int)), (inputs, np.zeros((40, 1), int)), (inputs[:0], np.zeros(0, int))):
        with pytest.raises(ExportError, match="one label"):
            accuracy(exported, x, y)


def test_accuracy_of_logits_that_are_not_finite_is_refused(exported: bytes, inputs: np.ndarray) -> None:
    with pytest.raises(ExportError, match="not finite"):
        accuracy(with_last_bias(exported, np.nan), inputs, np.zeros(40, int))


def test_accuracy_of_outputs_that_are_no_logits_is_refused(inputs: np.ndarray) -> None:
    float_type = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("ReduceSum", ["input", "axes"], ["logits"], keepdims=0)],
        "sums",
        [onnx.helper.make_tensor_value_info("input", float_type, ["batch", 6])],
        [onnx.helper.make_tensor_value_info("logits", float_type, ["batch"])],
        [onnx.numpy_helper.from_array(np.array([1]), "axes")],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(ExportError, match="one row of logits"):
        accuracy(bytes(proto.SerializeToString()), inputs, np.zeros(40, int))
