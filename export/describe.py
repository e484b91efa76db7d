"""What an ONNX file holds, told from the file alone: no key, no torch, no running of the model.

The description is plain data that JSON can write: names, numbers, lists. ``pruneseal inspect`` prints it.
"""

import hashlib
import math
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from export.graph import keeps_weights_elsewhere, parsed
from protocol.errors import ExportError

PROTOBUF_LIMIT: Final = 2**31 - 1
"""The most bytes that one protobuf message, and so one self-contained ONNX file, can hold."""


def describe(onnx_path: Path) -> dict[str, object]:
    """Describe an ONNX file.

    Args:
        onnx_path: A self-contained file, from ``convert`` or from elsewhere.

    Returns:
        ``file``, ``bytes`` and ``sha256`` of the file; ``ir_version``, ``producer``, ``opset`` (version by domain);
        ``inputs`` and ``outputs`` (name, dtype, shape, where a dynamic axis is its name and an unknown one None);
        ``operators`` (count by type); ``functions`` (names of model-local functions); ``initializers`` (name, dtype,
        shape, elements, bytes in the file, zero fraction in [0, 1]) and their sums ``elements`` and ``zero_fraction``;
        ``metadata``.

    Raises:
        ExportError: The file is missing, cannot be read, is not valid ONNX or keeps its weights in another file.
    """
    data = read_file(onnx_path)
    try:
        onnx.checker.check_model(data)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ExportError(f"{onnx_path} is not a valid ONNX file: {error}. Export the checkpoint again.") from error
    model = parsed(data, onnx_path)
    graph = model.graph
    if keeps_weights_elsewhere(model):
        raise ExportError(f"{onnx_path} keeps its weights in another file; save it as one file first")
    try:
        initializers = [
            *(_Tensor.dense(tensor) for tensor in graph.initializer),
            *(_Tensor.sparse(tensor) for tensor in graph.sparse_initializer),
        ]
    except (ValueError, TypeError, KeyError) as error:  # the last for a type of elements that ONNX does not know
        raise ExportError(f"a constant of {onnx_path} cannot be read: {error}. Export it again.") from error
    elements = sum(tensor.elements for tensor in initializers)
    zeros = sum(tensor.zeros for tensor in initializers)
    return {
        "file": onnx_path.name,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "ir_version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": [_describe_value(value) for value in graph.input],
        "outputs": [_describe_value(value) for value in graph.output],
        "operators": dict(sorted(Counter(node.op_type for node in graph.node).items())),
        "functions": [f"{function.domain}.{function.name}" for function in model.functions],
        "initializers": [tensor.describe() for tensor in initializers],
        "elements": elements,
        "zero_fraction": zeros / max(1, elements),
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
    }


def read_file(onnx_path: Path) -> bytes:
    """The content of what may be an ONNX file.

    Raises:
        ExportError: It is missing, not an ordinary file, larger than an ONNX file can be, or cannot be read.
    """
    try:
        if not stat.S_ISREG(onnx_path.stat().st_mode):
            raise ExportError(f"{onnx_path} is not an ordinary file. Give the path of an ONNX file.")
        if onnx_path.stat().st_size > PROTOBUF_LIMIT:
            raise ExportError(f"{onnx_path} is larger than the 2 GiB that an ONNX file can hold")
        return onnx_path.read_bytes()
    except OSError as error:
        raise ExportError(f"cannot read {onnx_path}: {error.strerror}. Give the path of an ONNX file.") from error


@dataclass(frozen=True)
class _Tensor:
    """One constant of the graph; ``size`` is what it takes in the file, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    zeros: int
    size: int

    @classmethod
    def dense(cls, tensor: onnx.TensorProto) -> "_Tensor":
        shape = tuple(tensor.dims)
        zeros = math.prod(shape) - int(np.count_nonzero(numpy_helper.to_array(tensor)))
        return cls(tensor.name, _dtype(tensor.data_type), shape, zeros, tensor.ByteSize())

    @classmethod
    def sparse(cls, tensor: onnx.SparseTensorProto) -> "_Tensor":
        shape, values = tuple(tensor.dims), tensor.values
        zeros = math.prod(shape) - int(np.count_nonzero(numpy_helper.to_array(values)))
        return cls(values.name, _dtype(values.data_type), shape, zeros, tensor.ByteSize())

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def describe(self) -> dict[str, object]:
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "elements": self.elements,
            "bytes": self.size,
            "zero_fraction": self.zeros / max(1, self.elements),
        }


def _describe_value(value: onnx.ValueInfoProto) -> dict[str, object]:
    """Name, dtype and shape of an input or output; a dynamic axis is its name, an unknown one None."""
    tensor = value.type.tensor_type
    axes = [(axis.WhichOneof("value"), axis) for axis in tensor.shape.dim]
    return {
        "name": value.name,
        "dtype": _dtype(tensor.elem_type),
        "shape": [None if kind is None else getattr(axis, kind) for kind, axis in axes],
    }


def _dtype(number: int) -> str:
    """ONNX's name of an element type in small letters, such as ``float`` or ``int64``; or that it has none."""
    known = number in onnx.TensorProto.DataType.values()
    return str(onnx.TensorProto.DataType.Name(number)).lower() if known else f"unknown type {number}"
