"""``protocol.wire``: signed messages, checked against somebody who has genuine frames and no key."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import MalformedMessage, PeerError, PeerMismatch, SignatureRefused, VersionRefused
from protocol.parameters import SEED_BYTES
from protocol.wire import (
    ATTENDANCE,
    ATTENDANCE_BYTES,
    SIGNATURE_BYTES,
    Attendance,
    contribution_length,
    decode_attendance,
    decode_contribution,
    encode_attendance,
    encode_contribution,
    kind_of,
    signed,
)
from tests.factories import attend, attendance, contribute, contribution, mutations
from tests.protocol.frames import (
    ATTENDANCES,
    COHORT,
    CONTRIBUTIONS,
    FULL,
    KITS,
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

POSITIVE = st.integers(1, (1 << 32) - 1) | st.sampled_from([1, (1 << 32) - 1])


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


@pytest.mark.slow
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
    assert refusals == {MalformedMessage, VersionRefused, SignatureRefused}


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


@given(
    values=st.integers(1, 100) | st.integers(FULL - 1, FULL + 1),
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


@pytest.mark.slow
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
    assert refusals == {MalformedMessage, VersionRefused, PeerMismatch, SignatureRefused}


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
