"""``edge_client.round``: a client admits the cohort that it has joined, and refuses any that would give it away."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from edge_client.consenting import admit_release
from edge_client.keys import Kit
from edge_client.round import Update, admit_cohort, attend, require_invited
from edge_client.state import Pending
from protocol.attendance import ATTENDANCE_BYTES, decode_attendance, encode_attendance
from protocol.call import Call
from protocol.cohort import Cohort, gather_cohort
from protocol.errors import AgreementError, CohortRefused, MalformedMessage, PeerMismatch, SignatureRefused
from protocol.frame import signed
from protocol.openings import MEMORY_LIMIT, Memory, Opening, encode_memory
from protocol.release import Release
from tests import factories
from tests.edge_client.federation import FIRST, NODES, RUN, announced
from tests.edge_client.scene import LAYOUT, PLAN, SIZE, STATE, Scene, ready


def lie(pending: Pending, kit: Kit, field: str, value: object) -> bytes:
    """An attendance with a lie in one field, signed by the node itself."""
    changed: dict[str, Any] = {field: value}
    body = encode_attendance(replace(decode_attendance(pending.attendance, kit.roster), **changed))
    return signed(body, kit.sign(body))


def test_every_member_admits_the_announced_cohort(four: Scene) -> None:
    for node in four.waiting:
        admitted = four.admit(node, four.cohort.encode())
        assert admitted == four.cohort
        assert admitted.nodes == set(NODES[:4])


def test_a_cohort_without_ones_own_attendance_is_refused(four: Scene) -> None:
    others = gather_cohort(four.cohort.encoded[1:], four.fed.roster)
    with pytest.raises(CohortRefused, match="does not hold the attendance that this node has just signed"):
        four.admit(NODES[0], others.encode())


def test_ones_own_attendance_of_another_train_message_does_not_count(four: Scene) -> None:
    """An aggregator that keeps an old attendance could otherwise have masks used twice."""
    kit = four.kits[NODES[0]]
    with pytest.raises(CohortRefused, match="just signed"):
        admit_cohort(four.cohort.encode(), FIRST, ready(kit), kit, PLAN)


def test_a_cohort_below_the_quorum_is_refused(four: Scene) -> None:
    pair = gather_cohort(four.cohort.encoded[:2], four.fed.roster)
    with pytest.raises(CohortRefused, match="a sum of 2 of 6 invited was announced; the plan allows 4 to 6"):
        four.admit(NODES[0], pair.encode())


def test_the_plans_own_minimum_counts_where_it_is_larger(four: Scene) -> None:
    pending, kit = four.waiting[NODES[0]], four.kits[NODES[0]]
    with pytest.raises(CohortRefused, match="the plan allows 5 to 6"):
        admit_cohort(four.cohort.encode(), FIRST, pending, kit, replace(PLAN, min_cohort=5))


def test_a_cohort_beyond_the_headroom_is_refused(six: Scene) -> None:
    pending, kit = six.waiting[NODES[0]], six.kits[NODES[0]]
    with pytest.raises(CohortRefused, match="the plan allows 4 to 5"):
        admit_cohort(six.cohort.encode(), FIRST, pending, kit, replace(PLAN, max_cohort=5))


def test_a_member_that_was_not_invited_is_refused(six: Scene) -> None:
    """Nobody has dealt it shares, and its own quorum is another one."""
    kit, invited = six.kits[NODES[0]], frozenset(NODES[:5])
    update = Update(STATE.vector, np.zeros(0, np.bool_), 1)
    few = {node: attend(FIRST, six.kits[node], PLAN, LAYOUT, STATE, update, invited) for node in NODES}
    announced = gather_cohort([pending.attendance for pending in few.values()], six.fed.roster)
    with pytest.raises(CohortRefused, match="node 21 is in the announced cohort, but was not invited"):
        admit_cohort(announced.encode(), FIRST, few[NODES[0]], kit, PLAN)


def test_a_memory_that_no_attendance_can_say_is_refused_before_anybody_trains(six: Scene) -> None:
    """The others would refuse the attendance, and not know why."""
    whole, kit = frozenset(NODES), six.kits[NODES[0]]
    sets = [frozenset(some) for some in combinations(NODES, 4)]
    memory = frozenset(Opening(whole, frozenset(some)) for some in combinations(sets, 4))
    within = frozenset(list(memory)[:400])
    assert len(encode_memory(within)) < MEMORY_LIMIT < len(encode_memory(memory))
    require_invited(whole, within, kit, PLAN)
    with pytest.raises(CohortRefused, match="remembers more sums from the same starting model than an attendance can"):
        require_invited(whole, memory, kit, PLAN)


OPENED = frozenset({frozenset(NODES)})


@pytest.mark.parametrize("member", [0, 3])
def test_what_any_member_remembers_counts_for_all(member: int, six: Scene) -> None:
    others = Opening(frozenset({*NODES[:4], 34, 55}), frozenset())
    waiting = dict(six.waiting) | {NODES[member]: ready(six.kits[NODES[member]], memory=frozenset({others}))}
    cohort = gather_cohort([pending.attendance for pending in waiting.values()], six.fed.roster)
    assert cohort.memory == {others}
    with pytest.raises(CohortRefused, match=r"\(nodes 2, 3, 5, 8, 34, 55\) have to be invited again"):
        admit_cohort(cohort.encode(), FIRST, waiting[NODES[1]], six.kits[NODES[1]], PLAN)


def released(six: Scene, memory: Memory, nodes: tuple[int, ...], of: int = NODES[0]) -> Cohort:
    """Let a node decide on opening a sum of these, where one member of its cohort remembers something."""
    waiting = dict(six.waiting) | {NODES[3]: ready(six.kits[NODES[3]], memory=memory)}
    cohort = gather_cohort([pending.attendance for pending in waiting.values()], six.fed.roster)
    release = Release(RUN, 1, 1, len(NODES), cohort.digest(1), False, (frozenset(nodes),))
    pending = replace(waiting[of], cohort=cohort.encode())
    return admit_release(release, pending, FIRST, six.kits[of], PLAN)


def test_a_sum_of_a_quorum_may_be_opened(six: Scene) -> None:
    for count in (4, 5, 6):
        assert released(six, frozenset(), NODES[:count]).nodes == set(NODES)


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        (NODES[1:], "not one of this node and others of its cohort"),
        ((*NODES[:4], 34), "not one of this node and others of its cohort"),
        (NODES[:3], "a sum of 3 of 6 invited was announced; the plan allows 4 to 6"),
    ],
)
def test_a_sum_without_this_node_of_strangers_or_of_too_few_is_not_opened(
    nodes: tuple[int, ...], text: str, six: Scene
) -> None:
    with pytest.raises(CohortRefused, match=text):
        released(six, frozenset(), nodes)


def test_after_a_sum_of_all_the_same_may_be_opened_again_and_no_smaller_one(six: Scene) -> None:
    memory = frozenset({Opening(frozenset(NODES), OPENED)})
    assert released(six, memory, NODES)
    for count in (4, 5):
        with pytest.raises(CohortRefused, match=r"with a sum of nodes 2, 3, 5, 8.*, no other may be opened"):
            released(six, memory, NODES[:count])


def test_a_release_of_another_cohort_or_before_any_is_refused(six: Scene) -> None:
    release = Release(RUN, 1, 1, 6, bytes(32), False, (frozenset(NODES),))
    for cohort in (b"", six.cohort.encode()):
        pending = replace(six.waiting[NODES[0]], cohort=cohort)
        with pytest.raises(PeerMismatch) as caught:
            admit_release(release, pending, FIRST, six.kits[NODES[0]], PLAN)
        assert caught.value.field == "cohort"


@pytest.mark.parametrize(
    ("call", "field"), [(Call(bytes(16), 1, 1), "run"), (Call(RUN, 2, 1), "round"), (Call(RUN, 1, 2), "attempt")]
)
def test_a_call_of_another_run_round_or_attempt_is_refused(call: Call, field: str, four: Scene) -> None:
    with pytest.raises(PeerMismatch) as caught:
        four.admit(NODES[0], four.cohort.encode(), call)
    assert caught.value.field == field


def test_a_tampered_attendance_of_another_member_is_refused_byte_by_byte(four: Scene) -> None:
    """Every byte is covered: by the signature, by the format, or because node and roster no longer fit."""
    announced = four.cohort.encode()
    for position in range(ATTENDANCE_BYTES, 2 * ATTENDANCE_BYTES, 7):
        changed = bytearray(announced)
        changed[position] ^= 1
        with pytest.raises((MalformedMessage, SignatureRefused)):
            four.admit(NODES[0], bytes(changed))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run", bytes(16)),
        ("round", 2),
        ("attempt", 2),
        ("plan", bytes(32)),
        ("key", bytes(16)),
        ("model", bytes(32)),
        ("support", bytes(32)),
        ("values", SIZE - 1),
        ("votes", SIZE),
        ("invited", bytes(32)),
    ],
)
def test_members_that_disagree_are_named_with_what_they_disagree_on(field: str, value: object, four: Scene) -> None:
    liar = lie(four.waiting[NODES[2]], four.kits[NODES[2]], field, value)
    wrong = announced([*four.cohort.encoded[:2], liar, four.cohort.encoded[3]])
    with pytest.raises(AgreementError, match=f"different values of the {field}") as caught:
        four.admit(NODES[0], wrong)
    assert (caught.value.field, caught.value.nodes) == (field, (NODES[0], NODES[2]))


def test_a_cohort_in_another_order_or_with_a_member_twice_or_cut_short_is_refused(four: Scene) -> None:
    encoded = four.cohort.encoded
    wrong = (announced(reversed(encoded)), announced([encoded[0], *encoded]), four.cohort.encode()[:-1], b"")
    for cohort in (*wrong, announced([])):
        with pytest.raises((MalformedMessage, CohortRefused)):
            four.admit(NODES[0], cohort)


def test_a_member_from_outside_the_roster_is_refused(four: Scene) -> None:
    stranger = ready(factories.kits(PLAN, [34])[34])
    with pytest.raises(SignatureRefused, match="not on the roster") as caught:
        four.admit(NODES[0], four.cohort.encode() + stranger.attendance)
    assert caught.value.node == 34


def test_a_member_that_speaks_for_another_is_refused(four: Scene) -> None:
    impostor = ready(replace(four.kits[NODES[4]], node=NODES[5]))
    with pytest.raises(SignatureRefused, match="the signature is not valid") as caught:
        four.admit(NODES[0], four.cohort.encode() + impostor.attendance)
    assert caught.value.node == NODES[5]
