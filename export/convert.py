"""A torch model becomes one self-contained ONNX file.

Law: ``convert`` leaves the model as it found it, and the same model, shape and metadata give the same bytes. The file
computes what the model computes in evaluation mode, for every batch size; ``export.parity`` proves it.

The exporter writes a stack trace beside every node: more bytes than a small model has weights, and the paths of the
machine. All of that is taken out, and only the caller's metadata goes in.

Source: ``torch.onnx.export`` with ``dynamo=True``; ONNX operator set 20.
"""

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Final, cast

import onnx
import torch

from export.describe import PROTOBUF_LIMIT
from protocol.errors import ExportError
from protocol.files import replace_file

OPSET: Final = 20
INPUT: Final = "input"
OUTPUT: Final = "logits"
BATCH: Final = "batch"

_EXAMPLES: Final = 2
"""Rows of the traced batch. Not 1: a trace may take a dimension of 1 for a constant."""

_EXPORTER_ONLY: Final = frozenset({"doc_string", "metadata_props", "value_info"})
"""Fields of any ONNX message that say how it came about, or repeat what shape inference finds again."""


def convert(model: torch.nn.Module, input_shape: Sequence[int], metadata: Mapping[str, str]) -> bytes:
    """Export ``model`` to ONNX.

    The file's input is ``input: f32[batch, *input_shape]``, its output ``logits: f32[batch, classes]``.

    Args:
        model: Maps f32[batch, *input_shape] to f32[batch, classes]; may be in training mode, on any device.
        input_shape: Shape of one sample, without the batch.
        metadata: What the file should say about itself: model, method, run, round, sparsity, …

    Returns:
        The serialised ``ModelProto``; it passes the full check of ``onnx.checker``.

    Raises:
        ExportError: The shape is not one, the model cannot take it, does not return logits, fixes the batch size, is
            larger than 2 GiB, or uses something that the exporter cannot translate.
    """
    if not all(size > 0 for size in input_shape) or not input_shape:
        raise ExportError(f"input shape {tuple(input_shape)} is not a sample's shape; give positive sizes, no batch")
    weights = model.state_dict().values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights)
    if size > PROTOBUF_LIMIT:
        raise ExportError(f"the model holds {size} bytes, and one ONNX file at most {PROTOBUF_LIMIT}; shrink it first")
    with evaluating(model), torch.no_grad():
        example = torch.zeros(_EXAMPLES, *input_shape, device=device_of(model))
        _check_logits(model, example)
        proto = _trace(model, example)
    _check_signature(proto)
    _strip(proto)
    onnx.helper.set_model_props(proto, dict(sorted(metadata.items())))
    data = cast("bytes", proto.SerializeToString(deterministic=True))
    try:
        onnx.checker.check_model(data, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exporter wrote a file that is not valid ONNX: {error}. Simplify the model.") from error
    return data


def save_onnx(path: Path, data: bytes) -> None:
    """Write an ONNX file in one step that survives a crash, replacing what was there.

    Args:
        path: The file; its directory must exist.
        data: What ``convert`` returned.

    Raises:
        ExportError: The file cannot be written.
    """
    try:
        replace_file(path, data)
    except OSError as error:
        raise ExportError(
            f"cannot write {path}: {error.strerror}. Check that its directory exists, has space left and may be "
            "written to."
        ) from error


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Hold ``model`` in evaluation mode; each of its modules gets its own mode back, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def device_of(model: torch.nn.Module) -> torch.device:
    """The device of the model's first tensor; the CPU if it has none."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def _check_logits(model: torch.nn.Module, example: torch.Tensor) -> None:
    """Run the model once before it is traced: its own error says more than the exporter's."""
    try:
        logits = model(example)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ExportError(
            f"the model cannot take an input of shape {tuple(example.shape)}: {error}. Give the input shape that it "
            "was trained with."
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2 or len(logits) != len(example):
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ExportError(f"the model returns {got}, not logits of shape ({len(example)}, classes); return them alone")


def _trace(model: torch.nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    """Run the exporter on a model in evaluation mode, without its noise."""
    batch = torch.export.Dim(BATCH, min=1)
    try:
        with _quiet():
            program = torch.onnx.export(
                model,
                (example,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
            return cast("torch.onnx.ONNXProgram", program).model_proto
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).partition("\n")[0].rstrip(".")
        raise ExportError(
            f"torch cannot export the model: {reason}. Its forward must be free of branches on values and work for "
            "any batch size."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's two messages that concern no user; every other warning stays."""

    def concerns_us(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("torchvision is not installed")

    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    registry.addFilter(concerns_us)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore",
                message=r"`isinstance\(treespec, LeafSpec\)` is deprecated",
                category=FutureWarning,
            )
            yield
    finally:
        registry.removeFilter(concerns_us)


def _check_signature(proto: onnx.ModelProto) -> None:
    """Refuse a graph with another batch axis or operator set than was asked for: the exporter gives in silently."""
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.shape.dim[0].dim_param != BATCH:
            raise ExportError(
                f"the model fixes the batch size of its {value.name}; write its forward so that it works for any "
                "(reshape with the batch as -1, not as a number)"
            )
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    if opsets.get("", math.nan) != OPSET:
        raise ExportError(f"the exporter wrote operator sets {opsets}, not {OPSET}; simplify the model")


def _strip(message: Any) -> None:
    """Take the exporter's notes out of ``message`` and of every message inside it.

    onnx_ir's ``ClearMetadataAndDocStringPass`` clears nodes, graphs and functions alone: ``value_info`` stays, so does
    the metadata of tensors, inputs and outputs. Two networks of 21 and 77 kB came out 864 and 1195 bytes larger.
    """
    for field, value in message.ListFields():
        if field.name in _EXPORTER_ONLY:
            message.ClearField(field.name)
        elif hasattr(value, "ListFields"):
            _strip(value)
        elif field.message_type is not None:
            for child in value:
                _strip(child)
