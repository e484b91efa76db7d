"""Small models, and `pruneseal serve` as a process."""

import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]

SERVE = Path(sys.executable).with_name("pruneseal-serve")
LABELS = ("zero", "one", "two", "three")
SHAPE = (1, 4, 4)


def linear(seed: int = 0, shape: tuple[int, ...] = SHAPE, classes: int = 4, **metadata: str) -> onnx.ModelProto:
    """A flatten and a linear layer from float32[n, *shape] to float32[n, classes]."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(int(np.prod(shape)), classes)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.arange(classes, dtype=np.float32), "bias"),
        ],
    )
    return finished(graph, **metadata)


def labelled(seed: int = 0) -> onnx.ModelProto:
    """The linear model with all the metadata that an export has."""
    return linear(
        seed,
        labels=json.dumps(LABELS),
        input_range="[0, 255]",
        input_shape=json.dumps(SHAPE),
        run="0123abcd",
        sparsity="0.950000",
    )


def finished(graph: onnx.GraphProto, **metadata: str) -> onnx.ModelProto:
    """The model of a graph, in a version that every supported runtime reads."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, metadata)
    return model


def save(model: onnx.ModelProto, file: Path) -> Path:
    """Write a model, with the folders that its path needs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(model.SerializeToString())
    return file


def expected(model: onnx.ModelProto, rows: Array) -> Array:
    """What the linear model computes, by NumPy."""
    weight, bias = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
    return np.asarray(rows.reshape(len(rows), -1) @ weight + bias)


@dataclass
class Server:
    """A running `pruneseal serve`."""

    process: subprocess.Popen[str]
    host: str = ""
    port: int = 0
    grpc_port: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def events(self, message: str) -> list[dict[str, Any]]:
        """What it has logged with this message."""
        return [line for line in self.log if line["message"] == message]

    def memory(self) -> int:
        """The most bytes that it has held at a time."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def json(self, path: str) -> Any:
        """What a GET returns."""
        status, body = self.call("GET", path)
        assert status == 200, body
        return json.loads(body)

    def infer(self, body: Any, model: str = "linear", **headers: str) -> tuple[int, Any]:
        """The status and the parsed answer of an inference in JSON."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, answer = self.call("POST", f"/v2/models/{model}/infer", raw, headers)
        return status, json.loads(answer)


@contextmanager
def serving(root: Path, *options: str) -> Iterator[Server]:
    """Serve a file or folder on free ports; end by SIGTERM, and without a failure."""
    command = [str(SERVE), str(root), "--port", "0", "--grpc-port", "0", "--poll", "0.2", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    server = Server(process)
    ready = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            server.log.append(json.loads(line) if line.startswith("{") else {"message": line.strip()})
            if server.log[-1]["message"] == "ready":
                ready.set()
        ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert ready.wait(300), "it does not start"
        assert process.poll() is None, server.log
        (line,) = server.events("ready")
        server.port, server.grpc_port = line["port"], line["grpc_port"]
        yield server
    finally:
        process.terminate()
        status = process.wait(60)
        reader.join()
        process.stderr.close()
    assert status == 0, server.log
    assert not [line for line in server.log if "exception" in line]


def request(rows: Array, **changed: Any) -> dict[str, Any]:
    """A JSON request for the linear model; ``changed`` replaces fields of its input."""
    return {
        "inputs": [
            {"name": "input", "datatype": "FP32", "shape": list(rows.shape), "data": rows.tolist(), **changed},
        ]
    }


def binary(rows: Array, **changed: Any) -> tuple[bytes, dict[str, str]]:
    """A request with the binary extension, and its headers."""
    one = {
        "name": "input",
        "datatype": "FP32",
        "shape": list(rows.shape),
        "parameters": {"binary_data_size": rows.nbytes},
        **changed,
    }
    head = json.dumps({"inputs": [one], "parameters": {"binary_data_output": True}}).encode()
    return head + rows.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def rows(count: int, seed: int = 1) -> Array:
    """Random samples of the linear model."""
    return np.random.default_rng(seed).random((count, *SHAPE), dtype=np.float32)
