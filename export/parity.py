"""Proof by comparison: the ONNX file computes what the torch model computes.

Law: a file that ``check_parity`` accepts differs from the model, on every input given, by at most ``tolerance`` times
the size of the outputs, whatever the batch size. Outputs are compared in float64; nothing that is not finite passes.

ONNX Runtime runs on the CPU with one thread, so that a figure does not depend on how many cores are free.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnxruntime as ort
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NotImplemented,
    RuntimeException,
)

from export.convert import INPUT, OUTPUT, device_of, evaluating
from protocol.errors import ExportError, ParityError

_ROWS: Final = 256
"""Samples in one run of ``accuracy``."""

RUNTIME_ERRORS: Final = (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NotImplemented, RuntimeException)
"""What ONNX Runtime raises about a file or its inputs; these share no base class below ``Exception``."""


@dataclass(frozen=True)
class Parity:
    """How closely two programs agree.

    Attributes:
        max_abs_diff: The largest absolute difference of two logits.
        scale: The largest absolute logit of the torch model.
        samples: How many different inputs were compared.
    """

    max_abs_diff: float
    scale: float
    samples: int


def check_parity(
    model: torch.nn.Module,
    onnx_bytes: bytes,
    inputs: np.ndarray,
    tolerance: float = 1e-4,
    batches: Sequence[int] = (1, 2, 7, 32),
) -> Parity:
    """Compare the outputs of an ONNX file with those of the model that it came from.

    Each batch size is tried once, from the first input on (repeating them where there are fewer); then all inputs are
    compared in batches of the largest size.

    Args:
        model: The torch model; evaluated, and handed back in the mode that it was in.
        onnx_bytes: The file's content.
        inputs: f32[n, *input_shape], n >= 1.
        tolerance: The largest allowed difference, relative to ``max(1, scale)``.
        batches: The batch sizes to try.

    Returns:
        The largest difference and what it is measured against.

    Raises:
        ParityError: An output differs by more than that, has another shape or is not finite. For the last two its
            ``worst`` is infinite.
        ExportError: There is nothing to compare, or ONNX Runtime cannot load the file or run it at one of the sizes.
    """
    if len(inputs) == 0 or not batches or min(batches) < 1:
        raise ExportError(f"nothing to compare: {len(inputs)} inputs in batches of {list(batches)}; give one at least")
    session = open_session(onnx_bytes)
    device = device_of(model)
    worst, scale = 0.0, 0.0
    with evaluating(model), torch.no_grad():
        for rows in _batches(len(inputs), batches):
            batch = inputs[rows]
            expected = model(torch.from_numpy(batch).to(device)).cpu().numpy().astype(np.float64)
            actual = infer(session, batch).astype(np.float64)
            if actual.shape != expected.shape or not np.isfinite([expected, actual]).all():
                raise ParityError(math.inf, tolerance)
            worst = max(worst, float(np.abs(actual - expected).max()))
            scale = max(scale, float(np.abs(expected).max()))
    allowed = tolerance * max(1.0, scale)
    if worst > allowed:
        raise ParityError(worst, allowed)
    return Parity(max_abs_diff=worst, scale=scale, samples=len(inputs))


def accuracy(onnx_bytes: bytes, x: np.ndarray, y: np.ndarray) -> float:
    """The fraction of samples whose largest logit is the label's, in [0, 1].

    Args:
        onnx_bytes: The file's content.
        x: f32[n, *input_shape], n >= 1.
        y: int[n], the labels.

    Returns:
        The accuracy; of equal logits the first counts.

    Raises:
        ExportError: There are no samples or not as many labels, the outputs are no logits or not finite, or ONNX
            Runtime cannot load or run the file.
    """
    if len(x) == 0 or y.shape != (len(x),):
        raise ExportError(f"{len(x)} samples with labels of shape {y.shape}; give one label to each, and one at least")
    session = open_session(onnx_bytes)
    hits = 0
    for start in range(0, len(x), _ROWS):
        rows = slice(start, start + _ROWS)
        logits = infer(session, x[rows])
        if logits.ndim != 2 or len(logits) != len(x[rows]):
            raise ExportError(f"the file returns shape {logits.shape}, not one row of logits for each sample")
        if not np.isfinite(logits).all():
            raise ExportError(
                f"a logit of samples {start} to {start + len(logits) - 1} is not finite; look at the data"
            )
        hits += int(np.count_nonzero(logits.argmax(axis=1) == y[rows]))
    return hits / len(x)


def open_session(onnx_bytes: bytes) -> ort.InferenceSession:
    """Load an ONNX file that ``convert`` wrote into ONNX Runtime, on the CPU with one thread.

    Args:
        onnx_bytes: The file's content.

    Returns:
        A session that maps ``input`` to ``logits``.

    Raises:
        ExportError: ONNX Runtime cannot load it, or its inputs and outputs have other names.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    try:
        session = ort.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
    except RUNTIME_ERRORS as error:
        raise ExportError(f"ONNX Runtime cannot load the file: {error}. Export the checkpoint again.") from error
    names = [value.name for value in (*session.get_inputs(), *session.get_outputs())]
    if names != [INPUT, OUTPUT]:
        raise ExportError(f"the file maps {names} and not [{INPUT!r}, {OUTPUT!r}]; use one that PruneSeal exported")
    return session


def infer(session: ort.InferenceSession, batch: np.ndarray) -> np.ndarray:
    """Run one batch through ONNX Runtime.

    Args:
        session: From ``open_session``.
        batch: f32[b, *input_shape].

    Returns:
        The logits, f32[b, classes].

    Raises:
        ExportError: ONNX Runtime refuses the batch: another dtype, shape or batch size than the file takes.
    """
    try:
        (logits,) = session.run([OUTPUT], {INPUT: batch})
    except RUNTIME_ERRORS as error:
        raise ExportError(
            f"ONNX Runtime cannot run a batch {batch.dtype}{list(batch.shape)}: {error}. Give the shape that the file "
            "was exported with."
        ) from error
    return np.asarray(logits)


def _batches(n: int, sizes: Sequence[int]) -> Iterator[np.ndarray]:
    """The rows of each comparison, i64[b]: one batch of every size, then all n rows in the largest."""
    for size in sizes:
        yield np.arange(size) % n
    for start in range(0, n, max(sizes)):
        yield np.arange(start, min(start + max(sizes), n))
