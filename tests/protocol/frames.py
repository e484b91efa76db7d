"""Genuine frames of every kind of message, and what the tests of ``protocol.wire`` do to them."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol.attendance import Attendance
from protocol.bits import Words
from protocol.errors import PeerError
from protocol.frame import signed
from protocol.grid import Grid
from protocol.openings import Memory, Nodes, Opening
from protocol.parameters import DEGREE, Parameters
from protocol.release import Consent, Release, encode_consent, encode_release
from protocol.wire import Aggregate, Contribution, encode_aggregate
from tests.factories import RUN, SEALED, attend, cohort, contribute, dummy_seeds, dummy_words, kits, plan

PARAMETERS = Parameters(Grid(16, 5))
FULL = (DEGREE - PARAMETERS.tags) * PARAMETERS.fields - PARAMETERS.trailing
"""As many values as one ciphertext holds."""

KITS = kits(plan(), (1, 2, 3, 0xFFFF_FFFF))
ROSTER = KITS[1].roster
COHORT = cohort(KITS)
DIVIDED = cohort(KITS, (Nodes({1, 3}), Nodes({2, 0xFFFF_FFFF})))
U32 = st.integers(0, (1 << 32) - 1) | st.sampled_from([0, 1, (1 << 32) - 1])
MEMORY: Memory = frozenset(
    {
        Opening(frozenset({1, 2, 3}), frozenset()),
        Opening(frozenset({1, 2, 3, 0xFFFF_FFFF}), frozenset({frozenset({1, 2, 3})})),
    }
)
"""What a node remembers that has contributed to two attempts and consented to the sum of one."""


def announced_by(node: int) -> Attendance:
    """The attendance of a member of the cohort."""
    return next(member for member in COHORT.members if member.node == node)


def aggregate(second: "tuple[tuple[bytes, ...], ...] | Words", **changes: Any) -> Aggregate:
    """The sum of a cohort of three, with residues that count up."""
    made = Aggregate(
        run=RUN,
        round=1,
        attempt=1,
        clients=3,
        members=4,
        group=0,
        weight=306,
        total=501,
        values=7,
        votes=0,
        plan=plan().digest,
        key=ROSTER.key_id(RUN, 1),
        cohort=COHORT.digest(1),
        support=announced_by(1).support,
        voucher=bytes(range(0x60, 0x80)),
        first=dummy_words(PARAMETERS.slots(7, 0), PARAMETERS.width_down),
        second=second,
        sealed=SEALED,
    )
    return replace(made, **changes)


def release(**changes: Any) -> Release:
    """A release of three of the cohort's four."""
    made = Release(RUN, 1, 1, 4, COHORT.digest(1), terms=True, sets=(Nodes({1, 2, 0xFFFF_FFFF}),))
    return replace(made, **changes)


def consent(node: int, **changes: Any) -> Consent:
    """A node's consent, with shares that count up; it was dealt none by the last member."""
    made = Consent(
        run=RUN,
        round=1,
        attempt=1,
        node=node,
        members=4,
        cohort=COHORT.digest(1),
        vouchers=(bytes(range(0x60, 0x80)),),
        shares=(*(bytes(range(start, start + 32)) for start in (1, 2, 3)), bytes(32)),
        sealed=SEALED,
    )
    return replace(made, **changes)


def send_consent(node: int, signer: int | None = None, **changes: Any) -> bytes:
    """The same, encoded and signed; by another node where one is named."""
    body = encode_consent(consent(node, **changes))
    return signed(body, KITS[node if signer is None else signer].sign(body))


ATTENDANCES = [
    attend(KITS[1]),
    attend(KITS[2], votes=7, round=2),
    attend(KITS[0xFFFF_FFFF], samples=1),
    attend(KITS[3], attempt=3, spoiled=(1 << 64) - 1, memory=MEMORY),
]
CONTRIBUTIONS = [
    contribute(KITS[1], COHORT, PARAMETERS),
    contribute(KITS[1], COHORT, PARAMETERS, attempt=2, held=(True, False, True, False)),
    contribute(KITS[2], COHORT, PARAMETERS),
    contribute(KITS[1], cohort(KITS, votes=7), PARAMETERS),
]
SEEDS = (dummy_seeds(3),)
AGGREGATES = [
    encode_aggregate(made, PARAMETERS)
    for made in (
        aggregate(SEEDS),
        aggregate((dummy_seeds(1),), clients=1, weight=1, sealed=b""),
        aggregate(SEEDS, votes=7, first=dummy_words(PARAMETERS.slots(7, 7), PARAMETERS.width_down)),
        aggregate(SEEDS, group=1, first=np.zeros(PARAMETERS.slots(7, 0), np.uint64)),
    )
]
RELEASES = [
    encode_release(made)
    for made in (
        release(),
        release(terms=False, sets=(Nodes({1}),)),
        release(members=5, sets=(Nodes(range(1, 6)),)),
        release(sets=DIVIDED.groups),
        release(sets=(Nodes({3}), Nodes({2}))),
    )
]
CONSENTS = [
    send_consent(1),
    send_consent(2, sealed=b""),
    send_consent(3, round=2, members=1, shares=(bytes(range(32)),)),
    send_consent(1, vouchers=(bytes(range(0x60, 0x80)), bytes(range(0x80, 0xA0)))),
]


def raw(length: int) -> st.SearchStrategy[bytes]:
    """Any bytes of this length."""
    return st.binary(min_size=length, max_size=length)


def words(count: int, width: int) -> st.SearchStrategy[Words]:
    """u64[count] below 2^width: all alike but for a few."""
    return hnp.arrays(np.uint64, count, elements=st.integers(0, (1 << width) - 1), fill=st.just((1 << width) - 1))


def same(a: "Contribution | Aggregate", b: "Contribution | Aggregate") -> bool:
    """Whether two messages are equal, arrays by their elements."""
    return type(a) is type(b) and all(
        np.array_equal(x, y) if isinstance(x := getattr(a, f.name), np.ndarray) else x == y
        for f in fields(a)
        for y in [getattr(b, f.name)]
    )


def flips(frame: bytes) -> Sequence[bytes]:
    """The frame with each of its bits flipped."""
    return [frame[:i] + bytes([frame[i] ^ 1 << bit]) + frame[i + 1 :] for i in range(len(frame)) for bit in range(8)]


def refusal_of(decode: Callable[..., object], *arguments: object) -> PeerError:
    """The error with which a decoder refuses."""
    with pytest.raises(PeerError) as refusal:
        decode(*arguments)
    return refusal.value
