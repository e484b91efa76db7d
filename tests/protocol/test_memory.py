"""``protocol.openings``: lists of nodes, and what a node remembers, in bytes."""

import struct
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.errors import MalformedMessage
from protocol.openings import (
    MEMORY_LIMIT,
    MOST_NODES,
    MOST_SETS,
    Memory,
    Nodes,
    Opening,
    decode_memory,
    decode_nodes,
    encode_memory,
    encode_nodes,
    encode_sets,
    nodes_digest,
    sets_at,
)
from tests.protocol.frames import MEMORY

NUMBERS = st.integers(0, 40) | st.sampled_from([0, 1, (1 << 32) - 1])
SETS = st.frozensets(NUMBERS, max_size=8)


def remembered(invited: Iterable[int], *sets: Iterable[int]) -> Opening:
    return Opening(frozenset(invited), frozenset(map(frozenset, sets)))


@st.composite
def openings(draw: st.DrawFn) -> Opening:
    invited = draw(SETS)
    subsets = st.frozensets(st.sampled_from(sorted(invited)), max_size=8) if invited else st.just(frozenset[int]())
    return Opening(invited, draw(st.frozensets(subsets, max_size=3)))


MEMORIES = st.frozensets(openings(), max_size=4)


@given(SETS)
def test_decode_nodes_undoes_encode_nodes_whatever_the_order(nodes: Nodes) -> None:
    encoded = encode_nodes(nodes)
    assert decode_nodes(encoded) == nodes
    assert len(encoded) == 4 + 4 * len(nodes)
    assert encode_nodes(sorted(nodes, reverse=True)) == encoded
    assert len(nodes_digest(nodes)) == 32


@given(SETS, SETS)
def test_another_set_has_another_digest(one: Nodes, other: Nodes) -> None:
    assert (nodes_digest(one) == nodes_digest(other)) == (one == other)


def test_nodes_stand_in_ascending_order_after_their_count() -> None:
    assert encode_nodes({300, 2, 1}) == struct.pack("<4I", 3, 1, 2, 300)
    assert encode_nodes(()) == bytes(4)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "ends too early"),
        (bytes(3), "ends too early"),
        (struct.pack("<3I", 3, 1, 2), "ends too early"),
        (struct.pack("<I", 0xFFFF_FFFF), "ends too early"),
        (struct.pack("<3I", 2, 1, 2)[:-1], "ends too early"),
        (encode_nodes(range(MOST_NODES + 1)), "is too long"),
        (struct.pack("<3I", 2, 2, 1), "in ascending order"),
        (struct.pack("<3I", 2, 1, 1), "in ascending order"),
        (struct.pack("<3I", 1, 1, 2), "longer than it says"),
        (struct.pack("<3I", 2, 1, 2) + b"\0", "longer than it says"),
    ],
)
def test_another_list_of_nodes_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(MalformedMessage, match=text):
        decode_nodes(data)


@given(st.binary(max_size=24) | st.lists(NUMBERS, max_size=5).map(lambda them: struct.pack(f"<{len(them)}I", *them)))
def test_any_bytes_are_refused_or_the_list_that_they_encode(data: bytes) -> None:
    try:
        nodes = decode_nodes(data)
    except MalformedMessage:
        return
    assert encode_nodes(nodes) == data


@given(st.lists(SETS, max_size=5), st.binary(max_size=5), st.binary(max_size=5))
@example([frozenset({node}) for node in range(MOST_SETS)], b"", b"")
def test_sets_at_undoes_encode_sets_wherever_it_stands(sets: list[Nodes], before: bytes, after: bytes) -> None:
    data = before + encode_sets(sets)
    assert sets_at(data + after, len(before)) == (tuple(sets), len(data))
    assert len(data) == len(before) + 4 + sum(4 + 4 * len(one) for one in sets)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "ends too early"),
        (struct.pack("<2I", 2, 0), "ends too early"),
        (struct.pack("<3I", 1, 2, 1), "ends too early"),
        (struct.pack("<4I", 1, 2, 2, 1), "in ascending order"),
        (encode_sets([frozenset()] * (MOST_SETS + 1)), f"{MOST_SETS + 1} sets of nodes are more than {MOST_SETS}"),
    ],
)
def test_other_sets_of_nodes_are_refused(data: bytes, text: str) -> None:
    with pytest.raises(MalformedMessage, match=text):
        sets_at(data, 0)


