"""The pair decode / encode of tensors: from a request's JSON or bytes to an array, and back.

Law: ``from_bytes(t, shape, to_bytes(a)) == a`` and ``from_json(t, shape, a.tolist()) == a`` for every finite ``a`` of
the declared type. A value that the type cannot hold is refused, never rounded to another: no string becomes a number,
no 300 becomes a uint8, and NaN and infinity are no input.

A reader takes at most 20 times the bytes that it is given, whatever they say. JSON stays text until the tensor is known
that it is for: then only numbers, or truth values, are made of it, one flat list of them, and lists within lists are
compared with the declared shape as text. A general parser makes 35 bytes of every byte of an empty object, and NumPy
gives each of a thousand texts the length of the longest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import msgspec
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

MAX_RANK: Final = 32
_LARGEST_SIDE: Final = 1 << 63
_NUMBERS: Final[Mapping[str, msgspec.json.Decoder[Any]]] = {
    kind: msgspec.json.Decoder(leaves)
    for kind, leaves in (("b", list[bool]), ("u", list[int]), ("i", list[int]), ("f", list[int | float]))
}
"""What reads a flat list of JSON for a kind of tensor, and makes nothing of anything else."""
_BRACKETS: Final = b"[]"
_NO_STRUCTURE: Final = bytes(set(range(256)) - set(b"[],"))


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
        if (
            not isinstance(shape, list)
            or len(shape) > MAX_RANK
            or not all(type(side) is int and abs(side) < _LARGEST_SIDE for side in shape)
        ):
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


def from_json(tensor: Tensor, shape: tuple[int, ...], text: bytes | memoryview) -> Array:
    """The array that this JSON is, its numbers nested by axis or flat in row-major order.

    Args:
        tensor: What it is for.
        shape: What is declared of it; fits the tensor.
        text: Well-formed JSON.

    Raises:
        BadRequest: It is not a list of numbers, not as many as the shape has, or the type cannot hold one of them.
    """
    text = bytes(text).strip()
    if text[:1] != b"[":
        raise BadRequest(f"the data of {tensor.name!r} must be a list")
    if text.find(b"[", 1) > 0 and text.find(b'"') < 0:
        if not _is_nested(text, shape):
            raise BadRequest(
                f"the data of {tensor.name!r} are neither flat nor nested as the shape {list(shape)} is: one list for "
                "each axis, all equally long"
            )
        text = b"[" + text.translate(None, _BRACKETS) + b"]"
    try:
        values = _NUMBERS[tensor.dtype.kind].decode(text)
    except msgspec.DecodeError:
        raise _unfit(tensor) from None
    return from_numbers(tensor, shape, values)


def from_numbers(tensor: Tensor, shape: tuple[int, ...], values: Sequence[int | float]) -> Array:
    """The array of these numbers in row-major order; whole ones, unless the tensor is of real numbers.

    Raises:
        BadRequest: They are not as many as the shape has, or the type cannot hold one of them.
    """
    if len(values) != prod(shape):
        raise BadRequest(f"the data of {tensor.name!r} are {len(values)} values, not those of the shape {list(shape)}")
    try:
        with np.errstate(over="ignore"):
            array = np.fromiter(values, tensor.dtype, len(values))
    except OverflowError:
        raise _unfit(tensor) from None
    return _finite(tensor, array).reshape(shape)


def _is_nested(text: bytes, shape: tuple[int, ...]) -> bool:
    """Whether the brackets and commas of a JSON list without texts are those of an array of this shape."""
    if prod(max(side, 1) for side in shape) > len(text):
        return False
    expected = b""
    for side in reversed(shape):
        expected = b"[" + ((expected + b",") * side)[:-1] + b"]"
    return text.translate(None, _NO_STRUCTURE) == expected


def _unfit(tensor: Tensor) -> BadRequest:
    return BadRequest(f"the data of {tensor.name!r} must be numbers that {tensor.datatype} can hold")


def to_bytes(tensor: Tensor, array: Array) -> bytes:
    """The array's little-endian, row-major bytes."""
    return array.astype(tensor.dtype, copy=False).tobytes()


def _finite(tensor: Tensor, array: Array) -> Array:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadRequest(f"{tensor.name!r} holds a value that is not a finite {tensor.datatype}")
    return array


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
