"""The pair pack_bits / unpack_bits: w-bit integers end to end, w at most 60, with no byte to spare.

Law: ``unpack_bits(pack_bits(a, w), len(a), w) == a`` for a < 2^w, and the unused bits of the last byte are zero.
"""

import numpy as np
from numpy.typing import NDArray

from protocol.errors import MalformedMessage

Words = NDArray[np.uint64]


def packed_length(count: int, width: int) -> int:
    """The bytes that ``count`` integers of ``width`` bits take."""
    return (count * width + 7) // 8


def pack_bits(words: Words, width: int) -> bytes:
    """u64[count], each below 2^width, to little-endian bit order."""
    bits = np.unpackbits(words.astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, count=width, bitorder="little")
    return np.packbits(bits, bitorder="little").tobytes()


def unpack_bits(data: bytes, count: int, width: int) -> Words:
    """Read what :func:`pack_bits` wrote.

    Raises:
        MalformedMessage: The length is not that of ``count`` integers, or an unused bit is set.
    """
    if len(data) != packed_length(count, width):
        raise MalformedMessage(f"{count} integers of {width} bits take {packed_length(count, width)} bytes")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if bits[count * width :].any():
        raise MalformedMessage("the unused bits of a packed array must be zero")
    padded = np.zeros((count, 64), np.uint8)
    padded[:, :width] = bits[: count * width].reshape(count, width)
    return np.packbits(padded, axis=1, bitorder="little").reshape(-1).view("<u8").astype(np.uint64)
