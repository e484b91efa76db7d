"""``serve.trial`` and ``model``: hostile and foreign files."""

import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from protocol.errors import ModelError
from serve.trial import Limits, load
from tests.serve.serving import SERVE, expected, finished, labelled, linear, rows, save

LIMITS = Limits(memory_bytes=1 << 30, seconds=120)


def value(name: str, shape: list[str | int | None], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def outside(location: str) -> onnx.ModelProto:
    """A model whose weights are said to lie in another file."""
    model = linear()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return model


def outside_in_a_constant() -> onnx.ModelProto:
    hidden = onnx.TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    hidden.external_data.add(key="location", value="../../../etc/passwd")
    model = linear()
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=hidden))
    return model


def cyclic() -> onnx.ModelProto:
    nodes = [helper.make_node("Add", ["input", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    return finished(helper.make_graph(nodes, "g", [value("input", ["n", 2])], [value("b", ["n", 2])]))


def absurd() -> onnx.ModelProto:
    """A constant of 2^40 floats, asked for in a few bytes."""
    shape = numpy_helper.from_array(np.array([1 << 20, 1 << 20]), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0),
        helper.make_node("Add", ["input", "sum"], ["output"]),
    ]
    return finished(helper.make_graph(nodes, "g", [value("input", ["n", 2])], [value("output", ["n", 2])], [shape]))


def endless() -> onnx.ModelProto:
    """A loop that never ends."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["on"]), helper.make_node("Add", ["state", "one"], ["next"])],
        "body",
        [value("i", [], TensorProto.INT64), value("going", [], TensorProto.BOOL), value("state", ["n", 2])],
        [value("on", [], TensorProto.BOOL), value("next", ["n", 2])],
        [numpy_helper.from_array(np.array(1, np.float32), "one")],
    )
    truth = numpy_helper.from_array(np.array(True), "true")
    nodes = [helper.make_node("Loop", ["", "true", "input"], ["output"], body=body)]
    return finished(helper.make_graph(nodes, "g", [value("input", ["n", 2])], [value("output", ["n", 2])], [truth]))


def one_node(operator: str, inputs: list[onnx.ValueInfoProto], output: onnx.ValueInfoProto) -> onnx.ModelProto:
    node = helper.make_node(operator, [one.name for one in inputs], [output.name])
    return finished(helper.make_graph([node], "g", inputs, [output]))


HOSTILE = {
    "bad magic": (b"\x89PNG\r\n\x1a\n" * 10, "is not an ONNX file|not a valid ONNX model"),
    "empty": (b"", "not a valid ONNX model"),
    "truncated": (linear().SerializeToString()[:-40], "is not an ONNX file"),
    "path traversal": (outside("../../../etc/passwd"), "keeps the tensor 'weight' in another file"),
    "absolute path": (outside("/etc/passwd"), "keeps the tensor 'weight' in another file"),
    "hidden in a constant": (outside_in_a_constant(), "keeps the tensor 'hidden' in another file"),
    "cyclic": (cyclic(), "not a valid ONNX model"),
    "absurd shapes": (absurd(), "cannot load it|cannot compute|memory|trial ended"),
    "unknown operator": (one_node("Frobnicate", [value("input", ["n", 2])], value("y", ["n", 2])), "not a valid ONNX"),
    "text": (
        one_node("Identity", [value("input", ["n"], TensorProto.STRING)], value("y", ["n"], TensorProto.STRING)),
        "only tensors of numbers",
    ),
    "no batch axis": (one_node("Relu", [value("input", [1, 2])], value("y", [1, 2])), "no free batch axis"),
    "rows merged": (one_node("ReduceSum", [value("input", ["n", 2])], value("y", [1, 1])), "rows cannot be told apart"),
}


def content(model: onnx.ModelProto | bytes) -> bytes:
    return model if isinstance(model, bytes) else model.SerializeToString()


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    model, told = HOSTILE[name]
    file = tmp_path / "model.onnx"
    file.write_bytes(content(model))
    with pytest.raises(ModelError, match=f"{file} cannot be served: .*({told})"):
        load(file, 1, LIMITS)


@pytest.mark.slow
def test_a_file_that_never_finishes_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"takes longer than 3 s|trial ended with signal"):
        load(save(endless(), tmp_path / "model.onnx"), 1, Limits(seconds=3))


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    with file.open("wb") as sparse:
        sparse.truncate(3 << 30)
    with pytest.raises(ModelError, match="has 3221225472 bytes, more than the 1073741824"):
        load(file, 1, LIMITS)


def test_an_exported_model_is_loaded_with_its_metadata(tmp_path: Path) -> None:
    source = labelled()
    model = load(save(source, tmp_path / "model.onnx"), 1, LIMITS)
    assert model.properties["sparsity"] == "0.950000"
    assert [tensor.describe() for tensor in model.inputs.values()] == [
        {"name": "input", "datatype": "FP32", "shape": [-1, 1, 4, 4]}
    ]
    assert np.allclose(model.run({"input": rows(3)})[0], expected(source, rows(3)), rtol=1e-5)


def test_a_foreign_model_with_another_free_axis_is_served(tmp_path: Path) -> None:
    source = one_node("Relu", [value("input", ["n", None])], value("y", ["n", None]))
    model = load(save(source, tmp_path / "model.onnx"), 1, LIMITS)
    assert model.inputs["input"].fitting([2, 7]) == (2, 7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bad magic", "path traversal", "cyclic", "absurd shapes"])
def test_the_command_refuses_a_hostile_file_in_one_line(tmp_path: Path, name: str) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content(HOSTILE[name][0]))
    command = [str(SERVE), str(file), "--port", "0", "--grpc-port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: {file} cannot be served: ")
    assert "Traceback" not in ended.stderr
