"""Attack: each client is asked to open another sum, or is told of another division of its cohort.

A share is a share: whether a member is in what is opened follows from what most clients were told of that member. So
sums are opened that nobody was asked for, and that nobody has compared with those that were opened before; those who
are asked see nothing amiss. One client works with the aggregator, as the plan allows.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from aggregator.recovery import _masks
from aggregator.summation import MaskedSum
from edge_client.client import Reply
from edge_client.round import dither_of, quantised
from edge_client.sums import _decrypted, open_sum
from protocol.call import Call
from protocol.errors import PeerError
from protocol.grid import Integers
from protocol.openings import Nodes
from protocol.release import decode_consent
from protocol.sharing import SECRET_BYTES, join, threshold
from tests.attacks.hostile import COLLUDER, Hostile, loud_plan
from tests.edge_client.federation import RUN, add_up, release_of
from tests.edge_client.tampering import claimed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xfail(
        strict=True,
        raises=AssertionError,
        reason="not yet held: nothing tells clients that all of them are asked to open the same sums",
    ),
]

NODES = (2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377)
ALL = Nodes(NODES)
FIRST, AGAIN = Call(RUN, 1, 1), Call(RUN, 1, 2)


@pytest.fixture
def hostile(tmp_path: Path) -> Hostile:
    return Hostile(tmp_path, loud_plan(max_cohort=12), NODES)


def opened(hostile: Hostile, call: Call, total: MaskedSum, claims: Mapping[int, MaskedSum]) -> Integers | None:
    """What the one sum in ``total`` holds, where the shares for it come from consents to these claims; or nothing."""
    (part,) = total.parts
    members = [member.node for member in total.cohort.members]
    given: dict[int, dict[int, bytes]] = {node: {} for node in total.cohort.parts[part.group]}
    for node, claim in claims.items():
        with suppress(PeerError):
            answer = hostile.clients[node].release(call, release_of(claim)).frames["consent"]
            for member, share in zip(members, decode_consent(answer, hostile.fed.roster).shares, strict=True):
                if member in given and any(share) and (member in claim.nodes) == (member in part.nodes):
                    given[member][node] = share
    for member, both in zip(members, hostile.pending(COLLUDER).shares, strict=True):
        if member in given and both is not None:
            given[member][COLLUDER] = both[SECRET_BYTES:] if member in part.nodes else both[:SECRET_BYTES]
    if min(map(len, given.values())) < threshold(len(total.invited), hostile.plan.colluders):
        return None
    left = _masks(total, part, {member: join(shares) for member, shares in given.items()}, hostile.plan.parameters)
    (aggregate,) = total.aggregates([left], hostile.plan, [bytes(32)], b"")
    return _decrypted(aggregate, hostile.fed.kits[COLLUDER], hostile.plan)[0]


def whole(hostile: Hostile) -> Integers:
    """The sum of all, which is opened as it should be."""
    aggregate = hostile.round(FIRST, NODES)
    return open_sum(aggregate, RUN, 1, hostile.fed.kits[COLLUDER], hostile.plan, hostile.network(RUN).layout).values


def update(hostile: Hostile, call: Call, trained: Mapping[int, Reply], node: int) -> Integers:
    """What nobody but a node itself may know."""
    pending, cohort = hostile.pending(node), hostile.cohort(trained, NODES)
    dither = dither_of(hostile.plan, call, node, pending.values.size)
    return quantised(pending, cohort, node, hostile.plan, dither)[0]


def test_after_the_sum_of_all_a_majority_for_each_member_does_not_leave_the_victim_out(hostile: Hostile) -> None:
    victim, others = 8, [node for node in NODES if node not in (8, COLLUDER)]
    first = whole(hostile)
    trained = hostile.train(AGAIN, NODES)
    sent = hostile.contributions(AGAIN, trained, NODES)
    cohort = hostile.cohort(trained, NODES)
    rest = {node: data for node, data in sent.items() if node != victim}
    total = add_up(hostile.fed, cohort, AGAIN, trained, rest)
    claims = {
        node: claimed(total, ALL - {victim, others[place - 1], others[place - 2]}) for place, node in enumerate(others)
    }
    seen = opened(hostile, AGAIN, total, claims)
    assert seen is None or not np.array_equal(first - seen, update(hostile, AGAIN, trained, victim))


def test_in_a_group_a_majority_for_each_member_does_not_leave_the_victim_alone(hostile: Hostile) -> None:
    group = NODES[1:7]
    victim, *others = group
    rest, groups = ALL.difference(group), (ALL.difference(group), Nodes(group))
    trained = hostile.train(FIRST, NODES)
    sent = hostile.contributions(FIRST, trained, NODES, groups=groups)
    cohort = hostile.cohort(trained, NODES, groups)
    total = add_up(hostile.fed, cohort, FIRST, trained, {victim: sent[victim]}, groups=(1,))

    def said(place: int, node: int) -> Nodes:
        if node in others:
            return Nodes({victim, node, others[others.index(node) - 1]})
        return Nodes({victim, others[place % 5], others[(place + 2) % 5]})

    claims = {node: claimed(total, rest, said(place, node)) for place, node in enumerate(NODES) if node != COLLUDER}
    seen = opened(hostile, FIRST, total, claims)
    assert seen is None or not np.array_equal(seen, update(hostile, FIRST, trained, victim))


def test_two_divisions_of_one_cohort_do_not_leave_the_victim_over(hostile: Hostile) -> None:
    one, other, victim = Nodes(NODES[:6]), Nodes(NODES[6:11]), NODES[11]
    left = whole(hostile)
    trained = hostile.train(AGAIN, NODES)
    divisions: Sequence[tuple[Nodes, Nodes, Nodes, int]] = (
        (one, ALL - one, one, 0),
        (ALL - other, other, other, 1),
    )
    totals: list[MaskedSum] = []
    claims: dict[int, MaskedSum] = {}
    for first, second, told, place in divisions:
        cohort = hostile.cohort(trained, NODES, (first, second))
        sent = hostile.contributions(AGAIN, trained, NODES, sorted(told), (first, second))
        totals.append(add_up(hostile.fed, cohort, AGAIN, trained, sent, groups=(place,)))
        claims |= {node: claimed(totals[-1], first, second) for node in told - {COLLUDER}}
    seen = [opened(hostile, AGAIN, total, claims) for total in totals]
    known = [values for values in seen if values is not None]
    assert len(known) < 2 or not np.array_equal(left - sum(known), update(hostile, AGAIN, trained, victim))
