"""``protocol.wire``: the unsigned aggregate, checked against somebody who can write any bytes at all."""

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.errors import MalformedMessage, PeerError, VersionRefused
from protocol.frame import AGGREGATE, kind_of
from protocol.openings import MOST_SETS
from protocol.parameters import DEGREE, SEED_BYTES
from protocol.wire import Aggregate, aggregates, decode_aggregate, encode_aggregate
from tests.factories import SEALED, dummy_words, mutations
from tests.protocol.frames import (
    AGGREGATES,
    FULL,
    PARAMETERS,
    RELEASES,
    SEEDS,
    U32,
    aggregate,
    flips,
    raw,
    refusal_of,
    same,
    words,
)

HEAD = 220
"""Bytes before the residues."""
SUMMED = encode_aggregate(aggregate(dummy_words(DEGREE, 60).reshape(1, DEGREE)), PARAMETERS)


@st.composite
def some_aggregates(draw: st.DrawFn) -> Aggregate:
    values = draw(st.integers(1, 100) | st.integers(FULL - 1, FULL + 1))
    votes, members = draw(st.sampled_from([0, values])), draw(st.integers(1, 5))
    clients, weight = draw(st.integers(1, members)), draw(st.integers(1, (1 << 64) - 1))
    blocks = PARAMETERS.blocks(values, votes)
    seeds = st.lists(raw(SEED_BYTES), min_size=clients, max_size=clients).map(tuple)
    return aggregate(
        draw(
            st.lists(seeds, min_size=blocks, max_size=blocks).map(tuple)
            | words(blocks * DEGREE, 60).map(lambda flat: flat.reshape(-1, DEGREE))
        ),
        run=draw(raw(16)),
        round=draw(U32),
        attempt=draw(U32),
        clients=clients,
        members=members,
        group=draw(U32),
        weight=weight,
        total=draw(st.integers(weight, (1 << 64) - 1)),
        voucher=draw(raw(32)),
        values=values,
        votes=votes,
        sealed=draw(st.binary(max_size=20)),
        first=draw(words(PARAMETERS.slots(values, votes), PARAMETERS.width_down)),
    )


@pytest.mark.slow
@given(some_aggregates())
@settings(max_examples=60, deadline=None)
def test_decode_aggregate_undoes_encode_aggregate(made: Aggregate) -> None:
    encoded = encode_aggregate(made, PARAMETERS)
    back = decode_aggregate(encoded, PARAMETERS)
    assert same(back, made)
    assert encode_aggregate(back, PARAMETERS) == encoded
    assert kind_of(encoded) == AGGREGATE


@pytest.mark.slow
@given(mutations(AGGREGATES, fields=range(8, 76)))
@settings(max_examples=600, deadline=None)
def test_a_mutated_aggregate_is_refused_or_encodes_to_itself(data: bytes) -> None:
    refused_or_encodes_to_itself(data)


@pytest.mark.slow
@given(mutations([SUMMED, AGGREGATES[0]], fields=range(8, 76)))
@settings(max_examples=100, deadline=None)
def test_so_is_a_mutated_aggregate_with_the_summed_second_half(data: bytes) -> None:
    refused_or_encodes_to_itself(data)


@given(st.binary(max_size=64))
@example(b"")
def test_so_are_any_bytes_after_a_genuine_prefix(data: bytes) -> None:
    refused_or_encodes_to_itself(AGGREGATES[0][:8] + data)
    refused_or_encodes_to_itself(AGGREGATES[0] + data)


def refused_or_encodes_to_itself(data: bytes) -> None:
    try:
        made = decode_aggregate(data, PARAMETERS)
    except PeerError:
        return
    assert encode_aggregate(made, PARAMETERS) == data


def test_every_flipped_bit_of_an_aggregate_gives_another_aggregate_or_is_refused() -> None:
    refused = 0
    for flipped in flips(AGGREGATES[0]):
        try:
            made = decode_aggregate(flipped, PARAMETERS)
        except MalformedMessage:
            refused += 1
            continue
        assert encode_aggregate(made, PARAMETERS) == flipped
    assert refused > 8 * 8


def test_every_truncation_and_any_longer_aggregate_is_refused() -> None:
    frame = AGGREGATES[0]
    for length in range(len(frame)):
        assert type(refusal_of(decode_aggregate, frame[:length], PARAMETERS)) is MalformedMessage
    for length in (0, 1, 100, len(SUMMED) - len(SEALED) - 1, len(SUMMED) - 1):
        assert type(refusal_of(decode_aggregate, SUMMED[:length], PARAMETERS)) is MalformedMessage
    assert type(refusal_of(decode_aggregate, frame + b"\0", PARAMETERS)) is MalformedMessage


@pytest.mark.parametrize(
    "changes",
    [
        {"clients": 0},
        {"clients": 5},
        {"clients": 6, "members": 6},
        {"members": 6},
        {"members": 2},
        {"weight": 0},
        {"weight": 502},
        {"weight": 0, "total": 0},
        {"values": 0, "votes": 7},
        {"votes": 1},
        {"votes": 8},
    ],
)
def test_an_aggregate_whose_counts_do_not_fit_the_plan_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(MalformedMessage, match="counts do not fit the plan"):
        decode_aggregate(encode_aggregate(aggregate(SEEDS, **changes), PARAMETERS), PARAMETERS)


@pytest.mark.parametrize("flag", [2, 0x100, 0x101, 0x1_0000, 0x100_0001, 0xFFFF_FFFF])
def test_the_form_of_the_second_half_is_a_zero_or_a_one_and_nothing_beside_it(flag: int) -> None:
    place = 8 + 16 + 8 * 4
    assert AGGREGATES[0][place : place + 4] == struct.pack("<I", 1)
    assert SUMMED[place : place + 4] == struct.pack("<I", 0)
    with pytest.raises(MalformedMessage, match="counts do not fit the plan"):
        decode_aggregate(AGGREGATES[0][:place] + struct.pack("<I", flag) + AGGREGATES[0][place + 4 :], PARAMETERS)


