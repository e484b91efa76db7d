"""``protocol.wire``: every message has one encoding, and a decoder never repairs.

Signed messages are checked against somebody who has genuine frames and no key, the unsigned aggregate against somebody
who can write any bytes at all.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol import VERSION, wire
from protocol.bits import Words
from protocol.errors import MalformedMessage, PeerError, PeerMismatch, SignatureRefused
from protocol.grid import Grid
from protocol.parameters import CHECKS, DEGREE, SEED_BYTES, Parameters
from protocol.wire import (
    AGGREGATE,
    ATTENDANCE,
    ATTENDANCE_BYTES,
    CONTRIBUTION,
    SIGNATURE_BYTES,
    Aggregate,
    Attendance,
    Contribution,
    contribution_length,
    decode_aggregate,
    decode_attendance,
    decode_contribution,
    describe,
    encode_aggregate,
    encode_attendance,
    encode_contribution,
    kind_of,
    signed,
)
from tests.factories import (
    RUN,
    SEALED,
    attend,
    attendance,
    cohort,
    contribute,
    contribution,
    dummy_seeds,
    dummy_words,
    kits,
    mutations,
    plan,
)

PARAMETERS = Parameters(Grid(16, 5))
KITS = kits(plan(), (1, 2, 3, 0xFFFF_FFFF))
ROSTER = KITS[1].roster
COHORT = cohort(KITS)
U32 = st.integers(0, (1 << 32) - 1) | st.sampled_from([0, 1, (1 << 32) - 1])
POSITIVE = st.integers(1, (1 << 32) - 1) | st.sampled_from([1, (1 << 32) - 1])


def raw(length: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=length, max_size=length)


def same(a: "Contribution | Aggregate", b: "Contribution | Aggregate") -> bool:
    """Whether two messages are equal, arrays by their elements."""
    return type(a) is type(b) and all(
        np.array_equal(x, y) if isinstance(x := getattr(a, f.name), np.ndarray) else x == y
        for f in fields(a)
        for y in [getattr(b, f.name)]
    )


# --- attendance --------------------------------------------------------------------------------


@st.composite
def attendances(draw: st.DrawFn) -> Attendance:
    values = draw(POSITIVE)
    return Attendance(
        run=draw(raw(16)),
        round=draw(U32),
        attempt=draw(U32),
        node=draw(st.sampled_from(sorted(KITS))),
        samples=draw(POSITIVE),
        values=values,
        votes=draw(st.sampled_from([0, values])),
        plan=draw(raw(32)),
        key=draw(raw(16)),
        model=draw(raw(32)),
        support=draw(raw(32)),
        nonce=draw(raw(16)),
    )


@given(attendances())
def test_decode_attendance_undoes_encode_attendance(made: Attendance) -> None:
    body = encode_attendance(made)
    frame = signed(body, KITS[made.node].sign(body))
    assert len(frame) == ATTENDANCE_BYTES
    assert decode_attendance(frame, ROSTER) == made
    assert kind_of(frame) == ATTENDANCE


ATTENDANCES = [attend(KITS[1]), attend(KITS[2], votes=7, round=2), attend(KITS[0xFFFF_FFFF], samples=1)]


@given(mutations(ATTENDANCES, fields=range(8, 48)))
@settings(max_examples=2000, deadline=None)
def test_a_mutated_attendance_is_refused_unless_it_is_genuine(data: bytes) -> None:
    try:
        made = decode_attendance(data, ROSTER)
    except PeerError:
        return
    assert data in ATTENDANCES
    assert encode_attendance(made) == data[:-SIGNATURE_BYTES]


def test_every_flipped_bit_of_an_attendance_is_refused() -> None:
    refusals = {type(refusal_of(decode_attendance, flipped, ROSTER)) for flipped in flips(ATTENDANCES[0])}
    assert refusals == {MalformedMessage, SignatureRefused}


def test_every_truncation_and_any_longer_attendance_is_refused() -> None:
    frame = ATTENDANCES[0]
    for length in range(len(frame)):
        assert type(refusal_of(decode_attendance, frame[:length], ROSTER)) is MalformedMessage
    assert type(refusal_of(decode_attendance, frame + b"\0", ROSTER)) is MalformedMessage


@pytest.mark.parametrize(
    "changes", [{"samples": 0}, {"values": 0}, {"values": 0, "votes": 0}, {"votes": 1}, {"votes": 8}]
)
def test_an_attendance_without_samples_or_values_or_with_other_votes_is_refused_though_signed(
    changes: dict[str, int],
) -> None:
    with pytest.raises(MalformedMessage, match="needs samples and values"):
        decode_attendance(attend(KITS[1], **changes), ROSTER)


def test_an_attendance_counts_only_with_the_signature_of_the_node_that_it_names() -> None:
    body = encode_attendance(attendance(KITS[1]))
    with pytest.raises(SignatureRefused, match="node 1: the signature is not valid"):
        decode_attendance(signed(body, KITS[2].sign(body)), ROSTER)
    with pytest.raises(SignatureRefused, match="node 9: not on the roster"):
        decode_attendance(attend(KITS[1], node=9), ROSTER)


# --- contribution ------------------------------------------------------------------------------


def announced_by(node: int) -> Attendance:
    return next(member for member in COHORT.members if member.node == node)


@given(
    values=st.integers(1, 100) | st.integers(DEGREE * 3 - CHECKS - 1, DEGREE * 3 + 1),
    voting=st.booleans(),
    sealed=st.binary(max_size=20),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_decode_contribution_undoes_encode_contribution(
    values: int, voting: bool, sealed: bytes, data: st.DataObject
) -> None:
    votes = values if voting else 0
    slots, blocks = PARAMETERS.slots(values, votes), PARAMETERS.blocks(values, votes)
    made = contribution(
        KITS[1],
        COHORT,
        PARAMETERS,
        run=data.draw(raw(16)),
        attempt=data.draw(U32),
        values=values,
        votes=votes,
        sealed=sealed,
        seeds=tuple(data.draw(st.lists(raw(SEED_BYTES), min_size=blocks, max_size=blocks))),
        first=data.draw(words(slots, PARAMETERS.width_up)),
    )
    body = encode_contribution(made, PARAMETERS)
    frame = signed(body, KITS[1].sign(body))
    assert len(frame) == contribution_length(values, votes, len(sealed), PARAMETERS)
    back = decode_contribution(frame, replace(announced_by(1), values=values, votes=votes), PARAMETERS, ROSTER)
    assert same(back, made)
    assert encode_contribution(back, PARAMETERS) == body


def words(count: int, width: int) -> st.SearchStrategy[Words]:
    """u64[count] below 2^width: all alike but for a few."""
    return hnp.arrays(np.uint64, count, elements=st.integers(0, (1 << width) - 1), fill=st.just((1 << width) - 1))


CONTRIBUTIONS = [
    contribute(KITS[1], COHORT, PARAMETERS),
    contribute(KITS[1], COHORT, PARAMETERS, attempt=2, sealed=b""),
    contribute(KITS[2], COHORT, PARAMETERS),
    contribute(KITS[1], cohort(KITS, votes=7), PARAMETERS),
]


@given(mutations(CONTRIBUTIONS, fields=range(8, 48)))
@settings(max_examples=2000, deadline=None)
def test_a_mutated_contribution_is_refused_unless_it_is_genuine(data: bytes) -> None:
    try:
        made = decode_contribution(data, announced_by(1), PARAMETERS, ROSTER)
    except PeerError:
        return
    assert data in CONTRIBUTIONS[:2]
    assert encode_contribution(made, PARAMETERS) == data[:-SIGNATURE_BYTES]


def test_every_flipped_bit_of_a_contribution_is_refused() -> None:
    refusals = {
        type(refusal_of(decode_contribution, flipped, announced_by(1), PARAMETERS, ROSTER))
        for flipped in flips(CONTRIBUTIONS[0])
    }
    assert refusals == {MalformedMessage, PeerMismatch, SignatureRefused}


def test_every_truncation_and_any_longer_contribution_is_refused() -> None:
    frame = CONTRIBUTIONS[0]
    for length in range(len(frame)):
        refused = refusal_of(decode_contribution, frame[:length], announced_by(1), PARAMETERS, ROSTER)
        assert type(refused) is MalformedMessage
    longer = refusal_of(decode_contribution, frame + b"\0", announced_by(1), PARAMETERS, ROSTER)
    assert type(longer) is MalformedMessage


@pytest.mark.parametrize(
    ("field", "ours", "theirs"),
    [("node", 1, 2), ("node", 2, 1), ("values", 7, 8), ("values", 7, 6), ("votes", 0, 7), ("votes", 7, 0)],
)
def test_a_contribution_has_the_sizes_that_its_attendance_announced(field: str, ours: int, theirs: int) -> None:
    change: dict[str, Any] = {field: ours}
    announced = replace(announced_by(1), **change)
    frame = contribute(KITS[1], COHORT, PARAMETERS, **{field: theirs})
    with pytest.raises(PeerMismatch) as mismatch:
        decode_contribution(frame, announced, PARAMETERS, ROSTER)
    assert (mismatch.value.field, mismatch.value.ours, mismatch.value.theirs) == (field, ours, theirs)


def test_a_contribution_signed_by_another_member_is_refused() -> None:
    body = encode_contribution(contribution(KITS[1], COHORT, PARAMETERS), PARAMETERS)
    with pytest.raises(SignatureRefused, match="node 1"):
        decode_contribution(signed(body, KITS[2].sign(body)), announced_by(1), PARAMETERS, ROSTER)


def test_a_member_cannot_sign_two_spellings_of_one_contribution() -> None:
    made = contribution(KITS[1], COHORT, PARAMETERS, sealed=b"")
    body = bytearray(encode_contribution(made, PARAMETERS))
    assert made.first.size * PARAMETERS.width_up % 8 != 0
    body[-1] |= 0x80
    frame = signed(bytes(body), KITS[1].sign(bytes(body)))
    with pytest.raises(MalformedMessage, match="unused bits"):
        decode_contribution(frame, announced_by(1), PARAMETERS, ROSTER)


def test_nothing_is_allocated_for_sizes_that_only_a_message_claims() -> None:
    huge = attendance(KITS[1], values=0xFFFF_FFFF, votes=0xFFFF_FFFF)
    frame = contribute(KITS[1], COHORT, PARAMETERS, values=0xFFFF_FFFF, votes=0xFFFF_FFFF)
    with pytest.raises(MalformedMessage, match=r"bytes long; .* were announced"):
        decode_contribution(frame, huge, PARAMETERS, ROSTER)


# --- aggregate ---------------------------------------------------------------------------------


def aggregate(second: "tuple[tuple[bytes, ...], ...] | Words", **changes: Any) -> Aggregate:
    """The sum of a cohort of three, with residues that count up."""
    made = Aggregate(
        run=RUN,
        round=1,
        attempt=1,
        clients=3,
        values=7,
        votes=0,
        plan=plan().digest,
        key=ROSTER.key_id(RUN, 1),
        cohort=COHORT.digest(1),
        support=announced_by(1).support,
        first=dummy_words(3, PARAMETERS.width_down),
        second=second,
        sealed=SEALED,
    )
    return replace(made, **changes)


@st.composite
def aggregates(draw: st.DrawFn) -> Aggregate:
    values = draw(st.integers(1, 100) | st.integers(DEGREE * 3 - CHECKS - 1, DEGREE * 3 + 1))
    votes, clients = draw(st.sampled_from([0, values])), draw(st.integers(1, 5))
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
        values=values,
        votes=votes,
        sealed=draw(st.binary(max_size=20)),
        first=draw(words(PARAMETERS.slots(values, votes), PARAMETERS.width_down)),
    )


@given(aggregates())
@settings(max_examples=60, deadline=None)
def test_decode_aggregate_undoes_encode_aggregate(made: Aggregate) -> None:
    encoded = encode_aggregate(made, PARAMETERS)
    back = decode_aggregate(encoded, PARAMETERS)
    assert same(back, made)
    assert encode_aggregate(back, PARAMETERS) == encoded
    assert kind_of(encoded) == AGGREGATE


SEEDS = (dummy_seeds(3),)
AGGREGATES = [
    encode_aggregate(made, PARAMETERS)
    for made in (
        aggregate(SEEDS),
        aggregate((dummy_seeds(1),), clients=1, sealed=b""),
        aggregate(SEEDS, votes=7, first=dummy_words(PARAMETERS.slots(7, 7), PARAMETERS.width_down)),
        aggregate(SEEDS, first=np.zeros(3, np.uint64)),
    )
]
SUMMED = encode_aggregate(aggregate(dummy_words(DEGREE, 60).reshape(1, DEGREE)), PARAMETERS)


@given(mutations(AGGREGATES, fields=range(8, 52)))
@settings(max_examples=3000, deadline=None)
def test_a_mutated_aggregate_is_refused_or_encodes_to_itself(data: bytes) -> None:
    refused_or_encodes_to_itself(data)


@given(mutations([SUMMED, AGGREGATES[0]], fields=range(8, 52)))
@settings(max_examples=300, deadline=None)
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
    "changes", [{"clients": 0}, {"clients": 6}, {"values": 0}, {"votes": 1}, {"votes": 8}, {"values": 0, "votes": 0}]
)
def test_an_aggregate_whose_counts_do_not_fit_the_plan_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(MalformedMessage, match="counts do not fit the plan"):
        decode_aggregate(encode_aggregate(aggregate(SEEDS, **changes), PARAMETERS), PARAMETERS)


@pytest.mark.parametrize("flag", [2, 0x100, 0x101, 0x1_0000, 0x100_0001, 0xFFFF_FFFF])
def test_the_form_of_the_second_half_is_a_zero_or_a_one_and_nothing_beside_it(flag: int) -> None:
    place = 8 + 16 + 6 * 4
    assert AGGREGATES[0][place : place + 4] == struct.pack("<I", 1)
    assert SUMMED[place : place + 4] == struct.pack("<I", 0)
    with pytest.raises(MalformedMessage, match="counts do not fit the plan"):
        decode_aggregate(AGGREGATES[0][:place] + struct.pack("<I", flag) + AGGREGATES[0][place + 4 :], PARAMETERS)


def test_an_unused_bit_of_an_aggregate_must_be_zero() -> None:
    head = 8 + 16 + 7 * 4 + 32 + 16 + 32 + 32
    width = PARAMETERS.width_down
    last = head + (3 * width + 7) // 8 - 1
    assert 3 * width % 8
    with pytest.raises(MalformedMessage, match="unused bits"):
        decode_aggregate(
            AGGREGATES[0][:last] + bytes([AGGREGATES[0][last] | 0x80]) + AGGREGATES[0][last + 1 :], PARAMETERS
        )


# --- what all have in common -------------------------------------------------------------------


def flips(frame: bytes) -> Sequence[bytes]:
    """The frame with each of its bits flipped."""
    return [frame[:i] + bytes([frame[i] ^ 1 << bit]) + frame[i + 1 :] for i in range(len(frame)) for bit in range(8)]


def refusal_of(decode: Callable[..., object], *arguments: object) -> PeerError:
    with pytest.raises(PeerError) as refusal:
        decode(*arguments)
    return refusal.value


def test_the_fields_stand_where_the_tables_of_the_readme_say() -> None:
    made = attendance(KITS[1], votes=7)
    frame = attend(KITS[1], votes=7)
    assert frame[:24] == b"PRSL\x01\x01\0\0" + made.run
    assert struct.unpack("<6I", frame[24:48]) == (made.round, made.attempt, made.node, made.samples, 7, 7)
    assert (frame[48:80], frame[80:96], frame[96:128]) == (made.plan, made.key, made.model)
    assert (frame[128:160], frame[160:176], len(frame)) == (made.support, made.nonce, 176 + 64)
    sent, frame = contribution(KITS[1], COHORT, PARAMETERS), CONTRIBUTIONS[0]
    assert frame[:24] == b"PRSL\x01\x02\0\0" + sent.run
    assert struct.unpack("<6I", frame[24:48]) == (sent.round, 1, sent.node, 7, 0, len(SEALED))
    assert (frame[48:80], frame[80:96]) == (sent.plan, sent.key)
    assert (frame[96:128], frame[128:160], frame[160:224]) == (sent.cohort, sent.support, sent.seeds[0])
    assert frame[-64 - len(SEALED) : -64] == SEALED
    summed, frame = aggregate(SEEDS), AGGREGATES[0]
    assert frame[:24] == b"PRSL\x01\x03\0\0" + summed.run
    assert struct.unpack("<7I", frame[24:52]) == (summed.round, 1, 3, 7, 0, len(SEALED), 1)
    assert (frame[52:84], frame[84:100]) == (summed.plan, summed.key)
    assert (frame[100:132], frame[132:164]) == (summed.cohort, summed.support)
    assert frame[-3 * SEED_BYTES - len(SEALED) :] == b"".join(SEEDS[0]) + SEALED


DECODERS: list[tuple[bytes, Callable[[bytes], object]]] = [
    (ATTENDANCES[0], lambda data: decode_attendance(data, ROSTER)),
    (CONTRIBUTIONS[0], lambda data: decode_contribution(data, announced_by(1), PARAMETERS, ROSTER)),
    (AGGREGATES[0], lambda data: decode_aggregate(data, PARAMETERS)),
    (AGGREGATES[0], describe),
]


@pytest.mark.parametrize(("frame", "decode"), DECODERS)
def test_another_magic_version_kind_or_reserved_field_is_refused(
    frame: bytes, decode: Callable[[bytes], object]
) -> None:
    for prefix, reason in (
        (b"PRSM\x01\x01\0\0", "not a PruneSeal message"),
        (b"PRSL\x01\x00\0\0", "not a PruneSeal message"),
        (b"PRSL\x01\x04\0\0", "not a PruneSeal message"),
        (b"PRSL\x01\x01\1\0", "not a PruneSeal message"),
        (b"PRSL\x01\x01\0\1", "not a PruneSeal message"),
        (b"PRSL\x00\x01\0\0", "message of version 0; this program speaks version 1"),
        (b"PRSL\x02\x01\0\0", "message of version 2; this program speaks version 1"),
    ):
        with pytest.raises(MalformedMessage, match=reason):
            decode(prefix + frame[8:])


@pytest.mark.parametrize(("frame", "decode"), DECODERS[:3])
def test_a_message_of_another_kind_is_refused(frame: bytes, decode: Callable[[bytes], object]) -> None:
    for kind in {ATTENDANCE, CONTRIBUTION, AGGREGATE} - {frame[5]}:
        with pytest.raises(MalformedMessage, match="another kind was expected"):
            decode(frame[:5] + bytes([kind]) + frame[6:])


@pytest.mark.parametrize(("frame", "decode"), DECODERS)
def test_a_message_that_ends_within_its_head_is_refused(frame: bytes, decode: Callable[[bytes], object]) -> None:
    for length in range(8):
        with pytest.raises(MalformedMessage, match=f"{length} bytes are not a message"):
            decode(frame[:length])
    with pytest.raises(MalformedMessage, match="ends within its head"):
        decode(frame[:100])


def test_a_message_that_is_too_long_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wire.LARGEST == 1 << 30
    monkeypatch.setattr(wire, "LARGEST", len(CONTRIBUTIONS[0]))
    assert kind_of(CONTRIBUTIONS[0]) == CONTRIBUTION
    with pytest.raises(MalformedMessage, match="bytes are not a message"):
        kind_of(CONTRIBUTIONS[0] + b"\0")


def test_anybody_can_describe_a_message() -> None:
    shown = describe(ATTENDANCES[0])
    assert shown["kind"] == "attendance"
    assert shown["bytes"] == ATTENDANCE_BYTES
    assert {key: shown[key] for key in ("version", "round", "node", "samples", "values")} == {
        "version": VERSION,
        "round": 1,
        "node": 1,
        "samples": 101,
        "values": 7,
    }
    assert (shown["run"], shown["nonce"]) == (RUN.hex(), "01000000" * 4)
    assert set(shown) == {f.name for f in fields(Attendance)} | {"kind", "version", "bytes"}


@pytest.mark.parametrize(
    ("frame", "kind", "made"),
    [
        (CONTRIBUTIONS[0], "contribution", contribution(KITS[1], COHORT, PARAMETERS)),
        (AGGREGATES[0], "aggregate", aggregate(SEEDS)),
    ],
)
def test_a_description_names_each_field_by_its_own_name(frame: bytes, kind: str, made: object) -> None:
    shown = describe(frame)
    assert (shown["kind"], shown["bytes"], shown["sealed_bytes"]) == (kind, len(frame), len(SEALED))
    named = {name: getattr(made, name) for name in shown if hasattr(made, name)}
    assert {name: shown[name] for name in named} == {
        name: value.hex() if isinstance(value, bytes) else value for name, value in named.items()
    }
    assert len(named) >= 10
    assert shown.get("by_seeds", 1) == 1
