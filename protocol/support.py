"""The pair gather / scatter: the positions that travel, and their canonical bytes.

Laws: ``gather(scatter(v, s), s) == v``; ``decode_support(encode_support(s), P) == s``; and no two byte strings decode
to the same support, so that equal digests mean equal supports.

The encoding is the shorter of two, and which one follows from n and P alone: a bitmap of P bits, or Elias-Fano (Elias,
J. ACM 1974; Fano 1971): the low r bits of every position packed, then the high parts in unary. At a density of 0.05
that is 6.3 bits per position. A full support takes no bytes beyond its length field.
"""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.errors import MalformedMessage
from protocol.layout import Mask, Vector

_COUNT = struct.Struct("<I")


@dataclass(frozen=True, eq=False)
class Support:
    """n strictly increasing positions, i64[n], of a vector of ``size`` values; n > 0.

    Raises:
        ValueError: The positions are not strictly increasing within the vector.
    """

    positions: NDArray[np.int64]
    size: int

    def __post_init__(self) -> None:
        p = self.positions
        if p.ndim != 1 or p.size == 0 or p[0] < 0 or p[-1] >= self.size or (np.diff(p) <= 0).any():
            raise ValueError("a support is one or more strictly increasing positions of its vector")

    def __len__(self) -> int:
        return int(self.positions.size)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Support) and self.size == other.size and np.array_equal(self.positions, other.positions)
        )

    def __hash__(self) -> int:
        return hash((self.size, self.positions.tobytes()))

    @classmethod
    def of(cls, mask: Mask) -> "Support":
        """The support of a mask, bool[P]."""
        return cls(np.flatnonzero(mask).astype(np.int64), mask.size)

    @property
    def mask(self) -> Mask:
        """The same positions as bool[P]."""
        mask = np.zeros(self.size, np.bool_)
        mask[self.positions] = True
        return mask


def gather(vector: Vector, support: Support) -> Vector:
    """The values on the support: float32[P] -> float32[n]."""
    return vector[support.positions]


def scatter(values: Vector, support: Support) -> Vector:
    """The vector that has these values on the support and zero elsewhere: float32[n] -> float32[P]."""
    vector = np.zeros(support.size, np.float32)
    vector[support.positions] = values
    return vector


def encode_support(support: Support) -> bytes:
    """The one byte string of this support: the count as u32, then the positions."""
    n, size = len(support), support.size
    if n == size:
        return _COUNT.pack(n)
    low_bits = _low_bits(n, size)
    if low_bits is None:
        bits = support.mask
    else:
        low = (support.positions[:, None] >> np.arange(low_bits)) & 1
        high = np.zeros(_high_length(n, size, low_bits), np.bool_)
        high[(support.positions >> low_bits) + np.arange(n)] = True
        bits = np.concatenate([low.astype(np.bool_).ravel(), high])
    return _COUNT.pack(n) + np.packbits(bits, bitorder="little").tobytes()


def decode_support(data: bytes, size: int) -> Support:
    """Read what :func:`encode_support` wrote for a vector of ``size`` values.

    Raises:
        MalformedMessage: The bytes are not the encoding of a support of such a vector.
    """
    if len(data) < _COUNT.size:
        raise MalformedMessage("a support is at least 4 bytes long")
    (n,) = _COUNT.unpack_from(data)
    if not 0 < n <= size:
        raise MalformedMessage(f"a support of {n} positions does not fit {size} values")
    low_bits = _low_bits(n, size)
    length = 0 if n == size else size if low_bits is None else n * low_bits + _high_length(n, size, low_bits)
    if len(data) != _COUNT.size + (length + 7) // 8:
        raise MalformedMessage(f"a support of {n} of {size} positions takes {(length + 7) // 8} bytes")
    bits = np.unpackbits(np.frombuffer(data, np.uint8, offset=_COUNT.size), bitorder="little")
    if bits[length:].any():
        raise MalformedMessage("the unused bits of a support must be zero")
    if n == size:
        return Support(np.arange(n, dtype=np.int64), size)
    if low_bits is None:
        positions = np.flatnonzero(bits[:length])
    else:
        low = bits[: n * low_bits].reshape(n, low_bits)
        ones = np.flatnonzero(bits[n * low_bits : length])
        if ones.size != n:
            raise MalformedMessage("a support says one number of positions and holds another")
        positions = (ones - np.arange(n)) << low_bits
        for bit in range(low_bits):
            positions += low[:, bit].astype(np.int64) << bit
    if positions.size != n or positions[-1] >= size or (np.diff(positions) <= 0).any():
        raise MalformedMessage("the positions of a support must increase and stay in the vector")
    return Support(positions.astype(np.int64), size)


def _low_bits(n: int, size: int) -> int | None:
    """Elias-Fano's r = floor(log2(size / n)), or None where the bitmap is no longer."""
    r = (size // n).bit_length() - 1
    return r if n * r + _high_length(n, size, r) < size else None


def _high_length(n: int, size: int, low_bits: int) -> int:
    return n + ((size - 1) >> low_bits)
