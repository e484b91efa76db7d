"""``edge_client.round`` and ``consenting``: what a client agrees to of a cohort that is divided into groups."""

from dataclasses import replace

import numpy as np
import pytest

from edge_client.cipher import RoundCipher
from edge_client.consenting import admit_release
from edge_client.round import dither_of, quantised
from edge_client.sums import tag_key, voucher
from protocol.cohort import Cohort, gather_cohort
from protocol.errors import CohortRefused
from protocol.figures import NOTHING
from protocol.openings import Memory, Nodes, Opening
from protocol.pairwise import mask, pair_key, self_key
from protocol.payload import pack_payload
from protocol.release import Release, decode_consent
from protocol.sharing import SECRET_BYTES
from protocol.wire import decode_contribution
from tests.edge_client.federation import FIRST, RUN, announced
from tests.edge_client.scene import SIZE, THREE_GROUPS, TWELVE, Scene, ready
from tests.edge_client.tampering import ciphertext_sum

A, B, C = THREE_GROUPS
NODE = TWELVE[0]
"""It is in the first group."""

WHOLE = frozenset(TWELVE)


def less(group: Nodes, count: int = 1) -> Nodes:
    """A group without its last members; its first one stays."""
    return Nodes(sorted(group)[:-count])


# --- the cohort -----------------------------------------------------------------------------------


def test_every_member_admits_a_cohort_in_groups(divided: Scene) -> None:
    for node in divided.waiting:
        assert divided.admit(node, divided.cohort.encode()).groups == THREE_GROUPS


def test_groups_smaller_than_the_smallest_cohort_of_the_plan_are_refused(divided: Scene) -> None:
    small = less(C, 2)
    for groups in ((A, B | (C - small), small), (less(A, 2), B, C | (A - less(A, 2)))):
        wrong = gather_cohort(divided.cohort.encoded, divided.fed.roster, groups)
        with pytest.raises(CohortRefused, match="a sum of 2 was announced; the plan allows none of fewer than 3"):
            divided.admit(NODE, wrong.encode())


@pytest.mark.parametrize("groups", [(A, B), (A, B, C, C), (WHOLE,), (A, A | B, C)])
def test_a_division_that_is_none_is_refused(groups: tuple[Nodes, ...], divided: Scene) -> None:
    with pytest.raises(CohortRefused, match="two or more, and each member is in one of them"):
        divided.admit(NODE, announced(divided.cohort.encoded, groups))


@pytest.mark.parametrize("node", [TWELVE[0], TWELVE[7]])
def test_a_contribution_has_the_masks_and_the_tag_of_its_own_group_alone(node: int, divided: Scene) -> None:
    p, cohort, pending = divided.plan.parameters, divided.cohort, divided.waiting[node]
    group, own = cohort.part_of(node), next(member for member in cohort.members if member.node == node)
    sent = decode_contribution(divided.contribution(node), own, 12, p, divided.fed.roster)
    with RoundCipher(p, divided.kits[node].secret.bfv_seed(RUN, 1)) as cipher:
        slots = cipher.decrypt(ciphertext_sum(p, [(sent.first, sent.seeds)]))
    digest = cohort.digest(1)
    keys = {
        peer.node: pair_key(pending.secrets.shared(peer.exchange), digest, (node, peer.node))
        for peer in cohort.members
        if peer.node in THREE_GROUPS[group] - {node}
    }
    assert len(keys) == 3
    masks = mask(slots.size, node, self_key(pending.secrets.seed, digest, node), keys, p.plain_modulus)
    key = tag_key(divided.kits[node].secret, own, 12, digest, group)
    integers, _ = quantised(pending, cohort, node, divided.plan, dither_of(divided.plan, FIRST, node, SIZE))
    bare = pack_payload(integers, np.zeros(0, np.int64), NOTHING, key, p)
    assert ((bare + masks) % np.uint64(p.plain_modulus)).tolist() == slots.tolist()


# --- the release ----------------------------------------------------------------------------------


def released(
    scene: Scene,
    *sets: Nodes,
    groups: tuple[Nodes, ...] = THREE_GROUPS,
    memory: Memory = frozenset(),
    of: int = NODE,
) -> Cohort:
    """Let a node decide on opening these sums, where another remembers something."""
    waiting = dict(scene.waiting) | {TWELVE[3]: ready(scene.kits[TWELVE[3]], plan=scene.plan, memory=memory)}
    cohort = gather_cohort([pending.attendance for pending in waiting.values()], scene.fed.roster, groups)
    release = Release(RUN, 1, 1, len(TWELVE), cohort.digest(1), False, sets)
    pending = replace(waiting[of], cohort=cohort.encode())
    return admit_release(release, pending, FIRST, scene.kits[of], scene.plan)


