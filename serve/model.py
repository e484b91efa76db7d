"""One ONNX file in memory: what it takes, what it gives, and running it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from protocol.errors import ModelError
from serve.tensors import DATATYPES, Array, Tensor

# ONNX Runtime's exceptions have no base class of their own.
_FAILURES: Final[tuple[type[Exception], ...]] = (
    RuntimeError,
    ValueError,
    *(value for value in vars(_state).values() if isinstance(value, type) and issubclass(value, Exception)),
)


@dataclass(frozen=True)
class Model:
    """A model that is loaded.

    Attributes:
        inputs: What it takes, by name; the first axis of each is the batch.
        outputs: What it gives, in the graph's order.
        properties: The metadata of the file: labels, input range, provenance, as far as it has them.
        session: ONNX Runtime's.
    """

    inputs: Mapping[str, Tensor]
    outputs: tuple[Tensor, ...]
    properties: Mapping[str, str]
    session: Any

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs for a batch, in the order of ``outputs``.

        Raises:
            RuntimeError: The model cannot compute them.
        """
        try:
            return list(self.session.run(None, dict(inputs)))
        except _FAILURES as error:
            raise RuntimeError(str(error)) from error


def open_model(data: bytes, threads: int) -> Model:
    """Open the content of a file in this process.

    Args:
        data: What ``check`` has not refused.
        threads: Threads that one inference uses.

    Raises:
        ModelError: ONNX Runtime refuses it, or it has no free batch axis or a type that the protocol lacks.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the other cores answer requests
    try:
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except _FAILURES as error:
        raise ModelError(f"ONNX Runtime cannot load it: {error}") from error
    return Model(
        inputs={value.name: _tensor("input", value) for value in session.get_inputs()},
        outputs=tuple(_tensor("output", value) for value in session.get_outputs()),
        properties=dict(session.get_modelmeta().custom_metadata_map),
        session=session,
    )


def _tensor(role: str, value: Any) -> Tensor:
    """An input or output of a session."""
    if value.type not in DATATYPES:
        raise ModelError(f"its {role} {value.name!r} is a {value.type}; only tensors of numbers can be served")
    shape = [side if isinstance(side, int) and side >= 0 else -1 for side in value.shape]
    if not shape or (role == "input" and shape[0] != -1):
        raise ModelError(f"its {role} {value.name!r} has no free batch axis (shape {value.shape}); export it with one")
    datatype, dtype = DATATYPES[value.type]
    return Tensor(value.name, datatype, np.dtype(dtype), (-1, *shape[1:]))


def check(data: bytes) -> None:
    """Refuse what ONNX Runtime should not even see.

    Raises:
        ModelError: It is no ONNX model, its graph is ill-formed, or it keeps tensors in another file.
    """
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise ModelError(f"it is not an ONNX file ({error})") from error
    outside = next((tensor.name for tensor in _tensors(model) if tensor.data_location == tensor.EXTERNAL), None)
    if outside is not None:
        raise ModelError(f"it keeps the tensor {outside!r} in another file; save it as one file")
    try:
        onnx.checker.check_model(data)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(f"it is not a valid ONNX model: {str(error).splitlines()[0]}") from error


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every constant of a model, those of subgraphs, attributes and functions included."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _attribute_tensors(function.attribute_proto)
        for node in function.node:
            yield from _attribute_tensors(node.attribute)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _attribute_tensors(node.attribute)


def _attribute_tensors(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in attributes:
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _graph_tensors(graph)
