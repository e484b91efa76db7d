"""The pair flatten / unflatten: named tensors and the one vector that a round is about.

Law: ``unflatten(flatten(tensors, layout), layout) == tensors`` for float32 tensors of the layout's shapes.

Names are sorted, so that two clients that hold the same network hold the same vector. Trainable tensors can be pruned;
buffers (batch-norm statistics) always travel. Integer buffers, such as a count of batches, stay at home.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from protocol.errors import ConfigError

Vector = NDArray[np.float32]
Mask = NDArray[np.bool_]
Value = TypeVar("Value", np.float32, np.bool_)


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the vector.

    Attributes:
        name: Its name in the model.
        shape: Its shape.
        trainable: Whether training moves it.
        work: How many times the model uses each of its values on one sample; for a weight its multiply-accumulates.
    """

    name: str
    shape: tuple[int, ...]
    trainable: bool
    work: int = 1

    @property
    def size(self) -> int:
        """The number of its values."""
        return prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Where each tensor stands in the vector of P values.

    Raises:
        ConfigError: The names are not sorted and distinct, or there are no trainable values.
    """

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        names = [tensor.name for tensor in self.tensors]
        if names != sorted(set(names)):
            raise ConfigError(f"tensor names must be sorted and distinct, not {names}")
        if not any(tensor.trainable and tensor.size for tensor in self.tensors):
            raise ConfigError("the model has no trainable floating-point tensor: there is nothing to federate")

    @cached_property
    def size(self) -> int:
        """P, the number of values in the vector."""
        return sum(tensor.size for tensor in self.tensors)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """The number of values of each tensor, i64[tensors]."""
        return np.array([tensor.size for tensor in self.tensors], dtype=np.int64)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where each tensor begins, and P at the end: i64[tensors + 1]."""
        return np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    @cached_property
    def prunable(self) -> Mask:
        """Which positions of the vector a mask may remove: bool[P]."""
        return np.repeat([tensor.trainable for tensor in self.tensors], self.sizes).astype(np.bool_)


def flatten(tensors: Mapping[str, NDArray[np.floating]], layout: Layout) -> Vector:
    """Lay the tensors end to end: float32[P].

    Raises:
        ConfigError: A tensor is missing, too many, or of another shape.
    """
    if set(tensors) != {tensor.name for tensor in layout.tensors}:
        missing = sorted({tensor.name for tensor in layout.tensors} ^ set(tensors))
        raise ConfigError(f"these tensors stand on one side only: {missing}")
    for tensor in layout.tensors:
        if tensors[tensor.name].shape != tensor.shape:
            raise ConfigError(
                f"{tensor.name} has shape {tensors[tensor.name].shape}, but the layout says {tensor.shape}"
            )
    return np.concatenate([np.ravel(tensors[tensor.name]).astype(np.float32) for tensor in layout.tensors])


def unflatten(vector: NDArray[Value], layout: Layout) -> dict[str, NDArray[Value]]:
    """Cut the vector, float32[P], or a mask of it, bool[P], back into its tensors; they share its memory.

    Raises:
        ValueError: The vector is not of the layout's size.
    """
    if vector.shape != (layout.size,):
        raise ValueError(f"the vector has shape {vector.shape}, the layout {layout.size} values")
    cuts = np.split(vector, layout.offsets[1:-1])
    return {tensor.name: cut.reshape(tensor.shape) for tensor, cut in zip(layout.tensors, cuts, strict=True)}
