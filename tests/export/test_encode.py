"""``export.encode``: sparse weights take an order of magnitude fewer bytes, and come back bit for bit."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.reference import ReferenceEvaluator

from edge_client import models
from export import encode as module
from export.convert import convert
from export.encode import Form, decode, encode, gaps
from protocol.errors import ExportError

FOLDED = {"ScatterElements", "CumSum", "ConstantOfShape", "BitwiseAnd", "Gather", "Cast", "Slice"}


def initializers(data: bytes) -> dict[str, np.ndarray]:
    return {
        tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_model_from_string(data).graph.initializer
    }


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def session(data: bytes, optimised: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimised:
        options.optimized_model_filepath = str(optimised)
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def operators(data: bytes, folder: Path) -> Counter[str]:
    """What ONNX Runtime really runs."""
    session(data, folder / "optimised.onnx")
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def file_of(
    nodes: list[onnx.NodeProto],
    constants: Mapping[str, Any],
    shape: tuple[str | int, ...] = ("batch", 40),
    rank: int = 2,
) -> bytes:
    """A model from ``x: f32[shape]`` to ``y``, f32 of that rank."""
    graph = make_graph(
        nodes,
        "g",
        [make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = make_model(graph, opset_imports=[make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def adding(weight: np.ndarray) -> bytes:
    """A model that adds ``weight`` to its input."""
    return file_of([make_node("Add", ["x", "w"], ["y"])], {"w": weight}, (1,), max(1, weight.ndim))


def sparse(shape: tuple[int, ...], density: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape).astype(np.float32)
    return np.where(rng.random(shape) < density, values, np.float32(0))


def at(size: int, *positions: int) -> np.ndarray:
    weight = np.zeros(size, np.float32)
    weight[list(positions)] = 1.0 + np.arange(len(positions))
    return weight


@pytest.fixture(scope="module")
def small() -> bytes:
    """A network with convolution, batch norm that is folded in, and linear layers, half of it pruned hard."""
    torch.manual_seed(4)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 24, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(24, 24, 3),
        torch.nn.ReLU6(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(216, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 3),
    )
    with torch.no_grad():
        for layer, density in ((2, 0.3), (6, 0.05)):
            weight = net[layer].weight
            assert isinstance(weight, torch.Tensor)
            weight.copy_(torch.where(torch.rand(weight.shape) < density, weight, 0.0))
    return convert(net, (1, 8, 8), {"run": "r7", "round": "12"})


@pytest.fixture(scope="module")
def large() -> dict[str, bytes]:
    """The dense files of the networks over a million parameters."""
    torch.manual_seed(5)
    return {
        name: convert(models.build(name, (3, 32, 32), 10), (3, 32, 32), {})
        for name in ("cifar-cnn", "vgg9", "resnet18")
    }


def pruned(data: bytes, sparsities: Sequence[float], alike: bool) -> Iterator[bytes]:
    """The file with new weights and one magnitude threshold for all; ``alike`` gives all layers the same density."""
    model = onnx.load_model_from_string(data)
    rng = np.random.default_rng(6)
    kernels = [tensor for tensor in model.graph.initializer if len(tensor.dims) > 1]
    weights = [rng.standard_normal(tuple(kernel.dims), np.float32) for kernel in kernels]
    if not alike:
        weights = [weight * np.float32(np.prod(weight.shape[1:]) ** -0.25) for weight in weights]
    magnitudes = np.sort(np.concatenate([np.abs(weight).ravel() for weight in weights]))
    for sparsity in sparsities:
        threshold = magnitudes[int(sparsity * len(magnitudes))]
        for kernel, weight in zip(kernels, weights, strict=True):
            kernel.CopyFrom(numpy_helper.from_array(weight * (np.abs(weight) >= threshold), kernel.name))
        yield bytes(model.SerializeToString())


# --- the streams


@given(st.sets(st.integers(0, 3000)), st.integers(1, 300))
def test_the_sums_of_a_gap_stream_strictly_increase_and_stop_at_every_position(where: set[int], largest: int) -> None:
    positions = np.array(sorted(where), np.int64)
    steps, stops = gaps(positions, largest)
    reached = np.cumsum(steps)
    assert (reached[stops] == positions).all()
    assert (np.diff(reached) > 0).all()
    assert (steps <= largest).all()
    assert (steps >= 0).all()
    assert steps.shape == stops.shape


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_positions_in_any_size_come_back_through_onnx_runtime(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 1500))
    weight = np.zeros(size, np.float32)
    for position in data.draw(st.sets(st.integers(0, size - 1), max_size=40)):
        weight[position] = data.draw(st.floats(width=32))
    dense = adding(weight)
    encoding = encode(dense)
    assert same_bits(initializers(decode(encoding.model))["w"], np.where(weight == 0, np.float32(0), weight)) or (
        encoding.negative_zeros == 0 and same_bits(initializers(decode(encoding.model))["w"], weight)
    )
    assert len(encoding.model) <= len(dense)


@pytest.mark.parametrize(
    ("weight", "form"),
    [
        (at(1000, 0), Form.GAPS8),
        (at(1000, 254), Form.GAPS8),
        (at(1000, 999), Form.GAPS16),
        (at(1000, 0, 999), Form.GAPS16),
        (at(1000, *range(5, 600, 11)), Form.GAPS8),
        (at(1000, 255), Form.GAPS8),
        (at(1000, *range(0, 250, 5), 500, 756, 999), Form.GAPS8),
        (at(9000, 8999), Form.GAPS16),
        (at(200_000, 65_535), Form.GAPS16),
        (at(200_000, 65_536, 199_999), Form.GAPS16),
        (at(1000, *range(0, 1000, 3)), Form.BITMAP),
        (at(8001, *range(0, 8001, 4)), Form.BITMAP),
        (at(1007, *range(1, 1007, 2)), Form.BITMAP),
        (at(1000, *range(1000)), Form.DENSE),
        (np.full(1000, 0.25, np.float32), Form.CONSTANT),
        (np.zeros((10, 10, 10), np.float32), Form.CONSTANT),
        (np.float32(0.0).reshape(()), Form.DENSE),
        (np.zeros((3, 0), np.float32), Form.DENSE),
        (at(12, 3), Form.DENSE),
    ],
)
def test_each_tensor_takes_its_smallest_form_and_comes_back(weight: np.ndarray, form: Form) -> None:
    encoding = encode(adding(weight))
    assert encoding.tensors["w"].form is form
    assert same_bits(initializers(decode(encoding.model))["w"], weight)


@pytest.mark.parametrize("density", [0.02, 0.4])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.uint8])
def test_every_type_of_weights_is_coded_and_folded(dtype: Any, density: float, tmp_path: Path) -> None:
    weight = (sparse((40, 50), density) * 40).astype(dtype)
    number = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = make_graph(
        [make_node("Transpose", ["w"], ["t"], perm=[1, 0]), make_node("Gather", ["t", "x"], ["y"])],
        "g",
        [make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [make_tensor_value_info("y", number, ["n", 40])],
        [numpy_helper.from_array(weight, "w")],
    )
    dense = make_model(graph, opset_imports=[make_opsetid("", 18)], ir_version=8).SerializeToString()
    encoding = encode(dense)
    assert encoding.tensors["w"].form is (Form.BITMAP if density > 0.1 else Form.GAPS8)
    assert same_bits(initializers(decode(encoding.model))["w"], weight)
    assert operators(encoding.model, tmp_path) == operators(dense, tmp_path) == {"Gather": 1}


def test_nan_infinity_and_subnormals_keep_every_bit() -> None:
    weight = at(800)
    weight.view(np.uint32)[[1, 9, 99, 400, 700, 701]] = [0x7FC01234, 0xFF800001, 0x7F800000, 1, 0x80000001, 0xFFFFFFFF]
    for tensor in (weight, np.tile(weight[699:702], 200)):
        encoding = encode(adding(tensor))
        assert encoding.tensors["w"].form not in {Form.DENSE, Form.CONSTANT}
        assert same_bits(initializers(decode(encoding.model))["w"], tensor)
        assert encoding.negative_zeros == 0


def test_negative_zeros_become_zeros_and_are_counted() -> None:
    weight = at(1000, 3, 300)
    weight[[4, 5, 998]] = -0.0
    encoding = encode(adding(weight))
    assert encoding.negative_zeros == 3
    assert same_bits(initializers(decode(encoding.model))["w"], at(1000, 3, 300))
    mixed = np.where(np.arange(500) % 2, np.float32(0), np.float32(-0.0))
    encoding = encode(adding(mixed))
    assert (encoding.negative_zeros, encoding.tensors["w"].form) == (250, Form.CONSTANT)


def test_a_tensor_of_negative_zeros_alone_and_one_left_dense_keep_them() -> None:
    for weight in (np.full(500, -0.0, np.float32), np.array([1, -0.0, 2], np.float32)):
        encoding = encode(adding(weight))
        assert encoding.negative_zeros == 0
        assert same_bits(initializers(decode(encoding.model))["w"], weight)


# --- the whole file


def test_a_coded_network_decodes_to_the_dense_one(small: bytes) -> None:
    encoding = encode(small)
    assert Counter(size.form for size in encoding.tensors.values()) >= Counter([Form.BITMAP, Form.GAPS8, Form.DENSE])
    before, after = initializers(small), initializers(decode(encoding.model))
    assert before.keys() == after.keys() == encoding.tensors.keys()
    assert all(same_bits(before[name], after[name]) for name in before)
    one, two = (onnx.load_model_from_string(data) for data in (small, decode(encoding.model)))
    for model in (one, two):
        model.graph.ClearField("initializer")
    assert one == two


def test_names_batch_axis_and_metadata_stay_and_the_result_is_valid(small: bytes) -> None:
    dense, coded = (onnx.load_model_from_string(data) for data in (small, encode(small).model))
    onnx.checker.check_model(coded, full_check=True)
    for field in ("input", "output"):
        assert list(getattr(dense.graph, field)) == list(getattr(coded.graph, field))
    assert list(dense.metadata_props) == list(coded.metadata_props)
    assert list(dense.opset_import) == list(coded.opset_import)
    assert coded.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_onnx_runtime_folds_the_coding_and_computes_the_same_bits(small: bytes, tmp_path: Path) -> None:
    coded = encode(small).model
    assert operators(coded, tmp_path) == operators(small, tmp_path)
    assert not FOLDED & operators(coded, tmp_path).keys()
    one, two = session(small), session(coded)
    for batch in (1, 5):
        x = np.random.default_rng(batch).standard_normal((batch, 1, 8, 8)).astype(np.float32)
        assert same_bits(one.run(None, {"input": x})[0], two.run(None, {"input": x})[0])


def test_the_reference_evaluator_of_onnx_computes_the_same_bits(small: bytes) -> None:
    x = np.random.default_rng(2).standard_normal((2, 1, 8, 8)).astype(np.float32)
    files = (small, encode(small).model)
    one, two = (list(ReferenceEvaluator(onnx.load_model_from_string(data)).run(None, {"input": x})) for data in files)
    assert same_bits(one[0], two[0])


def test_the_sizes_of_the_tensors_add_up_to_that_of_the_file(small: bytes) -> None:
    encoding = encode(small)
    saved = sum(size.dense_bytes - size.coded_bytes for size in encoding.tensors.values())
    assert abs(len(small) - len(encoding.model) - saved) <= 4  # of the graph's length field
    assert all(size.coded_bytes <= size.dense_bytes for size in encoding.tensors.values())


def test_constants_that_layers_share_are_stored_once() -> None:
    weights = {f"w{layer}": sparse((40, 40), 0.05, layer) for layer in range(3)}
    nodes = [
        make_node("MatMul", ["x", "w0"], ["a"]),
        make_node("MatMul", ["a", "w1"], ["b"]),
        make_node("MatMul", ["b", "w2"], ["y"]),
    ]
    encoding = encode(file_of(nodes, weights))
    first, second, third = encoding.tensors.values()
    assert {size.form for size in encoding.tensors.values()} == {Form.GAPS8}
    assert len([name for name in initializers(encoding.model) if name.startswith("~")]) == 3 + 3 * 2
    assert first.coded_bytes > max(second.coded_bytes, third.coded_bytes)


def test_the_same_file_gives_the_same_bytes_and_decoding_and_coding_again_the_same_size(small: bytes) -> None:
    encoding = encode(small)
    assert encode(small) == encoding
    assert encode(decode(encoding.model)).model != b""
    assert abs(len(encode(decode(encoding.model)).model) - len(encoding.model)) < 50


def test_a_file_without_sparse_weights_is_left_as_it_is() -> None:
    dense = file_of([make_node("MatMul", ["x", "w"], ["y"])], {"w": 1 + np.abs(sparse((40, 40), 1.0))})
    encoding = encode(dense)
    assert len(encoding.model) == len(dense)
    assert decode(encoding.model) == encoding.model
    assert decode(dense) is dense


def test_a_weight_stored_as_a_list_of_numbers_is_coded_like_one_of_raw_bytes() -> None:
    weight = at(1000, 3, 200)
    model = onnx.load_model_from_string(adding(weight))
    model.graph.initializer[0].CopyFrom(onnx.helper.make_tensor("w", TensorProto.FLOAT, [1000], weight.tolist()))
    encoding = encode(model.SerializeToString())
    assert encoding.tensors["w"].form is Form.GAPS8
    assert same_bits(initializers(decode(encoding.model))["w"], weight)


# --- what stays an initializer


def test_bounds_scales_shapes_and_overridable_weights_stay_initializers() -> None:
    constants: dict[str, Any] = {
        "w": sparse((40, 40), 0.05),
        "low": np.float32(0).reshape(()),
        "high": np.float32(6).reshape(()),
        "shape": np.array([0, 40], np.int64),
        "scale": np.ones(40, np.float32),
        "zero": np.zeros(40, np.int8),
        "norm": np.zeros(40, np.float32),
    }
    nodes = [
        make_node("MatMul", ["x", "w"], ["a"]),
        make_node("Clip", ["a", "low", "high"], ["b"]),
        make_node("Reshape", ["b", "shape"], ["c"]),
        make_node("QuantizeLinear", ["c", "scale", "zero"], ["d"], axis=1),
        make_node("DequantizeLinear", ["d", "scale", "zero"], ["e"], axis=1),
        make_node("LayerNormalization", ["e", "norm"], ["y"]),
    ]
    forms = {name: size.form for name, size in encode(file_of(nodes, constants)).tensors.items()}
    assert forms.pop("w") is Form.GAPS8
    assert set(forms.values()) == {Form.DENSE}


def test_a_weight_that_a_caller_may_override_or_reads_back_stays() -> None:
    model = onnx.load_model_from_string(
        file_of([make_node("MatMul", ["x", "w"], ["y"])], {"w": sparse((40, 40), 0.05)})
    )
    weight = make_tensor_value_info("w", TensorProto.FLOAT, [40, 40])
    for values in (model.graph.input, model.graph.output):
        values.append(weight)
        assert encode(model.SerializeToString()).tensors["w"].form is Form.DENSE
        values.pop()
    assert encode(model.SerializeToString()).tensors["w"].form is Form.GAPS8


def test_a_weight_that_a_nested_graph_reads_stays() -> None:
    out = [make_tensor_value_info("o", TensorProto.FLOAT, [None, None])]
    branches = {
        "then_branch": make_graph([make_node("MatMul", ["x", "w"], ["o"])], "t", [], out),
        "else_branch": make_graph([make_node("Identity", ["x"], ["o"])], "e", [], out),
    }
    nodes = [make_node("MatMul", ["x", "w"], ["a"]), make_node("If", ["yes"], ["b"], **branches)]
    nodes.append(make_node("Add", ["a", "b"], ["y"]))
    encoding = encode(file_of(nodes, {"w": sparse((40, 40), 0.05), "yes": np.array(True)}))
    assert encoding.tensors["w"].form is Form.DENSE


# --- int8


def quantised(density: float) -> bytes:
    """Quantise, convolve, requantise, multiply: int8 weights by channel, int32 biases, in QDQ form."""
    rng = np.random.default_rng(7)

    def weight(*shape: int) -> np.ndarray:
        return (rng.integers(-127, 127, shape) * (rng.random(shape) < density)).astype(np.int8)

    constants: dict[str, Any] = {
        "s": np.float32(0.05).reshape(()),
        "z": np.uint8(128).reshape(()),
        "kernel": weight(32, 16, 3, 3),
        "kernel_scale": np.full(32, 0.01, np.float32),
        "kernel_zero": np.zeros(32, np.int8),
        "bias": rng.integers(-500, 500, 32).astype(np.int32),
        "bias_scale": np.full(32, 0.0005, np.float32),
        "bias_zero": np.zeros(32, np.int32),
        "linear": weight(512, 128),
        "linear_scale": np.full(128, 0.01, np.float32),
        "linear_zero": np.zeros(128, np.int8),
    }
    nodes = [
        make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        make_node("DequantizeLinear", ["kernel", "kernel_scale", "kernel_zero"], ["k"], axis=0),
        make_node("DequantizeLinear", ["bias", "bias_scale", "bias_zero"], ["b"], axis=0),
        make_node("Conv", ["xd", "k", "b"], ["c"], pads=[1, 1, 1, 1]),
        make_node("QuantizeLinear", ["c", "s", "z"], ["cq"]),
        make_node("DequantizeLinear", ["cq", "s", "z"], ["cd"]),
        make_node("Flatten", ["cd"], ["f"]),
        make_node("QuantizeLinear", ["f", "s", "z"], ["fq"]),
        make_node("DequantizeLinear", ["fq", "s", "z"], ["fd"]),
        make_node("DequantizeLinear", ["linear", "linear_scale", "linear_zero"], ["l"], axis=1),
        make_node("MatMul", ["fd", "l"], ["m"]),
        make_node("QuantizeLinear", ["m", "s", "z"], ["mq"]),
        make_node("DequantizeLinear", ["mq", "s", "z"], ["y"]),
    ]
    return file_of(nodes, constants, ("batch", 16, 4, 4))


@pytest.mark.parametrize(("density", "form"), [(0.3, Form.BITMAP), (0.05, Form.GAPS8), (0.0, Form.CONSTANT)])
def test_int8_weights_are_coded_and_still_run_in_integer_kernels(density: float, form: Form, tmp_path: Path) -> None:
    dense = quantised(density)
    encoding = encode(dense)
    assert {name for name, size in encoding.tensors.items() if size.form is form} == {"kernel", "linear"}
    assert all(
        encoding.tensors[name].form is Form.DENSE for name in encoding.tensors if name not in {"kernel", "linear"}
    )
    assert operators(encoding.model, tmp_path) == operators(dense, tmp_path)
    assert operators(encoding.model, tmp_path)["QLinearConv"] == 1
    x = np.random.default_rng(8).standard_normal((3, 16, 4, 4)).astype(np.float32)
    assert same_bits(session(dense).run(None, {"x": x})[0], session(encoding.model).run(None, {"x": x})[0])


# --- sizes of real networks


@pytest.mark.parametrize(("name", "alike"), [("cifar-cnn", True), ("vgg9", True), ("vgg9", False), ("resnet18", True)])
def test_a_pruned_network_of_a_million_parameters_shrinks_by_an_order_of_magnitude(
    large: dict[str, bytes], name: str, alike: bool
) -> None:
    ratios = (7.8, 14.0, 55.0)
    for dense, ratio in zip(pruned(large[name], (0.9, 0.95, 0.99), alike), ratios, strict=True):
        assert len(dense) / len(encode(dense).model) >= ratio


def test_a_pruned_resnet_runs_the_graph_and_the_bits_of_the_dense_one(large: dict[str, bytes], tmp_path: Path) -> None:
    (dense,) = pruned(large["resnet18"], [0.95], alike=False)
    coded = encode(dense).model
    x = np.random.default_rng(9).standard_normal((1, 3, 32, 32)).astype(np.float32)
    assert operators(coded, tmp_path) == operators(dense, tmp_path)
    assert same_bits(session(dense).run(None, {"input": x})[0], session(coded).run(None, {"input": x})[0])


# --- refusals


def test_what_is_no_onnx_file_is_refused_both_ways() -> None:
    for data in (b"", b"not a model", adding(at(9, 1))[:-7]):
        for function in (encode, decode):
            with pytest.raises(ExportError, match="not a valid ONNX file"):
                function(data)


def test_a_coded_file_is_not_coded_again(small: bytes) -> None:
    with pytest.raises(ExportError, match="give the dense file"):
        encode(encode(small).model)


def test_an_old_operator_set_is_refused() -> None:
    model = onnx.load_model_from_string(adding(at(1000, 1)))
    model.opset_import[0].version = 17
    with pytest.raises(ExportError, match="operator set 17"):
        encode(model.SerializeToString())


def test_weights_in_another_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load_model_from_string(adding(at(1000, 1)))
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match="file"):
        encode((tmp_path / "m.onnx").read_bytes())


@pytest.mark.parametrize("letter", ["g", "v"])
def test_a_damaged_stream_is_refused(letter: str) -> None:
    model = onnx.load_model_from_string(encode(adding(at(1000, 3, 40, 90, 800))).model)
    stream = next(tensor for tensor in model.graph.initializer if tensor.name == f"~0{letter}")
    array = numpy_helper.to_array(stream)
    broken = np.full_like(array, 255) if letter == "g" else array[:-1]
    stream.CopyFrom(numpy_helper.from_array(broken, stream.name))
    with pytest.raises(ExportError):
        decode(model.SerializeToString())


def test_a_coding_that_does_not_decode_to_the_same_bits_is_never_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(positions: np.ndarray, largest: int) -> tuple[np.ndarray, np.ndarray]:
        return gaps(positions + 1, largest)

    monkeypatch.setattr(module, "gaps", shifted)
    with pytest.raises(ExportError, match="w does not decode to the same bits"):
        encode(adding(at(1000, 3, 40)))