@pytest.mark.parametrize(
    "sets",
    [(A, B, C), (A, B), (A, C), (less(A), B), (less(A), less(B), less(C))],
    ids=["all", "the first two", "the first and the last", "one is lost", "one is lost of each"],
)
def test_the_sums_of_groups_that_are_a_quorum_together_may_be_opened(sets: tuple[Nodes, ...], divided: Scene) -> None:
    assert released(divided, *sets).groups == THREE_GROUPS


NOT_GROUPS = "not one of each of some groups of the cohort"
NOT_OURS = "not one of this node and others of its cohort"


@pytest.mark.parametrize(
    ("sets", "text"),
    [
        pytest.param((WHOLE,), NOT_GROUPS, id="all in one"),
        pytest.param((A | B, C), NOT_GROUPS, id="two groups in one"),
        pytest.param((A | {min(B)}, B - {min(B)}, C), NOT_GROUPS, id="one with another group"),
        pytest.param((A - {max(A)} | {max(B)}, B - {max(B)} | {max(A)}, C), NOT_GROUPS, id="two exchanged"),
        pytest.param((B, A), NOT_GROUPS, id="in another order"),
        pytest.param((A, C, B), NOT_GROUPS, id="the others in another order"),
        pytest.param((B, C), NOT_OURS, id="without its own group"),
        pytest.param((A - {NODE}, B, C), NOT_OURS, id="without the node in its own group"),
        pytest.param((A, B | {999}), NOT_OURS, id="with a stranger"),
        pytest.param((A,), "a sum of 4 of 12 invited was announced; the plan allows 7 to 12", id="its own group alone"),
        pytest.param((less(A), less(B)), "a sum of 6 of 12 invited", id="fewer than the quorum"),
        pytest.param((A, B, less(C, 2)), "a sum of 2 was announced; the plan allows none of fewer than 3", id="small"),
        pytest.param((less(A, 3), B, C), "a sum of 1 was announced", id="the node alone"),
    ],
)
def test_sums_that_are_not_of_groups_or_of_too_few_are_not_opened(
    sets: tuple[Nodes, ...], text: str, divided: Scene
) -> None:
    with pytest.raises(CohortRefused, match=text):
        released(divided, *sets)


@pytest.mark.parametrize("groups", [(), (A | B, C)], ids=["of a cohort that is not divided", "of one of two groups"])
def test_two_sums_of_one_group_are_not_opened(groups: tuple[Nodes, ...], divided: Scene) -> None:
    with pytest.raises(CohortRefused, match=NOT_GROUPS):
        released(divided, A, B, groups=groups)


def test_after_the_sum_of_all_those_of_groups_may_be_opened_unless_they_leave_few_over(divided: Scene) -> None:
    memory = frozenset({Opening(WHOLE, frozenset({WHOLE}))})
    for sets in ((A, B, C), (A, B), (less(A), less(B), less(C))):
        assert released(divided, *sets, memory=memory)
    for sets in ((less(A), B, C), (less(A), less(B), C)):
        with pytest.raises(CohortRefused, match="the difference of two sums from the same starting model"):
            released(divided, *sets, memory=memory)


# --- the consent ----------------------------------------------------------------------------------


def test_a_consent_has_a_voucher_for_each_sum_and_no_share_of_a_member_whose_group_is_not_opened(
    divided: Scene,
) -> None:
    lost = max(A)
    total = divided.summed(lost={lost}, groups=(0, 1))
    cohort, weights = divided.cohort, divided.cohort.weights(divided.plan.max_share)
    for node in (NODE, min(B)):
        given = decode_consent(divided.consent(node, total), divided.fed.roster)
        assert given.vouchers == tuple(
            voucher(
                divided.kits[node].secret,
                cohort.members[0],
                cohort.digest(1),
                group,
                (len(inside), 12),
                (sum(weights[member] for member in inside), sum(weights.values())),
            )
            for group, inside in enumerate((A - {lost}, B))
        )
        assert len({*given.vouchers}) == 2
        for member, both, share in zip(cohort.members, divided.told(node).shares, given.shares, strict=True):
            assert both is not None
            key, seed = both[:SECRET_BYTES], both[SECRET_BYTES:]
            assert share == (bytes(SECRET_BYTES) if member.node in C else key if member.node == lost else seed)
