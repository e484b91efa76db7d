"""``protocol.release``: which sum is to be opened, and a member's consent to it, as bytes."""

import struct
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import MalformedMessage, PeerError, SignatureRefused, VersionRefused
from protocol.frame import CONSENT, RELEASE, SIGNATURE_BYTES, kind_of, signed
from protocol.openings import MOST_NODES, MOST_SETS, Nodes
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
    DIVIDED,
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
    nodes = draw(st.lists(U32, unique=True, min_size=1, max_size=8))
    ends = [0, *sorted(draw(st.sets(st.integers(1, len(nodes)), max_size=3)) | {len(nodes)})]
    sets = tuple(frozenset(nodes[start:end]) for start, end in pairwise(ends))
    members = draw(st.integers(len(nodes), (1 << 32) - 1))
    return Release(draw(raw(16)), draw(U32), draw(U32), members, draw(raw(32)), draw(st.booleans()), sets)


@given(releases())
def test_decode_release_undoes_encode_release(made: Release) -> None:
    encoded = encode_release(made)
    assert decode_release(encoded) == made
    assert len(encoded) == 76 + 4 * len(made.sets) + 4 * len(made.nodes)
    assert kind_of(encoded) == RELEASE


@pytest.mark.slow
@given(mutations(RELEASES, fields=range(8, 104)))
@settings(max_examples=500, deadline=None)
def test_a_mutated_release_is_refused_or_encodes_to_itself(data: bytes) -> None:
    try:
        made = decode_release(data)
    except PeerError:
        return
    assert encode_release(made) == data


@pytest.mark.parametrize("made", [release(), release(sets=DIVIDED.groups)])
def test_every_flipped_bit_of_a_release_gives_another_release_or_is_refused(made: Release) -> None:
    refused = 0
    for flipped in flips(encode_release(made)):
        try:
            other = decode_release(flipped)
        except PeerError:
            refused += 1
            continue
        assert encode_release(other) == flipped
        assert other != made
    assert refused > 8 * 8


@pytest.mark.parametrize("frame", RELEASES)
def test_every_truncation_and_any_longer_release_is_refused(frame: bytes) -> None:
    for data in (*(frame[:length] for length in range(len(frame))), frame + b"\0", frame + struct.pack("<I", 5)):
        assert type(refusal_of(decode_release, data)) is MalformedMessage


@pytest.mark.parametrize(
    "changes",
    [
        {"sets": ()},
        {"sets": (), "members": 0},
        {"sets": (Nodes(),)},
        {"sets": (Nodes({1, 2}), Nodes())},
        {"sets": (Nodes(), Nodes({1, 2}))},
        {"sets": (Nodes({1, 2}), Nodes({2, 3}))},
        {"sets": (Nodes({1, 2}), Nodes({1, 2}))},
        {"sets": (Nodes({1, 2}), Nodes({3, 4, 5}))},
        {"members": 2},
        {"members": 0},
    ],
)
def test_a_release_of_nobody_of_one_twice_or_of_more_than_there_are_is_refused(changes: dict[str, object]) -> None:
    data = encode_release(release(**changes))
    with pytest.raises(MalformedMessage, match="names no members, or more than there are, or one of them twice"):
        decode_release(data)


@pytest.mark.parametrize("flag", [2, 0x100, 0xFFFF_FFFF])
def test_a_release_asks_for_the_terms_or_not_and_in_no_third_way(flag: int) -> None:
    data = RELEASES[0][:68] + struct.pack("<I", flag) + RELEASES[0][72:]
    with pytest.raises(MalformedMessage, match="does not end where it says"):
        decode_release(data)


def test_sets_in_another_order_are_another_release() -> None:
    """Their order is that of their groups, which the release does not say; whoever is asked knows them."""
    one, other = (release(sets=sets) for sets in (DIVIDED.groups, DIVIDED.groups[::-1]))
    assert decode_release(encode_release(one)) == one != other == decode_release(encode_release(other))
    assert one.nodes == other.nodes == DIVIDED.nodes


