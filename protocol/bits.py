"""The pair pack_bits / unpack_bits: w-bit integers end to end, w at most 60, with no byte to spare.

Law: ``unpack_bits(pack_bits(a, w), len(a), w) == a`` for a < 2^w, and the unused bits of the last byte are zero.

What is read takes its own words and no more: bits are spread out for a few thousand words at a time.
"""

import numpy as np
from numpy.typing import NDArray

from protocol.errors import MalformedMessage

Words = NDArray[np.uint64]

_AT_ONCE = 1 << 13
"""Words that are spread out together; a multiple of 8, so that each part begins with a whole byte."""


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
    if (count * width) % 8 and data[-1] >> (count * width) % 8:
        raise MalformedMessage("the unused bits of a packed array must be zero")
    packed, words = np.frombuffer(data, np.uint8), np.empty(count, np.uint64)
    padded = np.zeros((min(count, _AT_ONCE), 64), np.uint8)
    for start in range(0, count, _AT_ONCE):
        part = min(_AT_ONCE, count - start)
        bits = np.unpackbits(packed[start * width // 8 :], count=part * width, bitorder="little")
        padded[:part, :width] = bits.reshape(part, width)
        words[start : start + part] = np.packbits(padded[:part], axis=1, bitorder="little").view("<u8")[:, 0]
    return words
