"""``protocol.wire``: signed messages, checked against somebody who has genuine frames and no key."""

from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.attendance import ATTENDANCE_BYTES, Attendance, attendances, decode_attendance, encode_attendance
from protocol.errors import MalformedMessage, PeerError, PeerMismatch, SignatureRefused, VersionRefused
from protocol.figures import Figures
from protocol.frame import ATTENDANCE, SIGNATURE_BYTES, kind_of, signed
from protocol.openings import encode_memory
from protocol.parameters import SEED_BYTES
from protocol.wire import contribution_length, decode_contribution, encode_contribution
from tests.factories import attend, attendance, contribute, contribution, mutations
from tests.protocol.frames import (
    ATTENDANCES,
    COHORT,
    CONTRIBUTIONS,
    FULL,
    KITS,
    MEMORY,
    PARAMETERS,
    ROSTER,
    U32,
    announced_by,
    flips,
    raw,
    refusal_of,
    same,
    words,
)

MEMBERS = len(COHORT.members)
PRIME = (1 << 255) - 19
POSITIVE = st.integers(1, (1 << 32) - 1) | st.sampled_from([1, (1 << 32) - 1])


# --- attendance --------------------------------------------------------------------------------


@st.composite
def some_attendances(draw: st.DrawFn) -> Attendance:
    values = draw(st.just(0) | POSITIVE)
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
        invited=draw(raw(32)),
        exchange=draw(raw(32).filter(lambda key: int.from_bytes(key, "little") % (1 << 255) > 1)),
        seed=draw(raw(32)),
        dealt=draw(raw(32)),
        figures=Figures(*draw(st.tuples(*[st.integers(-(1 << 63), (1 << 63) - 1)] * 7))),
        spoiled=draw(st.integers(0, (1 << 64) - 1)),
        memory=draw(st.sampled_from([frozenset(), MEMORY])),
    )


@given(some_attendances())
def test_decode_attendance_undoes_encode_attendance(made: Attendance) -> None:
    body = encode_attendance(made)
    frame = signed(body, KITS[made.node].sign(body))
    assert len(frame) == ATTENDANCE_BYTES + len(encode_memory(made.memory))
    assert decode_attendance(frame, ROSTER) == made
    assert kind_of(frame) == ATTENDANCE


@pytest.mark.slow
@given(mutations(ATTENDANCES, fields=range(8, 48)) | mutations(ATTENDANCES[3:], fields=range(344, 408)))
@settings(max_examples=500, deadline=None)
def test_a_mutated_attendance_is_refused_unless_it_is_genuine(data: bytes) -> None:
    try:
        made = decode_attendance(data, ROSTER)
    except PeerError:
        return
    assert data in ATTENDANCES
    assert encode_attendance(made) == data[:-SIGNATURE_BYTES]


def test_every_flipped_bit_of_an_attendance_is_refused() -> None:
    refusals = {type(refusal_of(decode_attendance, flipped, ROSTER)) for flipped in flips(ATTENDANCES[0])}
    assert refusals == {MalformedMessage, VersionRefused, SignatureRefused}


def test_every_truncation_and_any_longer_attendance_is_refused() -> None:
    for frame in (ATTENDANCES[0], ATTENDANCES[3]):
        for length in range(len(frame)):
            assert type(refusal_of(decode_attendance, frame[:length], ROSTER)) is MalformedMessage
        assert type(refusal_of(decode_attendance, frame + b"\0", ROSTER)) is MalformedMessage


@pytest.mark.parametrize("changes", [{"samples": 0}, {"values": 0, "votes": 7}, {"votes": 1}, {"votes": 8}])
def test_an_attendance_without_samples_or_with_other_votes_is_refused_though_signed(
    changes: dict[str, int],
) -> None:
    with pytest.raises(MalformedMessage, match="needs samples, and"):
        decode_attendance(attend(KITS[1], **changes), ROSTER)


def test_an_attendance_counts_only_with_the_signature_of_the_node_that_it_names() -> None:
    body = encode_attendance(attendance(KITS[1]))
    with pytest.raises(SignatureRefused, match="node 1: the signature is not valid"):
        decode_attendance(signed(body, KITS[2].sign(body)), ROSTER)
    with pytest.raises(SignatureRefused, match="node 9: not on the roster"):
        decode_attendance(attend(KITS[1], node=9), ROSTER)


def test_two_memories_of_one_meaning_cannot_both_be_signed() -> None:
    body = encode_attendance(attendance(KITS[3], memory=MEMORY))
    one, other = sorted((encode_memory(frozenset({opening})) for opening in MEMORY), reverse=True)
    turned = body[: -len(one + other)] + one + other
    with pytest.raises(MalformedMessage, match="not written in its one order"):
        decode_attendance(signed(turned, KITS[3].sign(turned)), ROSTER)


SMALL_ORDER = [
    *(number.to_bytes(32, "little") for number in (0, 1, PRIME - 1, PRIME, PRIME + 1)),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]
"""What X25519 takes for the points of a small order: with them every secret is zero."""


@pytest.mark.parametrize("key", SMALL_ORDER)
@pytest.mark.parametrize("high", [0, 0x80])
def test_an_exchange_key_with_which_no_secret_is_shared_is_refused_though_signed(key: bytes, high: int) -> None:
    """X25519 reads no highest bit."""
    posed = key[:-1] + bytes([key[-1] | high])
    with pytest.raises(MalformedMessage, match="exchange key is none"):
        decode_attendance(attend(KITS[1], exchange=posed), ROSTER)


