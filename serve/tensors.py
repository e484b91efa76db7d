"""The pair decode / encode of tensors: from a request's JSON or bytes to an array, and back.

Law: ``from_bytes(t, shape, to_bytes(a)) == a`` and ``from_json(t, shape, a.tolist()) == a`` for every finite ``a`` of
the declared type. A value that the type cannot hold is refused, never rounded to another: no string becomes a number,
no 300 becomes a uint8, and NaN and infinity are no input.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocol.errors import BadRequest

Array = NDArray[Any]

DATATYPES: Final[Mapping[str, tuple[str, str]]] = {
    "tensor(bool)": ("BOOL", "?"),
    "tensor(uint8)": ("UINT8", "u1"),
    "tensor(uint16)": ("UINT16", "<u2"),
    "tensor(uint32)": ("UINT32", "<u4"),
    "tensor(uint64)": ("UINT64", "<u8"),
    "tensor(int8)": ("INT8", "i1"),
    "tensor(int16)": ("INT16", "<i2"),
    "tensor(int32)": ("INT32", "<i4"),
    "tensor(int64)": ("INT64", "<i8"),
    "tensor(float16)": ("FP16", "<f2"),
    "tensor(float)": ("FP32", "<f4"),
    "tensor(double)": ("FP64", "<f8"),
}
"""ONNX Runtime's name of a type: the protocol's name and NumPy's."""

_MAX_RANK: Final = 32
_KINDS: Final = {"b": "b", "u": "ui", "i": "ui", "f": "uif"}
"""Which kinds of parsed JSON a kind of tensor takes."""


@dataclass(frozen=True)
class Tensor:
    """A model's input or output as it is declared.

    Attributes:
        name: Its name in the graph.
        datatype: The protocol's name of its type.
        dtype: NumPy's, little endian.
        shape: -1 where any size fits; the first axis is the batch.
    """

    name: str
    datatype: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def describe(self) -> dict[str, Any]:
        """As the protocol's metadata have it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    def fitting(self, shape: object) -> tuple[int, ...]:
        """The shape, if the tensor takes it.

        Raises:
            BadRequest: It is no shape, or another one.
        """
        if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(type(side) is int for side in shape):
            raise BadRequest(f"the shape of {self.name!r} must be a list of integers")
        fits = len(shape) == len(self.shape) and all(
            side == declared if declared >= 0 else side >= 1 for side, declared in zip(shape, self.shape, strict=True)
        )
        if not fits:
            raise BadRequest(
                f"{self.name!r} takes the shape {list(self.shape)} (-1 is any size of 1 or more), not {_short(shape)}"
            )
        return tuple(shape)


def from_bytes(tensor: Tensor, shape: tuple[int, ...], raw: bytes | memoryview) -> Array:
    """The array whose little-endian, row-major bytes these are; a view of them.

    Raises:
        BadRequest: There are more or fewer bytes than the shape has, or a value is not finite.
    """
    wanted = prod(shape) * tensor.dtype.itemsize
    if len(raw) != wanted:
        raise BadRequest(f"{tensor.name!r} of shape {list(shape)} takes {wanted} bytes, not {len(raw)}")
    if tensor.datatype == "BOOL" and np.frombuffer(raw, np.uint8).max(initial=0) > 1:
        raise BadRequest(f"{tensor.name!r} holds a byte that is neither 0 nor 1")
    return _finite(tensor, np.frombuffer(raw, tensor.dtype).reshape(shape))


def from_json(tensor: Tensor, shape: tuple[int, ...], data: object) -> Array:
    """The array that these parsed numbers are, nested by axis or flat in row-major order.

    Raises:
        BadRequest: They are not numbers, not as many as the shape has, or the type cannot hold one of them.
    """
    if not isinstance(data, list):
        raise BadRequest(f"the data of {tensor.name!r} must be a list")
    try:
        parsed = np.array(data)
    except ValueError:
        raise BadRequest(f"the data of {tensor.name!r} are ragged; give one list per row, all equally long") from None
    if parsed.dtype.kind == "f" and tensor.dtype == np.uint64:
        parsed = _wide(data, parsed)
    if parsed.dtype.kind not in _KINDS[tensor.dtype.kind]:
        raise BadRequest(f"the data of {tensor.name!r} must be numbers that {tensor.datatype} can hold")
    if parsed.size != prod(shape) or (parsed.ndim != 1 and parsed.shape != shape):
        raise BadRequest(f"the data of {tensor.name!r} have the shape {list(parsed.shape)}, not {list(shape)}")
    with np.errstate(over="ignore"):
        array = parsed.astype(tensor.dtype)
    if tensor.dtype.kind in "ui" and not np.array_equal(array, parsed):
        raise BadRequest(f"the data of {tensor.name!r} must be numbers that {tensor.datatype} can hold")
    return _finite(tensor, array.reshape(shape))


def to_bytes(tensor: Tensor, array: Array) -> bytes:
    """The array's little-endian, row-major bytes."""
    return array.astype(tensor.dtype, copy=False).tobytes()


def _wide(data: list[Any], parsed: Array) -> Array:
    """Integers on both sides of 2^63 as u64, of which NumPy has made floats; anything else as it is."""
    numbers = np.array(data, dtype=object)
    if all(type(number) is int and 0 <= number < 1 << 64 for number in numbers.flat):
        return numbers.astype(np.uint64)
    return parsed


def _finite(tensor: Tensor, array: Array) -> Array:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadRequest(f"{tensor.name!r} holds a value that is not a finite {tensor.datatype}")
    return array


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
