"""The pair pack_bits / unpack_bits: w-bit integers end to end, w at most 60, with no byte to spare.

Law: ``unpack_bits(pack_bits(a, w), len(a), w) == a`` for a < 2^w, and the unused bits of the last byte are zero.

Eight words of w bits are w whole bytes, so the words at one place in their eights lie w bytes apart at the same shift:
NumPy reads and writes each such column in one go, and holds no interpreter lock meanwhile. What is read takes its own
words and little more: it is cut up a part at a time.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from protocol.errors import MalformedMessage

Words = NDArray[np.uint64]

_WORD, _BYTE = 64, 8
_ROWS = 1 << 13
"""Rows of eight words that are cut up together, so that they stay in the processor's cache."""


def packed_length(count: int, width: int) -> int:
    """The bytes that ``count`` integers of ``width`` bits take."""
    return (count * width + 7) // 8


def pack_bits(words: Words, width: int) -> bytes:
    """u64[count], each below 2^width, to little-endian bit order."""
    count, rows = words.size, -(-words.size // 8)
    eights = np.zeros((rows, 8), np.uint64)
    eights.reshape(-1)[:count] = words
    if width < _BYTE:  # words that share a byte are put together first
        merged = np.bitwise_or.reduce(eights << np.arange(0, 8 * width, width, dtype=np.uint64), axis=1)
        return pack_bits(merged, 8 * width)[: packed_length(count, width)]
    packed = np.zeros(rows * width + _BYTE, np.uint8)
    for start in range(0, rows, _ROWS):
        part = eights[start : start + _ROWS]
        columns = _columns(packed[start * width :], len(part), width)
        for column, (heads, tails, shift) in zip(part.T, columns, strict=True):
            np.bitwise_or(heads, column << shift, out=heads)
            if tails is not None:
                np.bitwise_or(tails, (column >> (np.uint64(_WORD) - shift)).astype(np.uint8), out=tails)
    return packed[: packed_length(count, width)].tobytes()


def unpack_bits(data: bytes | memoryview, count: int, width: int) -> Words:
    """Read what :func:`pack_bits` wrote.

    Raises:
        MalformedMessage: The length is not that of ``count`` integers, or an unused bit is set.
    """
    if len(data) != packed_length(count, width):
        raise MalformedMessage(f"{count} integers of {width} bits take {packed_length(count, width)} bytes")
    if (count * width) % 8 and data[-1] >> (count * width) % 8:
        raise MalformedMessage("the unused bits of a packed array must be zero")
    packed, rows = np.frombuffer(data, np.uint8), -(-count // 8)
    eights, ones = np.empty((rows, 8), np.uint64), np.uint64((1 << width) - 1)
    for start in range(0, rows, _ROWS):
        part = eights[start : start + _ROWS]
        padded = np.zeros(len(part) * width + _BYTE, np.uint8)
        given = packed[start * width : (start + len(part)) * width]
        padded[: given.size] = given
        for column, (heads, tails, shift) in zip(part.T, _columns(padded, len(part), width), strict=True):
            words = heads >> shift
            if tails is not None:
                np.bitwise_or(words, tails.astype(np.uint64) << (np.uint64(_WORD) - shift), out=words)
            np.bitwise_and(words, ones, out=column)
    return eights.reshape(-1)[:count]


def _columns(
    packed: NDArray[np.uint8], rows: int, width: int
) -> Iterator[tuple[Words, NDArray[np.uint8] | None, np.uint64]]:
    """Where the words of each column lie: the eight bytes they begin in, the byte behind where it is needed, the shift.

    Args:
        packed: ``rows`` times ``width`` bytes, and eight more.
        rows: How many rows.
        width: Bits of a word.
    """
    for column in range(8):
        offset, shift = divmod(column * width, 8)
        heads = np.ndarray((rows,), "<u8", packed, offset, (width,))
        beyond = shift + width > _WORD
        tails = np.ndarray((rows,), np.uint8, packed, offset + _BYTE, (width,)) if beyond else None
        yield heads, tails, np.uint64(shift)
