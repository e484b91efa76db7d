"""``export.describe``: what the file says, as plain data."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.convert import convert, save_onnx
from export.describe import describe
from protocol.errors import ExportError

pytestmark = pytest.mark.slow

WEIGHT = np.array([[0.0, 1.0, 0.0, -0.0], [2.0, 0.0, 3.0, 0.0]], np.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(WEIGHT))
        model.bias.fill_(1.0)
    path = tmp_path_factory.mktemp("describe") / "model.onnx"
    save_onnx(path, convert(model, (4,), {"model": "linear", "sparsity": "0.625"}))
    return path


def made_by_hand(initializers: list[TensorProto], sparse: list[onnx.SparseTensorProto]) -> onnx.ModelProto:
    """``logits = input + w``, with an unknown batch axis."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["input", "w"], ["logits"])],
        "add",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [None, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, 8])],
        initializers,
        sparse_initializer=sparse,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_converted_model_is_described_by_its_file(path: Path) -> None:
    data = path.read_bytes()
    told = describe(path)
    initializers = told.pop("initializers")
    assert isinstance(told.pop("producer"), str)
    assert told == {
        "file": "model.onnx",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "ir_version": 10,
        "opset": {"ai.onnx": 20},
        "inputs": [{"name": "input", "dtype": "float", "shape": ["batch", 4]}],
        "outputs": [{"name": "logits", "dtype": "float", "shape": ["batch", 2]}],
        "operators": {"Gemm": 1},
        "functions": [],
        "elements": 10,
        "zero_fraction": 0.5,
        "metadata": {"model": "linear", "sparsity": "0.625"},
    }
    assert isinstance(initializers, list)
    weight, bias = sorted(initializers, key=lambda tensor: -tensor["elements"])
    assert (weight["dtype"], weight["shape"], weight["elements"]) == ("float", [2, 4], 8)
    assert weight["zero_fraction"] == 0.625
    assert weight["bytes"] >= 32
    assert (bias["shape"], bias["zero_fraction"]) == ([2], 0.0)


def test_a_description_names_no_directory_and_json_can_write_it(path: Path) -> None:
    told = describe(path)
    assert json.loads(json.dumps(told)) == told
    assert str(path.parent) not in json.dumps(told)


def test_a_sparse_initializer_is_described_as_the_tensor_that_it_stands_for(tmp_path: Path) -> None:
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([1.0, 2.0], np.float32), "w"),
        numpy_helper.from_array(np.array([3, 5]), "at"),
        [8],
    )
    (tmp_path / "m").write_bytes(made_by_hand([], [sparse]).SerializeToString())
    told = describe(tmp_path / "m")
    assert told["initializers"] == [
        {
            "name": "w",
            "dtype": "float",
            "shape": [8],
            "elements": 8,
            "bytes": sparse.ByteSize(),
            "zero_fraction": 0.75,
        }
    ]
    assert told["inputs"] == [{"name": "input", "dtype": "float", "shape": [None, 8]}]


def test_a_file_without_constants_has_no_zeros(tmp_path: Path) -> None:
    proto = made_by_hand([], [])
    proto.graph.node[0].input[1] = "input"
    (tmp_path / "m").write_bytes(proto.SerializeToString())
    told = describe(tmp_path / "m")
    assert (told["initializers"], told["elements"], told["zero_fraction"]) == ([], 0, 0.0)


@pytest.mark.parametrize("content", [b"", b"no model", bytes(10)])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ExportError, match="not a valid ONNX file"):
        describe(tmp_path / "m")


def test_a_truncated_model_is_refused_or_described_never_a_crash(tmp_path: Path, path: Path) -> None:
    content = path.read_bytes()
    refused = 0
    for length in range(len(content)):
        (tmp_path / "m").write_bytes(content[:length])
        try:
            described = describe(tmp_path / "m")
        except ExportError:
            refused += 1
        else:  # cut between two fields after the graph: ONNX has no checksum, but the size and digest tell
            assert described["bytes"] == length
    assert refused > len(content) - 5


def test_weights_in_another_file_are_refused_wherever_that_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = numpy_helper.from_array(np.zeros(8, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    location = tensor.external_data.add()
    location.key, location.value = "location", "weights.bin"
    (tmp_path / "m").write_bytes(made_by_hand([tensor], []).SerializeToString())
    with pytest.raises(ExportError):
        describe(tmp_path / "m")
    (tmp_path / "weights.bin").write_bytes(bytes(32))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match="another file"):
        describe(tmp_path / "m")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot read .*absent"):
        describe(tmp_path / "absent")