@pytest.mark.parametrize("nodes", [(2, 1, 0xFFFF_FFFF), (1, 1, 2), (1, 2, 2)])
def test_those_whose_sum_is_opened_stand_in_ascending_order_and_once(nodes: tuple[int, ...]) -> None:
    data = RELEASES[0][:80] + struct.pack("<3I", *nodes)
    with pytest.raises(MalformedMessage, match="must be in ascending order"):
        decode_release(data)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((1, 0xFFFF_FFFE), "ends too early, or is too long"), ((0xFFFF_FFFE, 0), "sets of nodes are more than 64")],
)
def test_nothing_is_allocated_for_numbers_of_sets_and_nodes_that_only_a_release_claims(
    numbers: tuple[int, int], text: str
) -> None:
    data = RELEASES[0][:32] + struct.pack("<I", 0xFFFF_FFFF) + RELEASES[0][36:72] + struct.pack("<2I", *numbers)
    with pytest.raises(MalformedMessage, match=text):
        decode_release(data)


def test_a_release_opens_no_more_sums_than_an_attendance_has_bits_for() -> None:
    sets = tuple(Nodes({node}) for node in range(MOST_SETS))
    most = release(members=MOST_SETS + 1, sets=sets)
    assert decode_release(encode_release(most)) == most
    with pytest.raises(MalformedMessage, match=f"{MOST_SETS + 1} sets of nodes are more than {MOST_SETS}"):
        decode_release(encode_release(replace(most, sets=(*sets, Nodes({MOST_SETS})))))


def test_a_release_of_more_nodes_than_any_plan_allows_is_refused_before_they_are_read() -> None:
    most = release(members=MOST_NODES + 1, sets=(Nodes(range(MOST_NODES)),))
    assert decode_release(encode_release(most)) == most
    with pytest.raises(MalformedMessage, match="is too long"):
        decode_release(encode_release(replace(most, sets=(Nodes(range(MOST_NODES + 1)),))))


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
        vouchers=tuple(draw(st.lists(raw(32), max_size=3))),
        shares=tuple(shares),
        sealed=draw(st.binary(max_size=20)),
    )


@given(consents())
def test_decode_consent_undoes_encode_consent(made: Consent) -> None:
    body = encode_consent(made)
    frame = signed(body, KITS[made.node].sign(body))
    assert decode_consent(frame, ROSTER) == made
    assert len(frame) == consent_length(made.members, len(made.sealed), len(made.vouchers))
    assert kind_of(frame) == CONSENT


@pytest.mark.slow
@given(mutations(CONSENTS, fields=range(8, 112)))
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
    head = encode_consent(consent(1, members=members, sealed=sealed, shares=()))[:80]
    body = head + b"".join([*good.vouchers, *good.shares, SEALED])
    with pytest.raises(MalformedMessage, match="another length was announced"):
        decode_consent(signed(body, KITS[1].sign(body)), ROSTER)


@pytest.mark.parametrize("sums", [0, 2, 3, 0xFFFF_FFFF])
def test_a_consent_has_a_voucher_for_each_sum(sums: int) -> None:
    """With another number of them, all that follows would stand elsewhere."""
    body = bytearray(encode_consent(consent(1)))
    body[40:44] = struct.pack("<I", sums)
    with pytest.raises(MalformedMessage, match="another length was announced"):
        decode_consent(signed(bytes(body), KITS[1].sign(bytes(body))), ROSTER)


def test_vouchers_cannot_be_passed_off_as_shares() -> None:
    """A voucher is as long as a share, so the length alone would not tell; the signature does."""
    frame = bytearray(CONSENTS[0])
    frame[36:40], frame[40:44] = struct.pack("<I", 3), struct.pack("<I", 2)
    with pytest.raises(SignatureRefused):
        decode_consent(bytes(frame), ROSTER)