def test_signed_attendances_end_to_end_are_cut_where_each_ends() -> None:
    whole = b"".join(ATTENDANCES)
    assert [*attendances(whole)] == ATTENDANCES
    assert [*attendances(b"")] == []
    ends = {0, *accumulate(map(len, ATTENDANCES))}
    for length in set(range(len(whole))) - ends:
        with pytest.raises(MalformedMessage, match="not a whole number of attendances"):
            list(attendances(whole[:length]))


# --- contribution ------------------------------------------------------------------------------


@given(
    values=st.integers(1, 100) | st.integers(FULL - 1, FULL + 1),
    voting=st.booleans(),
    held=st.lists(st.booleans(), min_size=1, max_size=20).map(tuple),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_decode_contribution_undoes_encode_contribution(
    values: int, voting: bool, held: tuple[bool, ...], data: st.DataObject
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
        held=held,
        seeds=tuple(data.draw(st.lists(raw(SEED_BYTES), min_size=blocks, max_size=blocks))),
        first=data.draw(words(slots, PARAMETERS.width_up)),
    )
    body = encode_contribution(made, PARAMETERS)
    frame = signed(body, KITS[1].sign(body))
    assert len(frame) == contribution_length(values, votes, len(held), PARAMETERS)
    announced = replace(announced_by(1), values=values, votes=votes)
    back = decode_contribution(frame, announced, len(held), PARAMETERS, ROSTER)
    assert same(back, made)
    assert encode_contribution(back, PARAMETERS) == body


@pytest.mark.slow
@given(mutations(CONTRIBUTIONS, fields=range(8, 48)))
@settings(max_examples=500, deadline=None)
def test_a_mutated_contribution_is_refused_unless_it_is_genuine(data: bytes) -> None:
    try:
        made = decode_contribution(data, announced_by(1), MEMBERS, PARAMETERS, ROSTER)
    except PeerError:
        return
    assert data in CONTRIBUTIONS[:2]
    assert encode_contribution(made, PARAMETERS) == data[:-SIGNATURE_BYTES]


def test_every_flipped_bit_of_a_contribution_is_refused() -> None:
    refusals = {
        type(refusal_of(decode_contribution, flipped, announced_by(1), MEMBERS, PARAMETERS, ROSTER))
        for flipped in flips(CONTRIBUTIONS[0])
    }
    assert refusals == {MalformedMessage, VersionRefused, PeerMismatch, SignatureRefused}


def test_every_truncation_and_any_longer_contribution_is_refused() -> None:
    frame = CONTRIBUTIONS[0]
    for length in range(len(frame)):
        refused = refusal_of(decode_contribution, frame[:length], announced_by(1), MEMBERS, PARAMETERS, ROSTER)
        assert type(refused) is MalformedMessage
    longer = refusal_of(decode_contribution, frame + b"\0", announced_by(1), MEMBERS, PARAMETERS, ROSTER)
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
        decode_contribution(frame, announced, MEMBERS, PARAMETERS, ROSTER)
    assert (mismatch.value.field, mismatch.value.ours, mismatch.value.theirs) == (field, ours, theirs)


def test_a_contribution_signed_by_another_member_is_refused() -> None:
    body = encode_contribution(contribution(KITS[1], COHORT, PARAMETERS), PARAMETERS)
    with pytest.raises(SignatureRefused, match="node 1"):
        decode_contribution(signed(body, KITS[2].sign(body)), announced_by(1), MEMBERS, PARAMETERS, ROSTER)


def test_a_member_cannot_sign_two_spellings_of_one_contribution() -> None:
    made = contribution(KITS[1], COHORT, PARAMETERS)
    body = bytearray(encode_contribution(made, PARAMETERS))
    assert made.first.size * PARAMETERS.width_up % 8 != 0
    body[-1] |= 0x80
    frame = signed(bytes(body), KITS[1].sign(bytes(body)))
    with pytest.raises(MalformedMessage, match="unused bits"):
        decode_contribution(frame, announced_by(1), MEMBERS, PARAMETERS, ROSTER)
    body[-1] &= 0x7F
    body[156] |= 0x10  # a bit for a fifth member, of four
    frame = signed(bytes(body), KITS[1].sign(bytes(body)))
    with pytest.raises(MalformedMessage, match="unused bits"):
        decode_contribution(frame, announced_by(1), MEMBERS, PARAMETERS, ROSTER)


def test_a_contribution_to_a_cohort_of_another_size_is_refused() -> None:
    for members in (8, 9, 1000):
        frame = contribute(KITS[1], COHORT, PARAMETERS, held=(True,) * members)
        assert decode_contribution(frame, announced_by(1), members, PARAMETERS, ROSTER).held == (True,) * members
        for other in (members - 8, members + 8):
            with pytest.raises(MalformedMessage, match="were announced"):
                decode_contribution(frame, announced_by(1), other, PARAMETERS, ROSTER)


def test_nothing_is_allocated_for_sizes_that_only_a_message_claims() -> None:
    huge = attendance(KITS[1], values=0xFFFF_FFFF, votes=0xFFFF_FFFF)
    frame = contribute(KITS[1], COHORT, PARAMETERS, values=0xFFFF_FFFF, votes=0xFFFF_FFFF)
    with pytest.raises(MalformedMessage, match=r"bytes long; .* were announced"):
        decode_contribution(frame, huge, MEMBERS, PARAMETERS, ROSTER)
