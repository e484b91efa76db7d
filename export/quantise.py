"""The int8 variant of a network: weights and activations in 8 bits, by ONNX Runtime's own static quantiser.

Law: every weight that was zero is exactly zero; so the file is coded like the float one, and as sparse. Everything
else is approximate. Weights get one symmetric scale per output channel, activations one range per tensor, which the
calibration samples show. The graph is in QDQ form: standard operators that ONNX Runtime fuses into integer kernels.

Source: ``onnxruntime.quantization`` (``quantize_static``, QDQ, per channel, uint8 activations, int8 weights, MinMax).
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX
from onnxruntime.quantization.shape_inference import quant_pre_process

from export.convert import INPUT
from export.graph import is_layer, parse
from protocol.errors import ExportError

_BATCH: Final = 16
_WEIGHT: Final = 1
"""The place of the weights among a layer's inputs."""


def quantise(onnx_bytes: bytes, calibration: NDArray[np.float32]) -> bytes:
    """Quantise a float file to int8.

    Args:
        onnx_bytes: A self-contained file of float weights that are not coded yet, from ``convert`` or ``compact``.
        calibration: Samples that show the range of every activation, f32[n, *input_shape], n >= 1; a hundred or two
            that are typical are enough.

    Returns:
        The int8 file, not coded, with the same inputs, outputs and metadata.

    Raises:
        ExportError: There are no samples, the file is not valid, or the quantiser cannot do it.
    """
    if len(calibration) == 0:
        raise ExportError("no samples to calibrate with; give one at least")
    source = parse(onnx_bytes)
    with TemporaryDirectory(prefix="pruneseal-") as folder, _quiet():
        given, prepared, made = (Path(folder) / name for name in ("given.onnx", "prepared.onnx", "int8.onnx"))
        given.write_bytes(onnx_bytes)
        try:
            quant_pre_process(given, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                made,
                _Reader(calibration),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:  # the quantiser's and ONNX Runtime's errors share no class below this one
            raise ExportError(f"the network cannot be quantised: {error}. Export it without calibration.") from error
        result = onnx.load(made)
    del result.metadata_props[:]
    result.metadata_props.extend(source.metadata_props)
    _check_zeros(source, result)
    data = cast("bytes", result.SerializeToString(deterministic=True))
    onnx.checker.check_model(data, full_check=True)
    return data


def _check_zeros(source: onnx.ModelProto, result: onnx.ModelProto) -> None:
    """Refuse a file in which a weight that was zero is not."""
    before = {tensor.name: tensor for tensor in source.graph.initializer}
    after = {tensor.name: tensor for tensor in result.graph.initializer}
    points = {node.input[0]: node.input[2] for node in result.graph.node if node.op_type == "DequantizeLinear"}
    for name in {node.input[_WEIGHT] for node in source.graph.node if is_layer(node)} & before.keys() - after.keys():
        zeros, quantised = numpy_helper.to_array(before[name]) == 0, after.get(name + TENSOR_NAME_QUANT_SUFFIX)
        values = np.ones(0) if quantised is None else numpy_helper.to_array(quantised)
        point = points.get(name + TENSOR_NAME_QUANT_SUFFIX, "")
        symmetric = point in after and not numpy_helper.to_array(after[point]).any()
        if values.shape != zeros.shape or values[zeros].any() or not symmetric:
            raise ExportError(f"the quantiser did not keep the zeros of {name}; please report this mistake")


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Hands the samples to the quantiser in batches."""

    def __init__(self, samples: NDArray[np.float32]) -> None:
        self._batches = iter(samples[start : start + _BATCH] for start in range(0, len(samples), _BATCH))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser's advice to itself; it logs through the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