@given(MEMORIES)
@example(MEMORY)
@example(frozenset())
def test_decode_memory_undoes_encode_memory(memory: Memory) -> None:
    encoded = encode_memory(memory)
    assert decode_memory(encoded) == memory
    assert (encoded == b"") == (memory == frozenset())


@given(MEMORIES, MEMORIES)
def test_another_memory_has_other_bytes(one: Memory, other: Memory) -> None:
    assert (encode_memory(one) == encode_memory(other)) == (one == other)


def test_a_memory_is_who_was_invited_and_the_sets_that_were_opened() -> None:
    memory = frozenset({remembered({1, 2, 3}, {1, 2}, {3}), remembered({1, 2})})
    assert encode_memory(memory) == struct.pack("<4I", 2, 1, 2, 0) + struct.pack("<10I", 3, 1, 2, 3, 2, 2, 1, 2, 1, 3)


ONE, OTHER = (encode_memory(frozenset({remembered({1, 2, node}, {1, 2})})) for node in (3, 4))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (OTHER + ONE, "not written in its one order"),
        (ONE + ONE, "not written in its one order"),
        (struct.pack("<7I", 2, 1, 2, 2, 1, 2, 1) + struct.pack("<I", 1), "not written in its one order"),  # {2}, {1}
        (struct.pack("<8I", 2, 1, 2, 2, 1, 1, 1, 1), "not written in its one order"),  # {1}, {1}
        (struct.pack("<4I", 3, 3, 1, 2) + bytes(4), "in ascending order"),
        (struct.pack("<7I", 2, 1, 2, 1, 2, 2, 1), "in ascending order"),
        (struct.pack("<7I", 2, 1, 2, 1, 2, 1, 3), "some who were not invited"),
        (struct.pack("<4I", 2, 1, 2, 1), "ends too early"),
        (struct.pack("<4I", 2, 1, 2, MOST_SETS), "ends too early"),
        (struct.pack("<4I", 2, 1, 2, MOST_SETS + 1), f"{MOST_SETS + 1} sets of nodes are more than {MOST_SETS}"),
        (struct.pack("<4I", 2, 1, 2, 0xFFFF_FFFF), "4294967295 sets of nodes are more"),
        (struct.pack("<3I", 2, 1, 2), "ends too early"),
        (ONE[:-1], "ends too early"),
        (ONE + b"\0", "ends too early"),
    ],
)
def test_a_memory_that_is_not_written_as_one_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(MalformedMessage, match=text):
        decode_memory(data)


def test_every_truncation_and_flipped_bit_of_a_memory_is_refused_or_another_memory() -> None:
    data = encode_memory(MEMORY)
    whole = {encode_memory(frozenset(some)) for some in (MEMORY, *([one] for one in MEMORY), ())}
    assert {data[:length] for length in range(len(data)) if _memory(data[:length]) is not None} <= whole
    flipped = [data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :] for i in range(len(data)) for bit in range(8)]
    read = [(one, memory) for one in flipped if (memory := _memory(one)) is not None]
    assert 0 < len(read) < len(flipped)
    assert all(encode_memory(memory) == one for one, memory in read)


@given(st.binary(max_size=40) | st.lists(st.integers(0, 4), max_size=12).map(lambda x: struct.pack(f"<{len(x)}I", *x)))
def test_any_bytes_are_refused_or_the_memory_that_they_encode(data: bytes) -> None:
    memory = _memory(data)
    assert memory is None or encode_memory(memory) == data


def _memory(data: bytes) -> Memory | None:
    try:
        return decode_memory(data)
    except MalformedMessage:
        return None


def test_a_longer_memory_than_may_be_is_refused_before_it_is_read() -> None:
    most = (MEMORY_LIMIT - 8) // 4
    largest = encode_memory(frozenset({remembered(range(most))}))
    assert len(largest) == MEMORY_LIMIT
    assert decode_memory(largest) == {remembered(range(most))}
    with pytest.raises(MalformedMessage, match=f"a memory of {MEMORY_LIMIT + 1} bytes is longer than {MEMORY_LIMIT}"):
        decode_memory(b"\xff" * (MEMORY_LIMIT + 1))
