"""``protocol.support``: positions have one encoding, and only a support decodes."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol.errors import MalformedMessage
from protocol.support import Support, decode_support, encode_support, gather, scatter
from tests.factories import mutations


def support(positions: list[int], size: int) -> Support:
    return Support(np.array(positions, np.int64), size)


@st.composite
def supports(draw: st.DrawFn) -> Support:
    """Supports of every density, sparse and long ones among them."""
    size = draw(st.integers(1, 300) | st.integers(1, 1 << 40))
    positions = draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=min(size, 40)))
    if size <= 300 and draw(st.booleans()):
        positions = set(range(size)) - positions or positions
    return support(sorted(positions), size)


SUPPORTS = supports()


def naive(s: Support) -> bytes:
    """The encoding by its definition: bit by bit, with Python's integers."""
    n = len(s)
    positions: list[int] = s.positions.tolist()
    if n == s.size:
        return n.to_bytes(4, "little")
    r = (s.size // n).bit_length() - 1
    length = n * r + n + ((s.size - 1) >> r)
    if length < s.size:
        low = sum((p & ((1 << r) - 1)) << (i * r) for i, p in enumerate(positions))
        number = low | sum(1 << (n * r + (p >> r) + i) for i, p in enumerate(positions))
    else:
        length, number = s.size, sum(1 << p for p in positions)
    return n.to_bytes(4, "little") + number.to_bytes((length + 7) // 8, "little")


@given(SUPPORTS)
@example(support([0], 1))
@example(support([0], 2))
@example(support([1], 2))
@example(support([0, 1], 2))
@example(support(list(range(299)), 300))
@example(support(list(range(1, 300)), 300))
@example(support([(1 << 40) - 1], 1 << 40))
def test_decode_support_undoes_encode_support(s: Support) -> None:
    assert decode_support(encode_support(s), s.size) == s


@pytest.mark.slow
@given(SUPPORTS)
@settings(max_examples=200)
@example(support([1], 2))  # both forms take as many bits: the bitmap is taken
@example(support([1, 4], 7))
@example(support([1, 4], 8))
def test_the_encoding_is_the_one_that_the_docstring_describes(s: Support) -> None:
    if s.size > 100_000:
        s = support(sorted({int(p) % 100_000 for p in s.positions}), 100_000)
    assert encode_support(s) == naive(s)


@pytest.mark.slow
@given(st.integers(1, 40), st.data())
def test_gather_undoes_scatter(size: int, data: st.DataObject) -> None:
    s = Support.of(data.draw(hnp.arrays(np.bool_, size).filter(np.any)))
    values = data.draw(hnp.arrays(np.float32, len(s), elements=st.floats(width=32)))
    vector = scatter(values, s)
    assert vector.dtype == np.float32
    assert gather(vector, s).tobytes() == values.tobytes()
    assert not vector[~s.mask].any()


@given(st.integers(1, 60), st.data())
def test_a_mask_and_its_support_are_the_same_positions(size: int, data: st.DataObject) -> None:
    mask = data.draw(hnp.arrays(np.bool_, size).filter(np.any))
    s = Support.of(mask)
    np.testing.assert_array_equal(s.mask, mask, strict=True)
    assert len(s) == mask.sum()
    assert s.positions.dtype == np.int64


@pytest.mark.parametrize("size", range(1, 11))
def test_every_support_of_a_short_vector_has_an_encoding_of_its_own(size: int) -> None:
    encodings = set()
    for number in range(1, 1 << size):
        s = Support.of(np.array([number >> i & 1 for i in range(size)], np.bool_))
        encoded = encode_support(s)
        assert decode_support(encoded, size) == s
        encodings.add(encoded)
    assert len(encodings) == (1 << size) - 1


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 5, 8, 9])
def test_every_short_byte_string_is_refused_or_encodes_to_itself(size: int) -> None:
    decoded = 0
    for n in range(size + 2):
        for length in range((size + 7) // 8 + 1):
            for number in range(1 << (8 * length)):
                data = n.to_bytes(4, "little") + number.to_bytes(length, "little")
                try:
                    s = decode_support(data, size)
                except MalformedMessage:
                    continue
                assert encode_support(s) == data
                decoded += 1
    assert decoded == (1 << size) - 1


FRAMES = [
    encode_support(s)
    for s in (
        support([3, 17, 18, 42, 63], 64),
        support([0, 1, 62, 63], 64),
        support(list(range(0, 64, 2)), 64),
        support(list(range(64)), 64),
        support([63], 64),
    )
]


@pytest.mark.slow
@given(mutations(FRAMES, fields=range(4)))
@settings(max_examples=500, deadline=None)
def test_a_mutated_support_is_refused_or_encodes_to_itself(data: bytes) -> None:
    try:
        s = decode_support(data, 64)
    except MalformedMessage:
        return
    assert encode_support(s) == data


@given(st.binary(max_size=16), st.integers(1, 80))
@settings(max_examples=500)
def test_any_bytes_are_refused_or_encode_to_themselves(data: bytes, size: int) -> None:
    try:
        s = decode_support(data, size)
    except MalformedMessage:
        return
    assert encode_support(s) == data


@pytest.mark.parametrize("frame", FRAMES)
def test_every_truncation_is_refused(frame: bytes) -> None:
    for length in range(len(frame)):
        with pytest.raises(MalformedMessage):
            decode_support(frame[:length], 64)


@pytest.mark.parametrize(
    ("data", "size", "reason"),
    [
        ("", 8, "at least 4 bytes"),
        ("010000", 8, "at least 4 bytes"),
        ("00000000", 8, "0 positions does not fit 8"),
        ("09000000", 8, "9 positions does not fit 8"),
        ("ffffffff", 8, "4294967295 positions does not fit 8"),
        ("0800000000", 8, "8 of 8 positions takes 0 bytes"),
        ("04000000", 8, "4 of 8 positions takes 1 bytes"),
        ("0400000055aa", 8, "4 of 8 positions takes 1 bytes"),
        ("0400000057", 8, "increase and stay"),
        ("0400000011", 8, "increase and stay"),
        ("0400000080", 5, "unused bits"),
    ],
)
def test_a_refusal_says_what_does_not_fit(data: str, size: int, reason: str) -> None:
    with pytest.raises(MalformedMessage, match=reason):
        decode_support(bytes.fromhex(data), size)


def elias_fano(low: list[int], ones: list[int]) -> bytes:
    """Two positions of 64: five low bits each, then the high parts in unary, 3 bits; by hand."""
    number = low[0] | low[1] << 5 | sum(1 << (10 + one) for one in ones)
    return b"\x02\0\0\0" + number.to_bytes(2, "little")


def test_elias_fano_by_hand() -> None:
    assert encode_support(support([3, 42], 64)) == elias_fano([3, 10], [0, 2])
    assert encode_support(support([62, 63], 64)) == elias_fano([30, 31], [1, 2])
    assert decode_support(elias_fano([30, 31], [0, 1]), 64) == support([30, 31], 64)


@pytest.mark.parametrize(
    ("low", "ones", "reason"),
    [
        ([7, 7], [0, 1], "increase and stay"),
        ([8, 7], [0, 1], "increase and stay"),
        ([7, 8], [0], "one number of positions and holds another"),
        ([7, 8], [], "one number of positions and holds another"),
        ([7, 8], [0, 1, 2], "one number of positions and holds another"),
        ([7, 8], [0, 3], "unused bits"),
    ],
)
def test_elias_fano_has_one_spelling(low: list[int], ones: list[int], reason: str) -> None:
    with pytest.raises(MalformedMessage, match=reason):
        decode_support(elias_fano(low, ones), 64)


def test_a_position_beyond_the_vector_is_refused() -> None:
    inside, outside = encode_support(support([0, 40], 41)), encode_support(support([0, 41], 42))
    assert len(inside) == len(outside)
    with pytest.raises(MalformedMessage, match="increase and stay"):
        decode_support(outside, 41)


def test_the_shorter_encoding_is_taken() -> None:
    sparse, dense = Support.of(np.arange(10_000) % 20 == 0), Support.of(np.arange(10_000) % 2 == 0)
    assert 8 * (len(encode_support(sparse)) - 4) / len(sparse) <= 6.3
    assert len(encode_support(dense)) == 4 + 10_000 // 8
    assert len(encode_support(Support.of(np.ones(10_000, np.bool_)))) == 4


@pytest.mark.parametrize(
    ("positions", "size"), [([], 5), ([-1, 2], 5), ([0, 5], 5), ([2, 1], 5), ([1, 1], 5), ([[0, 1]], 5), ([0], 0)]
)
def test_positions_that_are_no_support_are_refused(positions: list[int], size: int) -> None:
    with pytest.raises(ValueError, match="strictly increasing"):
        support(positions, size)


def test_equal_supports_are_one_key_of_a_dictionary() -> None:
    assert support([1, 2], 5) == support([1, 2], 5)
    assert len({support([1, 2], 5), support([1, 2], 5), support([1, 2], 6), support([1, 3], 5)}) == 3
    assert support([1, 2], 5) != [1, 2]
