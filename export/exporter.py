"""The way from a network to the file that is shipped: convert, compact, encode, prove.

Law: what ONNX Runtime computes from the file is what torch computes, within the tolerance of `export/parity.py`; the
proof is of the finished file, after every step.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from export.compact import compact
from export.convert import convert
from export.encode import encode
from export.macs import Macs, multiply_accumulates
from export.parity import Parity, check_parity
from protocol.errors import ExportError


@dataclass(frozen=True)
class Exported:
    """A finished ONNX file, and what became of it on the way.

    Attributes:
        model: The file: dead structure removed, sparse weights coded.
        dense_bytes: How long it was before both.
        parity: How far it is from torch.
        work: The multiply-accumulates of one sample, before and after; None where a layer's shape is only known when
            the model runs.
        untouched: What compaction could not prove anything about.
    """

    model: bytes
    dense_bytes: int
    parity: Parity
    work: tuple[Macs, Macs] | None
    untouched: tuple[str, ...]


def export(
    model: nn.Module, input_shape: tuple[int, ...], metadata: Mapping[str, str], inputs: NDArray[np.float32]
) -> Exported:
    """Make the file and prove it.

    Args:
        model: The trained network.
        input_shape: The shape of one sample.
        metadata: The file's provenance.
        inputs: Samples that torch and the file must agree on, float32[n, *input_shape].

    Raises:
        ExportError: A step is not possible.
        ParityError: The file does not compute what the network does.
    """
    dense = convert(model, input_shape, metadata)
    small = compact(dense)
    coded = encode(small.model)
    try:
        work = (multiply_accumulates(dense), multiply_accumulates(small.model))
    except ExportError:
        work = None  # shapes that only running tells: recurrent networks, for example
    parity = check_parity(model, coded.model, inputs)
    return Exported(coded.model, len(dense), parity, work, small.untouched)
