"""``edge_client.round``: a client admits the cohort that it has joined, and refuses any that would give it away."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_client.keys import Kit
from edge_client.ledger import Ledger, Sent
from edge_client.round import admit_cohort, state_digest
from edge_client.state import Pending
from protocol.call import Call
from protocol.cohort import Cohort, gather_cohort
from protocol.errors import AgreementError, CohortRefused, Duplicate, MalformedMessage, PeerMismatch, SignatureRefused
from protocol.plan import Plan
from protocol.wire import ATTENDANCE_BYTES, decode_attendance, encode_attendance, signed
from tests import factories
from tests.edge_client.federation import FIRST, NODES, RUN, federation
from tests.edge_client.scene import PLAN, SIZE, STATE, Scene, ready


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


def test_ones_own_attendance_of_another_train_message_does_not_count(four: Scene, tmp_path: Path) -> None:
    """An aggregator that keeps an old attendance could otherwise choose the nonces of the blinding."""
    kit = four.kits[NODES[0]]
    with pytest.raises(CohortRefused, match="just signed"):
        admit_cohort(four.cohort.encode(), FIRST, ready(kit), Ledger(tmp_path), kit, PLAN)


def test_a_cohort_below_the_minimum_is_refused(four: Scene) -> None:
    pair = gather_cohort(four.cohort.encoded[:2], four.fed.roster)
    with pytest.raises(CohortRefused, match="a cohort of 2 was announced; the plan allows 3 to 6"):
        four.admit(NODES[0], pair.encode())


def test_the_plans_own_minimum_counts_where_it_is_larger(four: Scene, tmp_path: Path) -> None:
    pending, kit = four.waiting[NODES[0]], four.kits[NODES[0]]
    with pytest.raises(CohortRefused, match="the plan allows 5 to 6"):
        admit_cohort(four.cohort.encode(), FIRST, pending, Ledger(tmp_path), kit, replace(PLAN, min_cohort=5))


def test_a_cohort_beyond_the_headroom_is_refused(six: Scene, tmp_path: Path) -> None:
    pending, kit = six.waiting[NODES[0]], six.kits[NODES[0]]
    with pytest.raises(CohortRefused, match="the plan allows 3 to 5"):
        admit_cohort(six.cohort.encode(), FIRST, pending, Ledger(tmp_path), kit, replace(PLAN, max_cohort=5))


def given_to(cohort: Cohort, attempt: int) -> tuple[Sent, ...]:
    """What a client remembers that has contributed once."""
    return (Sent(RUN, 1, attempt, state_digest(STATE), cohort.digest(attempt), cohort.nodes),)


def given(*nodes: int, attempt: int = 1, call: Call = FIRST, state: bytes = state_digest(STATE)) -> Sent:
    """A contribution to a cohort of other attendances."""
    return Sent(call.run, call.round, attempt, state, bytes(32), frozenset(nodes))


@pytest.mark.parametrize("attempt", [1, 2])
def test_an_attempt_that_was_answered_is_not_answered_for_another_cohort(attempt: int, six: Scene) -> None:
    other = gather_cohort(six.cohort.encoded[:5], six.fed.roster)
    with pytest.raises(Duplicate, match=f"contribution to attempt {attempt}") as caught:
        six.admit(NODES[0], other.encode(), Call(RUN, 1, attempt), given_to(six.cohort, 2))
    assert caught.value.node == NODES[0]


def test_a_cohort_that_was_contributed_to_may_ask_again_in_its_attempt_or_a_later_one(six: Scene) -> None:
    """A killed aggregator asks again; the blinding is the same, so nobody learns anything new."""
    five = gather_cohort(six.cohort.encoded[:5], six.fed.roster)
    past = (*given_to(six.cohort, 1), *given_to(five, 3))
    for cohort, attempt in ((six.cohort, 1), (five, 3), (five, 4)):
        assert six.admit(NODES[0], cohort.encode(), Call(RUN, 1, attempt), past) == cohort
    for cohort, attempt, error in ((six.cohort, 3, Duplicate), (five, 1, Duplicate), (six.cohort, 4, CohortRefused)):
        with pytest.raises(error):
            six.admit(NODES[0], cohort.encode(), Call(RUN, 1, attempt), past)


@pytest.mark.parametrize("left_out", [1, 2, 4])
def test_a_cohort_that_leaves_out_too_few_or_too_many_of_the_last_one_is_refused(left_out: int, six: Scene) -> None:
    following = gather_cohort(six.cohort.encoded[: 6 - left_out], six.fed.roster)
    with pytest.raises(CohortRefused):
        six.admit(NODES[0], following.encode(), Call(RUN, 1, 2), given_to(six.cohort, 1))


def test_the_same_members_may_be_asked_in_another_attempt(six: Scene) -> None:
    """Their two sums differ by the rounding alone."""
    admitted = six.admit(NODES[0], six.cohort.encode(), Call(RUN, 1, 2), given_to(six.cohort, 1))
    assert admitted.nodes == six.cohort.nodes


def test_a_cohort_that_brings_in_a_new_member_is_refused(six: Scene) -> None:
    last = (given(*NODES[:5], 34),)
    following = gather_cohort([*six.cohort.encoded[:2], *six.cohort.encoded[4:]], six.fed.roster)
    with pytest.raises(CohortRefused, match="must not follow"):
        six.admit(NODES[0], following.encode(), Call(RUN, 1, 2), last)


def test_a_cohort_that_leaves_three_out_may_follow_one_of_eight(tmp_path: Path) -> None:
    plan = Plan(max_cohort=8)
    assert len(NODES) == 6
    fed = federation(plan, nodes=6)
    waiting = {node: ready(kit, plan=plan) for node, kit in fed.kits.items()}
    announced = gather_cohort([waiting[node].attendance for node in NODES[:5]], fed.roster).encode()
    ledger = Ledger(tmp_path, given=[given(*NODES, 34, 55)])
    pending, kit = waiting[NODES[0]], fed.kits[NODES[0]]
    assert len(admit_cohort(announced, Call(RUN, 1, 2), pending, ledger, kit, plan).members) == 5


def test_the_first_cohort_of_the_round_counts_and_not_only_the_last(six: Scene) -> None:
    """Six are more than half of nine, but not of the twelve that the round began with."""
    twelve, nine = (given(*NODES, *range(100, 100 + more)) for more in (6, 3))
    announced, call = six.cohort.encode(), Call(RUN, 1, 3)
    assert six.admit(NODES[0], announced, call, (nine,)) == six.cohort
    with pytest.raises(CohortRefused, match="must not follow"):
        six.admit(NODES[0], announced, call, (twelve, replace(nine, attempt=2)))


ELSEWHERE = {
    "in another run from the same state": (Call(bytes(16), 1, 1), state_digest(STATE)),
    "in a later round from the same state": (Call(RUN, 7, 1), state_digest(STATE)),
    "in this round from another state": (FIRST, bytes(32)),
}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_what_was_contributed_to_counts_wherever_it_came_from(where: str, six: Scene) -> None:
    call, state = ELSEWHERE[where]
    more = given(*NODES, 34, call=call, state=state)
    with pytest.raises(CohortRefused, match="a cohort of 6 must not follow one of 7 from the same starting model"):
        six.admit(NODES[0], six.cohort.encode(), Call(RUN, 1, 2), (more,))
    same = given(*NODES, call=call, state=state)
    assert six.admit(NODES[0], six.cohort.encode(), Call(RUN, 1, 2), (same,)) == six.cohort


def test_what_was_contributed_to_in_another_round_from_another_state_does_not_count(six: Scene) -> None:
    for call in (Call(RUN, 2, 1), Call(bytes(16), 1, 1)):
        other = given(*NODES, 34, call=call, state=bytes(32))
        assert six.admit(NODES[0], six.cohort.encode(), Call(RUN, 1, 2), (other,)) == six.cohort


def test_the_cohorts_of_the_round_and_those_of_the_state_are_each_held_to(six: Scene) -> None:
    """The last contribution alone, whatever it was of, would let one of the two pass."""
    round_, state = given(*NODES, 34, state=bytes(32)), given(*NODES, call=Call(bytes(16), 1, 1))
    for past in ((round_, state), (state, round_)):
        with pytest.raises(CohortRefused):
            six.admit(NODES[0], six.cohort.encode(), Call(RUN, 1, 2), past)


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
