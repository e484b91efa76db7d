"""``edge_client.round``: a client admits the cohort that it has joined, and refuses any that would give it away."""

from dataclasses import replace
from typing import Any

import pytest

from edge_client.keys import Kit
from edge_client.round import admit_cohort
from edge_client.state import Pending, Sent
from protocol.call import Call
from protocol.cohort import Cohort, gather_cohort
from protocol.errors import AgreementError, CohortRefused, Duplicate, MalformedMessage, PeerMismatch, SignatureRefused
from protocol.plan import Plan
from protocol.wire import ATTENDANCE_BYTES, decode_attendance, encode_attendance, signed
from tests import factories
from tests.edge_client.federation import FIRST, NODES, RUN, federation
from tests.edge_client.scene import PLAN, SIZE, Scene, ready


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
    """An aggregator that keeps an old attendance could otherwise choose the nonces of the blinding."""
    kit = four.kits[NODES[0]]
    with pytest.raises(CohortRefused, match="just signed"):
        admit_cohort(four.cohort.encode(), FIRST, ready(kit), kit, PLAN)


def test_a_cohort_below_the_minimum_is_refused(four: Scene) -> None:
    pair = gather_cohort(four.cohort.encoded[:2], four.fed.roster)
    with pytest.raises(CohortRefused, match="a cohort of 2 was announced; the plan allows 3 to 6"):
        four.admit(NODES[0], pair.encode())


def test_the_plans_own_minimum_counts_where_it_is_larger(four: Scene) -> None:
    pending, kit = four.waiting[NODES[0]], four.kits[NODES[0]]
    with pytest.raises(CohortRefused, match="the plan allows 5 to 6"):
        admit_cohort(four.cohort.encode(), FIRST, pending, kit, replace(PLAN, min_cohort=5))


def test_a_cohort_beyond_the_headroom_is_refused(six: Scene) -> None:
    pending, kit = six.waiting[NODES[0]], six.kits[NODES[0]]
    with pytest.raises(CohortRefused, match="the plan allows 3 to 5"):
        admit_cohort(six.cohort.encode(), FIRST, pending, kit, replace(PLAN, max_cohort=5))


def given_to(cohort: Cohort, attempt: int) -> tuple[Sent, ...]:
    """What a client remembers that has contributed once."""
    return (Sent(attempt, cohort.digest(attempt), cohort.nodes),)


@pytest.mark.parametrize("attempt", [1, 2])
def test_an_attempt_that_was_answered_is_not_answered_for_another_cohort(attempt: int, six: Scene) -> None:
    other = gather_cohort(six.cohort.encoded[:5], six.fed.roster)
    with pytest.raises(Duplicate, match=f"contribution to attempt {attempt}") as caught:
        six.admit(NODES[0], other.encode(), Call(RUN, 1, attempt), given=given_to(six.cohort, 2))
    assert caught.value.node == NODES[0]


def test_a_cohort_that_was_contributed_to_may_ask_again_in_its_attempt_or_a_later_one(six: Scene) -> None:
    """A killed aggregator asks again; the blinding is the same, so nobody learns anything new."""
    five = gather_cohort(six.cohort.encoded[:5], six.fed.roster)
    given = (*given_to(six.cohort, 1), *given_to(five, 3))
    for cohort, attempt in ((six.cohort, 1), (five, 3), (five, 4)):
        assert six.admit(NODES[0], cohort.encode(), Call(RUN, 1, attempt), given=given) == cohort
    for cohort, attempt, error in ((six.cohort, 3, Duplicate), (five, 1, Duplicate), (six.cohort, 4, CohortRefused)):
        with pytest.raises(error):
            six.admit(NODES[0], cohort.encode(), Call(RUN, 1, attempt), given=given)


@pytest.mark.parametrize("left_out", [1, 2, 4])
def test_a_cohort_that_leaves_out_too_few_or_too_many_of_the_last_one_is_refused(left_out: int, six: Scene) -> None:
    following = gather_cohort(six.cohort.encoded[: 6 - left_out], six.fed.roster)
    with pytest.raises(CohortRefused):
        six.admit(NODES[0], following.encode(), Call(RUN, 1, 2), given=given_to(six.cohort, 1))


def test_the_same_members_may_be_asked_in_another_attempt(six: Scene) -> None:
    """Their two sums differ by the rounding alone."""
    admitted = six.admit(NODES[0], six.cohort.encode(), Call(RUN, 1, 2), given=given_to(six.cohort, 1))
    assert admitted.nodes == six.cohort.nodes


def test_a_cohort_that_brings_in_a_new_member_is_refused(six: Scene) -> None:
    last = (Sent(1, bytes(32), frozenset({*NODES[:5], 34})),)
    following = gather_cohort([*six.cohort.encoded[:2], *six.cohort.encoded[4:]], six.fed.roster)
    with pytest.raises(CohortRefused, match="must not follow"):
        six.admit(NODES[0], following.encode(), Call(RUN, 1, 2), given=last)


def test_a_cohort_that_leaves_three_out_may_follow_one_of_eight() -> None:
    plan = Plan(max_cohort=8)
    assert len(NODES) == 6
    fed = federation(plan, nodes=6)
    waiting = {node: ready(kit, plan=plan) for node, kit in fed.kits.items()}
    announced = gather_cohort([waiting[node].attendance for node in NODES[:5]], fed.roster).encode()
    pending = replace(waiting[NODES[0]], given=(Sent(1, bytes(32), frozenset({*NODES, 34, 55})),))
    assert len(admit_cohort(announced, Call(RUN, 1, 2), pending, fed.kits[NODES[0]], plan).members) == 5


def test_the_first_cohort_of_the_round_counts_and_not_only_the_last(six: Scene) -> None:
    """Six are more than half of nine, but not of the twelve that the round began with."""
    twelve, nine = (Sent(1, bytes(32), frozenset({*NODES, *range(100, 100 + more)})) for more in (6, 3))
    announced, call = six.cohort.encode(), Call(RUN, 1, 3)
    assert six.admit(NODES[0], announced, call, given=(nine,)) == six.cohort
    with pytest.raises(CohortRefused, match="must not follow"):
        six.admit(NODES[0], announced, call, given=(twelve, replace(nine, attempt=2)))


@pytest.mark.parametrize(("call", "field"), [(Call(bytes(16), 1, 1), "run"), (Call(RUN, 2, 1), "round")])
def test_a_call_of_another_run_or_round_is_refused(call: Call, field: str, four: Scene) -> None:
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
    ],
)
def test_members_that_disagree_are_named_with_what_they_disagree_on(field: str, value: object, four: Scene) -> None:
    liar = lie(four.waiting[NODES[2]], four.kits[NODES[2]], field, value)
    announced = b"".join([*four.cohort.encoded[:2], liar, four.cohort.encoded[3]])
    with pytest.raises(AgreementError, match=f"different values of the {field}") as caught:
        four.admit(NODES[0], announced)
    assert (caught.value.field, caught.value.nodes) == (field, (NODES[0], NODES[2]))


def test_a_cohort_in_another_order_or_with_a_member_twice_or_cut_short_is_refused(four: Scene) -> None:
    encoded = four.cohort.encoded
    for announced in (b"".join(reversed(encoded)), b"".join([encoded[0], *encoded]), four.cohort.encode()[:-1], b""):
        with pytest.raises((MalformedMessage, CohortRefused)):
            four.admit(NODES[0], announced)


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
