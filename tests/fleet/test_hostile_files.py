"""Files that somebody made to do harm, or that broke on the way: one line of error and exit code 1, soon."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import TensorProto, numpy_helper
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from protocol import checkpoint
from tests.fleet.command import call

WEIGHTS = np.ones((6, 6), np.float32)


def graph(*nodes: onnx.NodeProto, width: int = 6) -> onnx.ModelProto:
    values = [make_tensor_value_info("input", TensorProto.FLOAT, ("batch", width))]
    outputs = [make_tensor_value_info("logits", TensorProto.FLOAT, ("batch", "n"))]
    made = make_graph([*nodes], "g", values, outputs, [numpy_helper.from_array(WEIGHTS, "w")])
    return make_model(made, opset_imports=[make_opsetid("", 20)], ir_version=10)


def elsewhere(location: str, attribute: bool = False) -> bytes:
    """A model that says its weights are in another file."""
    tensor = TensorProto(name="w", dims=(6, 6), data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    model = graph(make_node("MatMul", ["input", "w"], ["logits"]))
    if attribute:
        model.graph.node.insert(0, make_node("Constant", [], ["w"], value=tensor))
        del model.graph.initializer[0]
    else:
        model.graph.initializer[0].CopyFrom(tensor)
    return bytes(model.SerializeToString())


def claiming(*dims: int) -> bytes:
    """A model with a constant that holds fewer values than its shape."""
    model = graph(make_node("MatMul", ["input", "w"], ["logits"]))
    model.graph.initializer[0].dims[:] = dims
    return bytes(model.SerializeToString())


CYCLE = graph(
    make_node("Add", ["input", "b"], ["a"]), make_node("Relu", ["a"], ["b"]), make_node("Relu", ["b"], ["logits"])
)
GOOD = bytes(graph(make_node("MatMul", ["input", "w"], ["logits"])).SerializeToString())
UNKNOWN_TYPE = graph(make_node("MatMul", ["input", "w"], ["logits"]))
UNKNOWN_TYPE.graph.initializer[0].data_type = 114
ONNX_FILES = {
    "a constant of no known type": bytes(UNKNOWN_TYPE.SerializeToString()),
    "empty": b"",
    "bad magic": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "cut off": GOOD[:-40],
    "path traversal": elsewhere("../../../../etc/passwd"),
    "an absolute path": elsewhere("/etc/passwd"),
    "path traversal in a node": elsewhere("../secret", attribute=True),
    "a claim of 4 TB": claiming(1 << 20, 1 << 20),
    "a claim that overflows": claiming(1 << 40, 1 << 40),
    "a negative size": claiming(-6, -6),
    "a cycle": bytes(CYCLE.SerializeToString()),
    "deeply nested": b"\x3a" * 5000,
    "a name that is no text": GOOD.replace(b"MatMul", b"MatM\xff\xff"),
}
SAFETENSORS = {
    "empty": b"",
    "bad magic": b"PK\x03\x04" + bytes(100),
    "a header longer than the file": struct.pack("<Q", 1 << 62) + b"{}",
    "a header that is no JSON": struct.pack("<Q", 8) + b"not json",
    "a tensor beyond the end": struct.pack("<Q", 60)
    + b'{"a":{"dtype":"F32","shape":[9999999],"data_offsets":[0,4]}}'.ljust(60),
    "a pickle": b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
}


def test_a_type_of_elements_that_onnx_does_not_know_is_described_as_unknown(tmp_path: Path) -> None:
    model = graph(make_node("MatMul", ["input", "w"], ["logits"]))
    model.graph.output[0].type.tensor_type.elem_type = 333
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    result = call("inspect", tmp_path / "model.onnx")
    assert result.exit_code == 0
    assert "unknown type 333" in result.output


def refused(result: Result) -> None:
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output


@pytest.mark.parametrize("name", ONNX_FILES)
def test_a_hostile_onnx_file_is_neither_described_nor_run(tmp_path: Path, name: str) -> None:
    path, good = tmp_path / "model.onnx", tmp_path / "good.onnx"
    path.write_bytes(ONNX_FILES[name])
    good.write_bytes(GOOD)
    refused(call("inspect", path))
    refused(call("bench", path))
    refused(call("bench", good, "--against", path))


@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_hostile_checkpoint_is_neither_described_nor_exported(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(SAFETENSORS[name])
    refused(call("inspect", path))
    refused(call("export", path, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_cannot_name_code_to_run(tmp_path: Path) -> None:
    path, metadata = tmp_path / "model.safetensors", {"input_shape": "[1, 8, 8]", "classes": "10"}
    checkpoint.save(path, checkpoint.Checkpoint({}, metadata | {"model": "os:abort"}))
    result = call("export", path, "--out", tmp_path / "out")
    refused(result)
    assert "give it as --model if you trust it" in result.stderr


def test_a_checkpoint_that_claims_a_huge_network_costs_no_memory(tmp_path: Path) -> None:
    path, metadata = tmp_path / "model.safetensors", {"input_shape": "[1, 40000, 40000]", "classes": "10"}
    checkpoint.save(path, checkpoint.Checkpoint({}, metadata | {"model": "digits-mlp"}))
    refused(call("export", path, "--out", tmp_path / "out"))


def test_a_file_larger_than_onnx_allows_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(3 << 30)  # sparse: takes no disk
    for command in ("inspect", "bench"):
        result = call(command, path)
        refused(result)
        assert "larger than the 2 GiB" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", ["inspect", "bench", "export"])
def test_a_pipe_without_a_writer_hangs_nobody(tmp_path: Path, command: str) -> None:
    path = tmp_path / ("model.safetensors" if command == "export" else "model.onnx")
    os.mkfifo(path)
    options = ["--out", str(tmp_path / "out")] if command == "export" else []
    arguments = [sys.executable, "-m", "fleet.entry", command, str(path), *options]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    for command, options in (("inspect", ()), ("bench", ()), ("export", ("--out", tmp_path / "out"))):
        refused(call(command, tmp_path, *options))