def test_an_unused_bit_of_an_aggregate_must_be_zero() -> None:
    head = 8 + 16 + 9 * 4 + 2 * 8 + 32 + 16 + 32 + 32 + 32
    assert head == HEAD
    used = PARAMETERS.slots(7, 0) * PARAMETERS.width_down
    last = head + (used + 7) // 8 - 1
    assert used % 8
    with pytest.raises(MalformedMessage, match="unused bits"):
        decode_aggregate(
            AGGREGATES[0][:last] + bytes([AGGREGATES[0][last] | 0x80]) + AGGREGATES[0][last + 1 :], PARAMETERS
        )


@pytest.mark.parametrize("change", [-HEAD, -len(SEALED) - 1, -1, 1, 0x7FFF_FFFF])
def test_the_length_of_an_aggregate_is_that_of_all_that_follows_its_head(change: int) -> None:
    length = len(AGGREGATES[0]) - HEAD
    with pytest.raises(MalformedMessage, match="another length was announced"):
        decode_aggregate(with_length(AGGREGATES[0], length + change), PARAMETERS)


@pytest.mark.parametrize("missing", [len(SEALED) + 1, len(SEALED) + 3 * SEED_BYTES, len(AGGREGATES[0]) - HEAD])
def test_an_aggregate_that_is_as_short_as_it_says_still_has_all_its_residues_and_seeds(missing: int) -> None:
    assert decode_aggregate(with_length(AGGREGATES[0], -len(SEALED)), PARAMETERS).sealed == b""
    with pytest.raises(MalformedMessage, match="another length was announced"):
        decode_aggregate(with_length(AGGREGATES[0], -missing), PARAMETERS)


def with_length(frame: bytes, length: int) -> bytes:
    """The frame with another length in its head; with one below zero, cut by so much and the length with it."""
    if length < 0:
        frame, length = frame[:length], len(frame) - HEAD + length
    return frame[:52] + struct.pack("<I", length) + frame[56:]


# --- end to end --------------------------------------------------------------------------------

MANY = [*AGGREGATES, SUMMED, with_length(AGGREGATES[0], HEAD - len(AGGREGATES[0]))]
"""Of all forms, and one that is no more than its head."""


@given(st.lists(st.sampled_from(MANY), max_size=5))
@example([MANY[-1]] * MOST_SETS)
def test_aggregates_end_to_end_are_cut_where_each_ends(frames: list[bytes]) -> None:
    found = list(aggregates(b"".join(frames)))
    assert [frame for frame, _ in found] == frames
    for frame, head in found:
        assert head["length"] == len(frame) - HEAD
        assert (head["group"], head["values"], head["votes"]) == struct.unpack("<3I", frame[40:52])


def test_aggregates_that_are_cut_off_are_refused_but_for_whole_ones() -> None:
    data, whole = AGGREGATES[1] + AGGREGATES[0], len(AGGREGATES[1])
    for length in {*range(len(data))} - {0, whole}:
        assert type(refusal_of(lambda cut: list(aggregates(cut)), data[:length])) is MalformedMessage
    assert [len(list(aggregates(data[:length]))) for length in (0, whole, len(data))] == [0, 1, 2]


def test_the_first_aggregates_are_given_before_the_next_one_is_looked_at() -> None:
    cut = aggregates(AGGREGATES[0] + b"nothing of the kind")
    assert next(cut)[0] == AGGREGATES[0]
    with pytest.raises(MalformedMessage):
        next(cut)


def test_there_are_no_more_aggregates_than_a_cohort_has_groups() -> None:
    assert len(list(aggregates(MANY[-1] * MOST_SETS))) == MOST_SETS
    with pytest.raises(MalformedMessage, match="end too early, or are too many"):
        list(aggregates(MANY[-1] * (MOST_SETS + 1)))


@pytest.mark.parametrize("length", [0, 1, len(AGGREGATES[1]) - HEAD - 1, len(AGGREGATES[1]) - HEAD + 1, 0xFFFF_FFFF])
def test_an_aggregate_of_another_length_than_it_says_spoils_those_that_follow(length: int) -> None:
    for frames in (
        [with_length(AGGREGATES[1], length), AGGREGATES[0]],
        [AGGREGATES[0], with_length(AGGREGATES[1], length)],
    ):
        with pytest.raises(MalformedMessage):
            list(aggregates(b"".join(frames)))


def test_each_of_the_aggregates_is_one_of_this_version() -> None:
    for frame, expected in (
        (b"PRSL\x01" + AGGREGATES[0][5:], VersionRefused),
        (b"PRSM" + AGGREGATES[0][4:], MalformedMessage),
        (AGGREGATES[0][:6] + b"\x01" + AGGREGATES[0][7:], MalformedMessage),
        (RELEASES[0] + bytes(HEAD), MalformedMessage),
    ):
        for data in (frame, AGGREGATES[1] + frame):
            assert type(refusal_of(lambda posed: list(aggregates(posed)), data)) is expected


@pytest.mark.slow
@given(mutations([MANY[0] + MANY[1], MANY[-1] * 3, MANY[2] + MANY[3] + MANY[0]], fields=range(8, 76)))
@settings(max_examples=600, deadline=None)
def test_mutated_aggregates_are_refused_or_are_cut_into_what_they_were(data: bytes) -> None:
    try:
        assert b"".join(frame for frame, _ in aggregates(data)) == data
    except PeerError:
        return
