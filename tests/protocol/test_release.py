"""``protocol.release``: which sum is to be opened, and a member's consent to it, as bytes."""

import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import MalformedMessage, PeerError, SignatureRefused, VersionRefused
from protocol.frame import CONSENT, RELEASE, SIGNATURE_BYTES, kind_of, signed
from protocol.openings import MOST_NODES
from protocol.release import (
    Consent,
    Release,
    consent_length,
    decode_consent,
    decode_release,
    encode_consent,
    encode_release,
)
from tests.factories import SEALED, mutations
from tests.protocol.frames import (
    CONSENTS,
    KITS,
    RELEASES,
    ROSTER,
    U32,
    consent,
    flips,
    raw,
    refusal_of,
    release,
    send_consent,
)

# --- release -----------------------------------------------------------------------------------


@st.composite
def releases(draw: st.DrawFn) -> Release:
    nodes = draw(st.frozensets(U32, min_size=1, max_size=8))
    members = draw(st.integers(len(nodes), (1 << 32) - 1))
    return Release(draw(raw(16)), draw(U32), draw(U32), members, draw(raw(32)), draw(st.booleans()), nodes)


@given(releases())
def test_decode_release_undoes_encode_release(made: Release) -> None:
    encoded = encode_release(made)
    assert decode_release(encoded) == made
    assert len(encoded) == 76 + 4 * len(made.nodes)
    assert kind_of(encoded) == RELEASE


@pytest.mark.slow
@given(mutations(RELEASES, fields=range(8, 88)))
@settings(max_examples=500, deadline=None)
def test_a_mutated_release_is_refused_or_encodes_to_itself(data: bytes) -> None:
    try:
        made = decode_release(data)
    except PeerError:
        return
    assert encode_release(made) == data


def test_every_flipped_bit_of_a_release_gives_another_release_or_is_refused() -> None:
    refused = 0
    for flipped in flips(RELEASES[0]):
        try:
            made = decode_release(flipped)
        except PeerError:
            refused += 1
            continue
        assert encode_release(made) == flipped
        assert made != release()
    assert refused > 8 * 8


def test_every_truncation_and_any_longer_release_is_refused() -> None:
    frame = RELEASES[0]
    for data in (*(frame[:length] for length in range(len(frame))), frame + b"\0", frame + struct.pack("<I", 5)):
        assert type(refusal_of(decode_release, data)) is MalformedMessage


@pytest.mark.parametrize(
    "changes",
    [
        {"nodes": frozenset()},
        {"nodes": frozenset(), "members": 0},
        {"members": 2},
        {"members": 0},
        {"terms": 2},
        {"terms": 0x100},
        {"terms": 0xFFFF_FFFF},
    ],
)
def test_a_release_of_nobody_of_more_than_there_are_or_with_another_flag_is_refused(changes: dict[str, object]) -> None:
    data = encode_release(release(**changes))
    with pytest.raises(MalformedMessage, match="names no members, or more than there are"):
        decode_release(data)


@pytest.mark.parametrize("nodes", [(2, 1, 0xFFFF_FFFF), (1, 1, 2), (1, 2, 2)])
def test_those_whose_sum_is_opened_stand_in_ascending_order_and_once(nodes: tuple[int, ...]) -> None:
    data = RELEASES[0][:76] + struct.pack("<3I", *nodes)
    with pytest.raises(MalformedMessage, match="must stand in ascending order"):
        decode_release(data)


def test_nothing_is_allocated_for_a_number_of_nodes_that_only_a_release_claims() -> None:
    data = RELEASES[0][:32] + struct.pack("<I", 0xFFFF_FFFF) + RELEASES[0][36:72] + struct.pack("<I", 0xFFFF_FFFE)
    with pytest.raises(MalformedMessage, match="names no members"):
        decode_release(data)


def test_a_release_of_more_nodes_than_any_plan_allows_is_refused_before_they_are_read() -> None:
    most = release(members=MOST_NODES + 1, nodes=frozenset(range(MOST_NODES)))
    assert decode_release(encode_release(most)) == most
    with pytest.raises(MalformedMessage, match="names no members"):
        decode_release(encode_release(replace(most, nodes=frozenset(range(MOST_NODES + 1)))))


# --- consent -----------------------------------------------------------------------------------


@st.composite
def consents(draw: st.DrawFn) -> Consent:
    shares = draw(st.lists(raw(32), max_size=6))
    return Consent(
        run=draw(raw(16)),
        round=draw(U32),
        attempt=draw(U32),
        node=draw(st.sampled_from(sorted(KITS))),
        members=len(shares),
        cohort=draw(raw(32)),
        voucher=draw(raw(32)),
        shares=tuple(shares),
        sealed=draw(st.binary(max_size=20)),
    )


@given(consents())
def test_decode_consent_undoes_encode_consent(made: Consent) -> None:
    body = encode_consent(made)
    frame = signed(body, KITS[made.node].sign(body))
    assert decode_consent(frame, ROSTER) == made
    assert len(frame) == consent_length(made.members, len(made.sealed))
    assert kind_of(frame) == CONSENT


@pytest.mark.slow
@given(mutations(CONSENTS, fields=range(8, 108)))
@settings(max_examples=500, deadline=None)
def test_a_mutated_consent_is_refused_unless_it_is_genuine(data: bytes) -> None:
    try:
        made = decode_consent(data, ROSTER)
    except PeerError:
        return
    assert data in CONSENTS
    assert encode_consent(made) == data[:-SIGNATURE_BYTES]


def test_every_flipped_bit_of_a_consent_is_refused() -> None:
    refusals = {type(refusal_of(decode_consent, flipped, ROSTER)) for flipped in flips(CONSENTS[0])}
    assert refusals == {MalformedMessage, VersionRefused, SignatureRefused}


def test_every_truncation_and_any_longer_consent_is_refused() -> None:
    frame = CONSENTS[0]
    for data in (*(frame[:length] for length in range(len(frame))), frame + b"\0", frame + bytes(32)):
        assert type(refusal_of(decode_consent, data, ROSTER)) is MalformedMessage


def test_a_consent_counts_only_with_the_signature_of_the_node_that_it_names() -> None:
    assert decode_consent(send_consent(1), ROSTER).node == 1
    with pytest.raises(SignatureRefused, match="node 1: the signature is not valid"):
        decode_consent(send_consent(1, signer=2), ROSTER)
    body = encode_consent(consent(9))
    with pytest.raises(SignatureRefused, match="node 9: not on the roster"):
        decode_consent(signed(body, KITS[1].sign(body)), ROSTER)


@pytest.mark.parametrize(
    ("members", "sealed"), [(3, SEALED), (5, SEALED), (0xFFFF_FFFF, SEALED), (4, SEALED[1:]), (4, SEALED + b"\0")]
)
def test_a_consent_has_a_share_of_each_member_and_terms_of_the_length_that_it_says(members: int, sealed: bytes) -> None:
    good = consent(1)
    head = encode_consent(consent(1, members=members, sealed=sealed, shares=()))[:108]
    body = head + b"".join(good.shares) + SEALED
    with pytest.raises(MalformedMessage, match="another length was announced"):
        decode_consent(signed(body, KITS[1].sign(body)), ROSTER)
