"""``edge_client.dealing``: shares reach whom they are for, and nothing else passes for one."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.dealing import Secrets, deal, take
from protocol.attendance import SHARE_BYTES, Attendance
from protocol.call import Call
from protocol.errors import MalformedMessage
from protocol.sharing import SECRET_BYTES, join, threshold
from tests import factories
from tests.edge_client.federation import FIRST, RUN

NODES = (2, 3, 5, 8, 13)
PLAN = factories.plan()
KITS = factories.kits(PLAN, NODES)
SECRETS = {node: Secrets.draw() for node in NODES}
MEMBERS = [factories.attendance(KITS[node], exchange=SECRETS[node].public) for node in NODES]


def dealt_by(node: int, call: Call = FIRST, colluders: int = 1) -> bytes:
    return deal(SECRETS[node], frozenset(NODES), call, KITS[node], colluders)


def to(node: int, dealt: bytes) -> bytes:
    at = SHARE_BYTES * NODES.index(node)
    return dealt[at : at + SHARE_BYTES]


def taken(node: int, *dealt: bytes, members: list[Attendance] = MEMBERS, call: Call = FIRST) -> list[bytes | None]:
    return [*take(b"".join(dealt), members, call, KITS[node])]


@pytest.mark.parametrize("colluders", [0, 1, 2])
def test_a_quorum_of_those_who_were_dealt_shares_gives_both_secrets_back(colluders: int) -> None:
    dealer = 5
    dealt, member = dealt_by(dealer, colluders=colluders), [MEMBERS[NODES.index(dealer)]]
    quorum = NODES[: threshold(len(NODES), colluders)]
    shares = {node: taken(node, to(node, dealt), members=member)[0] or b"" for node in quorum}
    assert join({node: both[:SECRET_BYTES] for node, both in shares.items()}) == SECRETS[dealer].exchange
    assert join({node: both[SECRET_BYTES:] for node, both in shares.items()}) == SECRETS[dealer].seed
    fewer = dict(list(shares.items())[1:])
    assert join({node: both[:SECRET_BYTES] for node, both in fewer.items()}) != SECRETS[dealer].exchange


def test_every_member_can_use_what_every_member_has_dealt() -> None:
    dealt = {node: dealt_by(node) for node in NODES}
    for node in NODES:
        shares = taken(node, *(to(node, dealt[dealer]) for dealer in NODES))
        assert len({share for share in shares if share is not None}) == len(NODES)


def test_a_share_for_another_node_from_another_dealer_or_of_another_attempt_cannot_be_used() -> None:
    good, member = dealt_by(5), [MEMBERS[2]]
    assert taken(3, to(3, good), members=member) != [None]
    assert taken(3, to(8, good), members=member) == [None]
    assert taken(3, to(3, dealt_by(8)), members=member) == [None]
    assert taken(3, to(3, good), members=[replace(MEMBERS[2], exchange=SECRETS[8].public)]) == [None]
    for call in (Call(RUN, 1, 2), Call(RUN, 2, 1), Call(bytes(16), 1, 1)):
        assert taken(3, to(3, good), members=member, call=call) == [None]
        assert taken(3, to(3, dealt_by(5, call)), members=member) == [None]


@given(at=st.integers(0, SHARE_BYTES - 1), flip=st.integers(1, 255))
def test_a_share_of_which_any_byte_was_changed_cannot_be_used(at: int, flip: int) -> None:
    """Neither a sealed byte nor one of what the dealer has committed to."""
    changed = bytearray(to(3, dealt_by(5)))
    changed[at] ^= flip
    assert taken(3, bytes(changed), members=[MEMBERS[2]]) == [None]


@pytest.mark.parametrize("length", [0, 1, SHARE_BYTES - 1, SHARE_BYTES + 1, 2 * SHARE_BYTES])
def test_anything_but_one_deal_of_each_member_is_refused(length: int) -> None:
    with pytest.raises(MalformedMessage, match=f"{length} bytes are not the shares of 1 members"):
        taken(3, bytes(length), members=[MEMBERS[2]])


def test_new_secrets_are_drawn_each_time() -> None:
    drawn = [Secrets.draw() for _ in range(3)]
    assert len({secret for one in drawn for secret in (one.exchange, one.seed, one.public)}) == 9


def test_two_members_come_to_the_same_shared_secret() -> None:
    one, other = Secrets.draw(), Secrets.draw()
    assert one.shared(other.public) == other.shared(one.public)
