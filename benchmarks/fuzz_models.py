"""Files of models, and requests to a server of them, for the search for hostile bytes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from benchmarks.fuzz_reader import MIB, Reader, from_file
from fleet.results.inspect import describe_file
from protocol import checkpoint
from protocol.checkpoint import Checkpoint
from serve import rest, rpc
from serve.inference import fit
from serve.inference_pb2 import ModelInferRequest
from serve.model import Model, check
from serve.repository import EXPORT_FILE, Servable, model_file
from serve.tensors import Tensor
from serve.trial import Limits, load
from tests.protocol import frames

# --- models ------------------------------------------------------------------------------------------


def _onnx() -> bytes:
    """A linear model with a dense and a sparse constant, an attribute and metadata."""
    weight = np.arange(36, dtype=np.float32).reshape(6, 6)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["input", "w"], ["a"]),
            helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(weight[0], "c")),
            helper.make_node("Add", ["a", "b"], ["logits"]),
        ],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ("batch", 6))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("batch", 6))],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"labels": '["a", "b"]', "input_range": "[0, 1]"})
    return bytes(model.SerializeToString())


def of_files(folder: Path) -> Iterator[Reader]:
    """Those of files that hold a model, or a message; they write into the folder."""
    stored, shown = folder / "model.safetensors", folder / "model.onnx"
    tensors: dict[str, np.ndarray[Any, Any]] = {"a": np.ones((3, 2), np.float32), "b": np.zeros(4, np.int64)}
    checkpoint.save(stored, Checkpoint(tensors, {"model": "digits-mlp", "round": "3"}))
    saved = stored.read_bytes()
    yield Reader("checkpoint", [saved], from_file(stored, lambda: checkpoint.load(stored)))
    other = folder / "file"
    yield Reader("inspect", [saved, *frames.AGGREGATES], from_file(other, lambda: describe_file(other)))
    yield Reader("inspect onnx", [_onnx()], from_file(shown, lambda: describe_file(shown)), slack=MIB)


# --- serving -----------------------------------------------------------------------------------------


def of_serving(folder: Path) -> Iterator[Reader]:
    """Those of the server: its requests, and the models that it loads from the folder."""
    inputs = {
        "input": Tensor("input", "FP32", np.dtype("<f4"), (-1, 4)),
        "count": Tensor("count", "INT64", np.dtype("<i8"), (-1, 1)),
        "flag": Tensor("flag", "BOOL", np.dtype("?"), (-1, -1)),
    }
    outputs = tuple(Tensor(name, "FP32", np.dtype("<f4"), (-1, 4)) for name in ("logits", "more"))
    servable = Servable("m", "1", Model(inputs, outputs, {}, None), None)  # type: ignore[arg-type]  # nothing runs

    def of_rest(header: int | None) -> Callable[[bytes], object]:
        def ask(data: bytes) -> object:
            head, binary = rest.parse_request(data, None if header is None else str(header))
            return fit(servable, rest.given(head.inputs, binary), [output.name for output in head.outputs])

        return ask

    def of_rpc(data: bytes) -> object:
        request = rpc.parse_request(data)
        return fit(servable, rpc.given(request), [output.name for output in request.outputs])

    x, n, f = [[0.5, -1, 2, 3]] * 2, [[7], [1 << 60]], [[True, False]] * 2
    named = [("input", "FP32", [2, 4], x), ("count", "INT64", [2, 1], n), ("flag", "BOOL", [2, 2], f)]
    told = [{"name": name, "datatype": kind, "shape": shape, "data": data} for name, kind, shape, data in named]
    asked = [{"name": "more", "parameters": {"binary_data": True}}]
    full = json.dumps({"id": "7", "inputs": told, "outputs": asked}).encode()
    raws = [np.array(data, inputs[name].dtype).tobytes() for name, _, _, data in named]
    for one, raw in zip(told, raws, strict=True):
        del one["data"]
        one["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps({"inputs": told}).encode()
    typed = ModelInferRequest(model_name="m")
    for name, kind, shape, _ in named:
        typed.inputs.add(name=name, datatype=kind, shape=shape)
    binary = ModelInferRequest()
    binary.CopyFrom(typed)
    binary.raw_input_contents.extend(raws)
    typed.inputs[0].contents.fp32_contents.extend([0.5] * 8)
    typed.inputs[1].contents.int64_contents.extend([1, -1])
    typed.inputs[2].contents.bool_contents.extend([True] * 4)
    yield Reader("rest json", [full], of_rest(None))
    yield Reader("rest binary", [b"".join((head, *raws))], of_rest(len(head)))
    yield Reader("grpc", [typed.SerializeToString(), binary.SerializeToString()], of_rpc)
    place = folder / "export"
    exported = json.dumps({"recommended": "model.onnx", "files": {"model.onnx": {"bytes": 3}}}).encode()
    yield Reader("export.json", [exported], from_file(place / EXPORT_FILE, lambda: model_file(place)))
    yield Reader("model", [_onnx()], check, slack=MIB)
    tried, limits = folder / "tried.onnx", Limits(file_bytes=MIB, memory_bytes=2 << 30, seconds=20.0)
    yield Reader("model tried", [_onnx()], from_file(tried, lambda: load(tried, 1, limits)), slack=4 * MIB)
