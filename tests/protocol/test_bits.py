"""``protocol.bits``: integers of any width, end to end, with one encoding each."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import bits
from protocol.bits import pack_bits, packed_length, unpack_bits
from protocol.errors import MalformedMessage

WIDTHS = st.integers(1, 60)


@st.composite
def arrays(draw: st.DrawFn) -> tuple[list[int], int]:
    width = draw(WIDTHS)
    return draw(st.lists(st.integers(0, (1 << width) - 1), max_size=20)), width


def naive(words: list[int], width: int) -> bytes:
    """The definition: the words are the digits of one number in base 2^width."""
    number = sum(word << (width * i) for i, word in enumerate(words))
    return number.to_bytes(packed_length(len(words), width), "little")


@given(arrays())
def test_unpack_bits_undoes_pack_bits(case: tuple[list[int], int]) -> None:
    words, width = case
    packed = pack_bits(np.array(words, np.uint64), width)
    back = unpack_bits(packed, len(words), width)
    assert back.dtype == np.uint64
    assert back.tolist() == words


@given(arrays())
def test_the_bytes_are_one_little_endian_number(case: tuple[list[int], int]) -> None:
    words, width = case
    assert pack_bits(np.array(words, np.uint64), width) == naive(words, width)


@given(WIDTHS, st.binary(max_size=40), st.data())
def test_bytes_that_unpack_pack_to_themselves(width: int, data: bytes, draw: st.DataObject) -> None:
    fitting = len(data) * 8 // width
    count = draw.draw(st.integers(max(0, fitting - 2), fitting + 1))
    try:
        words = unpack_bits(data, count, width)
    except MalformedMessage:
        unused = len(data) * 8 - count * width
        assert not 0 <= unused < 8 or data[-1] >> (8 - unused) != 0
        return
    assert pack_bits(words, width) == data


@pytest.mark.parametrize("width", [1, 7, 8, 9, 33, 52, 59, 60])
def test_the_largest_words_of_a_width_survive(width: int) -> None:
    words = np.full(9, (1 << width) - 1, np.uint64)
    np.testing.assert_array_equal(unpack_bits(pack_bits(words, width), 9, width), words, strict=True)


def test_no_words_are_no_bytes() -> None:
    assert pack_bits(np.zeros(0, np.uint64), 60) == b""
    assert unpack_bits(b"", 0, 60).tolist() == []


def test_every_unused_bit_is_refused_when_set() -> None:
    packed = pack_bits(np.array([5, 2], np.uint64), 3)  # 6 of 8 bits are in use
    assert packed == bytes([0b00_010_101])
    for bit in (6, 7):
        with pytest.raises(MalformedMessage, match="unused bits"):
            unpack_bits(bytes([packed[0] | 1 << bit]), 2, 3)


@pytest.mark.parametrize("length", [0, 1, 2, 4, 5])
def test_any_other_length_is_refused(length: int) -> None:
    with pytest.raises(MalformedMessage, match="2 integers of 12 bits take 3 bytes"):
        unpack_bits(bytes(length), 2, 12)


@pytest.mark.parametrize(
    ("count", "width", "length"), [(0, 60, 0), (1, 1, 1), (8, 1, 1), (9, 1, 2), (2, 60, 15), (4096, 60, 30720)]
)
def test_no_byte_is_spared_and_none_is_spent(count: int, width: int, length: int) -> None:
    assert packed_length(count, width) == length
    assert len(pack_bits(np.zeros(count, np.uint64), width)) == length


@given(st.lists(st.integers(0, (1 << 60) - 1), min_size=1, max_size=70), WIDTHS)
def test_words_that_are_cut_up_in_several_parts_are_the_same_number(drawn: list[int], width: int) -> None:
    words = [word % (1 << width) for word in drawn]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bits, "_ROWS", 2)  # sixteen words at a time
        packed = pack_bits(np.array(words, np.uint64), width)
        assert packed == naive(words, width)
        assert unpack_bits(packed, len(words), width).tolist() == words


@pytest.mark.parametrize("width", [1, 5, 39, 52, 59, 60])
@pytest.mark.parametrize("count", [65_535, 65_536, 65_537, 65_600])
def test_many_words_are_read_as_few_are(count: int, width: int) -> None:
    words = np.random.default_rng(count).integers(0, 1 << width, count, np.uint64)
    packed, end = pack_bits(words, width), 65_528  # whole bytes; the last words before a part ends, and those behind
    assert np.array_equal(unpack_bits(packed, count, width), words)
    assert packed[end * width // 8 :] == naive(words[end:].tolist(), width)


def test_a_view_of_bytes_is_read_as_they_are() -> None:
    packed = pack_bits(np.arange(100, dtype=np.uint64), 7)
    assert unpack_bits(memoryview(b"head" + packed)[4:], 100, 7).tolist() == [*range(100)]


def test_what_is_read_takes_little_more_than_its_words() -> None:
    packed = bytes(packed_length(4_000_000, 5))
    tracemalloc.start()
    try:
        unpack_bits(packed, 4_000_000, 5)
        assert tracemalloc.get_traced_memory()[1] < 8 * 4_000_000 + (2 << 20)
    finally:
        tracemalloc.stop()
