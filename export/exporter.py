"""The way from a network to the files that are shipped: convert, scale, compact, encode, prove; then quantise.

Law: what ONNX Runtime computes from the float file is what torch computes, within the tolerance of `export/parity.py`;
the proof is of the finished file, after every step.

Compaction can make a convolution slower: ONNX Runtime works in blocks of 16 channels, and other counts take another
kernel. So where there are convolutions, the counts are also rounded up to 16, and what is measured to be fastest stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray
from onnx.helper import set_model_props
from torch import nn

from export.compact import compact
from export.convert import convert
from export.encode import encode
from export.graph import parse
from export.latency import compare
from export.macs import Macs, multiply_accumulates
from export.parity import Parity, check_parity
from export.quantise import quantise
from export.scaling import Scaling
from protocol.errors import ExportError

BLOCK: Final = 16
"""Channels of one block of ONNX Runtime's convolutions."""

WORK_LEFT: Final = "multiply_accumulates_left"
"""The metadata key of the fraction that is left; beside ``sparsity``, which says nothing about work."""

_MARGIN: Final = 1.05
"""How much faster than exact counts others must be; less is noise, and exact ones are smaller."""

_UNSCALED: Final = Scaling()


@dataclass(frozen=True)
class Exported:
    """A finished ONNX file, and what became of it on the way.

    Attributes:
        model: The file: dead structure removed, sparse weights coded.
        dense: The file before both.
        plain: The file between both: dead structure removed, weights not coded.
        parity: How far it is from torch.
        work: The multiply-accumulates of one sample, before and after; None where a layer's shape is only known when
            the model runs.
        untouched: What compaction could not prove anything about.
        speeds: How many times as fast as ``dense`` each way to count channels was at batch 1: ``exact`` and ``rounded``
            to 16. Empty where there was nothing to choose.
        rounded: Whether the counts are rounded.
    """

    model: bytes
    dense: bytes
    plain: bytes
    parity: Parity
    work: tuple[Macs, Macs] | None
    untouched: tuple[str, ...]
    speeds: Mapping[str, float]
    rounded: bool

    @property
    def dense_bytes(self) -> int:
        """How long the file was before compaction and coding."""
        return len(self.dense)

    @property
    def work_left(self) -> float | None:
        """The fraction of the multiply-accumulates that remain, or None where they cannot be counted."""
        return None if self.work is None else self.work[1].remaining / self.work[0].dense


def export(
    model: nn.Module,
    input_shape: tuple[int, ...],
    metadata: Mapping[str, str],
    inputs: NDArray[np.float32],
    scaling: Scaling = _UNSCALED,
) -> Exported:
    """Make the float file and prove it.

    Args:
        model: The trained network.
        input_shape: The shape of one sample.
        metadata: The file's provenance.
        inputs: Raw samples that torch and the file must agree on, float32[n, *input_shape].
        scaling: What the file does to raw samples before the network sees them.

    Raises:
        ExportError: A step is not possible.
        ParityError: The file does not compute what the network does.
    """
    dense = scaling.into_file(convert(model, input_shape, metadata))
    exact = compact(dense)
    candidates = {"exact": exact}
    if any(node.op_type == "Conv" for node in parse(dense).graph.node) and exact.removed:
        candidates["rounded"] = compact(dense, round_to=BLOCK)
    speeds = _speeds(dense, {name: made.model for name, made in candidates.items()}, inputs[:1])
    rounded = speeds.get("rounded", 0) > _MARGIN * speeds.get("exact", 1)
    small = candidates["rounded" if rounded else "exact"]
    try:
        work = (multiply_accumulates(dense), multiply_accumulates(small.model))
    except ExportError:
        work = None  # shapes that only running tells: recurrent networks, for example
    plain = small.model
    if work is not None:
        plain = _stated(plain, {WORK_LEFT: f"{work[1].remaining / work[0].dense:.6f}"})
    coded = encode(plain).model
    parity = check_parity(scaling.into_module(model), coded, inputs)
    return Exported(coded, dense, plain, parity, work, small.untouched, speeds, rounded)


def export_int8(made: Exported, calibration: NDArray[np.float32]) -> bytes:
    """The int8 variant of a finished file, coded as well.

    Args:
        made: The float file.
        calibration: Typical raw samples, float32[n, *input_shape].

    Raises:
        ExportError: The network cannot be quantised.
    """
    return encode(quantise(made.plain, calibration)).model


def _stated(onnx_bytes: bytes, more: Mapping[str, str]) -> bytes:
    """The file with more metadata."""
    model = parse(onnx_bytes)
    metadata = {**{entry.key: entry.value for entry in model.metadata_props}, **more}
    del model.metadata_props[:]
    set_model_props(model, dict(sorted(metadata.items())))
    return cast("bytes", model.SerializeToString(deterministic=True))


def _speeds(dense: bytes, candidates: Mapping[str, bytes], inputs: NDArray[np.float32]) -> dict[str, float]:
    """How many times as fast as ``dense`` each candidate is; nothing where there is one alone or all are the same."""
    if len({*candidates.values()}) < 2:
        return {}
    found = compare({"dense": dense, **candidates}, inputs)
    return {name: found[name].speed(found["dense"]) for name in candidates}
