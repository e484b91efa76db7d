"""``export.encode``: a coded file decodes to the dense one and computes the same bits; anything else is refused."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.helper import make_graph, make_node, make_tensor_value_info
from onnx.reference import ReferenceEvaluator

from export import encode as module
from export.convert import convert
from export.encode import Form, decode, encode, gaps
from protocol.errors import ExportError
from tests.export.coding import adding, at, file_of, initializers, operators, same_bits, session, sparse

pytestmark = pytest.mark.slow

FOLDED = {"ScatterElements", "CumSum", "ConstantOfShape", "BitwiseAnd", "Gather", "Cast", "Slice"}


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
