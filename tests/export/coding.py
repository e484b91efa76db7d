"""What the tests of ``export.encode`` share: weights, files that hold them, and what ONNX Runtime makes of a file."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info


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
