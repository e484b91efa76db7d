"""``edge_client.round``: what a client refuses to open, and what it refuses to send.

The law that what it does send adds up is in ``tests/test_round.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.cipher import RoundCipher
from edge_client.keys import Kit
from edge_client.round import (
    Call,
    Sum,
    admit_cohort,
    attend,
    close_update,
    dither_of,
    first_state,
    model_digest,
    next_state,
    open_sum,
    quantised,
    terms_of,
)
from edge_client.sparsify import GlobalState
from edge_client.sparsify.fedavg import FedAvg
from edge_client.sparsify.interface import Sparsifier
from edge_client.state import Given, Pending
from protocol.bits import Words
from protocol.cohort import Cohort, gather_cohort
from protocol.errors import (
    AgreementError,
    CohortRefused,
    Duplicate,
    MalformedMessage,
    PeerError,
    PeerMismatch,
    SignatureRefused,
    TrainingError,
)
from protocol.grid import Integers, clips
from protocol.lanes import pack
from protocol.layout import Layout, Mask, TensorSpec, Vector
from protocol.parameters import CHECKS
from protocol.plan import Plan
from protocol.support import Support
from protocol.terms import Terms, encode_terms, support_digest
from protocol.wire import (
    ATTENDANCE_BYTES,
    Aggregate,
    decode_aggregate,
    decode_attendance,
    decode_contribution,
    encode_aggregate,
    encode_attendance,
    signed,
)
from tests import factories
from tests.edge_client.federation import (
    NODES,
    RUN,
    Federation,
    add_up,
    ciphertext_sum,
    federation,
    random_vector,
)

SIZE = 50
LAYOUT = factories.layout(SIZE)
CALL = Call(RUN, 1, 1)
STATE = first_state(random_vector(0, SIZE), LAYOUT)
PLAN = Plan(max_cohort=6)


@dataclass(frozen=True)
class Scene:
    """A round up to the announcement: six nodes are provisioned, some are ready, and the aggregator has heard them."""

    fed: Federation
    waiting: Mapping[int, Pending]
    cohort: Cohort

    @property
    def kits(self) -> Mapping[int, Kit]:
        return self.fed.kits

    def admit(self, node: int, announced: bytes, call: Call = CALL, **changes: Any) -> Cohort:
        return admit_cohort(announced, call, replace(self.waiting[node], **changes), self.kits[node], PLAN)

    def contribution(self, node: int, cohort: Cohort, call: Call = CALL) -> bytes:
        pending, kit = self.waiting[node], self.kits[node]
        dither = dither_of(PLAN, call.round, call.attempt, node, pending.values.size)
        integers, _ = quantised(pending, cohort, node, PLAN, dither)
        return close_update(integers, pending.votes, cohort, call, kit, PLAN, pending.sealed)

    @cached_property
    def aggregate_bytes(self) -> bytes:
        sent = {node: self.contribution(node, self.cohort) for node in self.waiting}
        return add_up(PLAN, self.fed.roster, self.cohort, 1, sent)

    def aggregate(self) -> Aggregate:
        return decode_aggregate(self.aggregate_bytes, PLAN.parameters)

    def open(self, aggregate: Aggregate, run: bytes = RUN, round_: int = 1, plan: Plan = PLAN) -> Sum:
        data = encode_aggregate(aggregate, plan.parameters)
        return open_sum(data, run, round_, self.kits[NODES[0]], plan, LAYOUT)


def ready(kit: Kit, call: Call = CALL, state: GlobalState = STATE, plan: Plan = PLAN) -> Pending:
    """An attendance that waits for its cohort."""
    trained = state.vector + random_vector(kit.node, state.vector.size, 0.1)
    return attend(call, kit, plan, LAYOUT, state, trained, np.zeros(0, np.bool_), samples=10 + kit.node)


def lie(pending: Pending, kit: Kit, field: str, value: object) -> bytes:
    """An attendance with a lie in one field, signed by the node itself."""
    changed: dict[str, Any] = {field: value}
    body = encode_attendance(replace(decode_attendance(pending.attendance, kit.roster), **changed))
    return signed(body, kit.sign(body))


def scene(ready_nodes: int = 4) -> Scene:
    fed = federation(PLAN, nodes=6)
    waiting = {node: ready(fed.kits[node]) for node in NODES[:ready_nodes]}
    return Scene(fed, waiting, gather_cohort([p.attendance for p in waiting.values()], fed.roster))


@pytest.fixture(scope="module")
def four() -> Scene:
    return scene()


@pytest.fixture(scope="module")
def six() -> Scene:
    return scene(6)


# --- attending ----------------------------------------------------------------------------------


def test_an_attendance_says_what_the_client_holds_and_the_pending_update_keeps_the_rest(four: Scene) -> None:
    for node, pending in four.waiting.items():
        said = decode_attendance(pending.attendance, four.fed.roster)
        assert (said.run, said.round, said.attempt, said.node) == (RUN, 1, 1, node)
        assert (said.samples, said.values, said.votes) == (10 + node, SIZE, 0)
        assert said.plan == PLAN.digest
        assert said.key == four.fed.roster.key_id(RUN, 1)
        assert said.model == model_digest(STATE, CALL, four.kits[node])
        assert said.support == support_digest(pending.sealed)
        assert (dict(pending.metrics), pending.given) == ({}, ())
    assert len({pending.sealed for pending in four.waiting.values()}) == 1
    assert len({decode_attendance(p.attendance, four.fed.roster).nonce for p in four.waiting.values()}) == 4


def test_only_the_values_and_votes_on_the_support_travel() -> None:
    kit = federation(PLAN).kits[NODES[0]]
    mask = np.arange(SIZE) % 3 == 1
    state = GlobalState(1, np.where(mask, STATE.vector, 0).astype(np.float32), mask)
    trained, votes = random_vector(1, SIZE), np.arange(SIZE) % 2 == 0
    pending = attend(Call(RUN, 2, 1), kit, PLAN, LAYOUT, state, trained, votes, samples=3)
    assert pending.values.tolist() == trained[1::3].tolist()
    assert pending.votes.tolist() == votes[1::3].tolist()
    said = decode_attendance(pending.attendance, kit.roster)
    assert (said.values, said.votes) == (17, 17)
    clip = clips(state.vector, LAYOUT)[0]
    assert pending.step.tolist() == [float(clip) / PLAN.parameters.grid.levels] * 17


def test_the_model_digest_names_the_weights_and_the_mask_of_one_round() -> None:
    kit = federation(PLAN).kits[NODES[0]]
    vector, mask = STATE.vector.copy(), STATE.mask.copy()
    vector[7] = np.nextafter(vector[7], np.float32(9))
    mask[SIZE - 1] = False
    digests = [
        model_digest(STATE, CALL, kit),
        model_digest(replace(STATE, vector=vector), CALL, kit),
        model_digest(replace(STATE, mask=mask), CALL, kit),
        model_digest(STATE, Call(RUN, 2, 1), kit),
        model_digest(STATE, Call(bytes(16), 1, 1), kit),
    ]
    assert len(set(digests)) == 5
    assert digests[0] == model_digest(replace(STATE, round=9), Call(RUN, 1, 5), kit)


def test_the_dither_repeats_and_is_never_shared() -> None:
    plans = [PLAN, replace(PLAN, seed=1)]
    drawn = {
        tuple(dither_of(plan, round_, attempt, node, 8).tolist())
        for plan in plans
        for round_ in (1, 2)
        for attempt in (1, 2)
        for node in (2, 3)
    }
    assert len(drawn) == 16
    again = dither_of(PLAN, 1, 1, 2, 8)
    assert tuple(again.tolist()) in drawn
    assert (again >= 0).all()
    assert (again < 1).all()


# --- the announced cohort -----------------------------------------------------------------------


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
    """An aggregator that keeps an old attendance could otherwise choose the masks' nonces."""
    kit = four.kits[NODES[0]]
    with pytest.raises(CohortRefused, match="just signed"):
        admit_cohort(four.cohort.encode(), CALL, ready(kit), kit, PLAN)


def test_a_cohort_below_the_minimum_is_refused(four: Scene) -> None:
    pair = gather_cohort(four.cohort.encoded[:2], four.fed.roster)
    with pytest.raises(CohortRefused, match="a cohort of 2 was announced; the plan allows 3 to 6"):
        four.admit(NODES[0], pair.encode())


def test_the_plans_own_minimum_counts_where_it_is_larger(four: Scene) -> None:
    pending, kit = four.waiting[NODES[0]], four.kits[NODES[0]]
    with pytest.raises(CohortRefused, match="the plan allows 5 to 6"):
        admit_cohort(four.cohort.encode(), CALL, pending, kit, replace(PLAN, min_cohort=5))


def test_a_cohort_beyond_the_headroom_is_refused(six: Scene) -> None:
    pending, kit = six.waiting[NODES[0]], six.kits[NODES[0]]
    with pytest.raises(CohortRefused, match="the plan allows 3 to 5"):
        admit_cohort(six.cohort.encode(), CALL, pending, kit, replace(PLAN, max_cohort=5))


def given_to(cohort: Cohort, attempt: int) -> tuple[Given, ...]:
    """What a client remembers that has contributed once."""
    return (Given(attempt, cohort.digest(attempt), cohort.nodes),)


@pytest.mark.parametrize("attempt", [1, 2])
def test_an_attempt_that_was_answered_is_not_answered_for_another_cohort(attempt: int, six: Scene) -> None:
    other = gather_cohort(six.cohort.encoded[:5], six.fed.roster)
    with pytest.raises(Duplicate, match=f"contribution to attempt {attempt}") as caught:
        six.admit(NODES[0], other.encode(), Call(RUN, 1, attempt), given=given_to(six.cohort, 2))
    assert caught.value.node == NODES[0]


def test_a_cohort_that_was_contributed_to_may_ask_again_in_its_attempt_or_a_later_one(six: Scene) -> None:
    """A killed aggregator asks again; the masks are the same, so nobody learns anything new."""
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
    last = (Given(1, bytes(32), frozenset({*NODES[:5], 34})),)
    following = gather_cohort([*six.cohort.encoded[:2], *six.cohort.encoded[4:]], six.fed.roster)
    with pytest.raises(CohortRefused, match="must not follow"):
        six.admit(NODES[0], following.encode(), Call(RUN, 1, 2), given=last)


def test_a_cohort_that_leaves_three_out_may_follow_one_of_eight() -> None:
    plan = Plan(max_cohort=8)
    assert len(NODES) == 6
    fed = federation(plan, nodes=6)
    waiting = {node: ready(kit, plan=plan) for node, kit in fed.kits.items()}
    announced = gather_cohort([waiting[node].attendance for node in NODES[:5]], fed.roster).encode()
    pending = replace(waiting[NODES[0]], given=(Given(1, bytes(32), frozenset({*NODES, 34, 55})),))
    assert len(admit_cohort(announced, Call(RUN, 1, 2), pending, fed.kits[NODES[0]], plan).members) == 5


def test_the_first_cohort_of_the_round_counts_and_not_only_the_last(six: Scene) -> None:
    """Six are more than half of nine, but not of the twelve that the round began with."""
    twelve, nine = (Given(1, bytes(32), frozenset({*NODES, *range(100, 100 + more)})) for more in (6, 3))
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


# --- contributing -------------------------------------------------------------------------------


def test_only_the_first_member_sends_the_sealed_terms(four: Scene) -> None:
    for member in four.cohort.members:
        data = four.contribution(member.node, four.cohort)
        contribution = decode_contribution(data, member, PLAN.parameters, four.fed.roster)
        assert contribution.sealed == (four.waiting[member.node].sealed if member.node == NODES[0] else b"")
        assert contribution.cohort == four.cohort.digest(1)
        assert len(contribution.first) == PLAN.parameters.slots(SIZE, 0)


def test_each_client_is_weighed_by_its_own_samples(four: Scene) -> None:
    total = sum(10 + node for node in NODES[:4])
    for node, pending in four.waiting.items():
        ones = replace(pending, values=np.full(SIZE, pending.step[0] * 30_000, np.float32))
        integers, clipped = quantised(ones, four.cohort, node, PLAN, np.full(SIZE, 0.5))
        assert clipped == 0
        assert set(integers.tolist()) == {int(np.floor(30_000 * (10 + node) / total + 0.5))}


def test_clipped_values_are_counted(four: Scene) -> None:
    pending = four.waiting[NODES[0]]
    values = np.where(np.arange(SIZE) < 7, np.float32(1e9), np.float32(0))
    integers, clipped = quantised(replace(pending, values=values), four.cohort, NODES[0], PLAN, np.zeros(SIZE))
    assert clipped == 7
    assert np.count_nonzero(integers) == 7


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_model_that_is_not_finite_is_never_sent(bad: float, four: Scene) -> None:
    pending = four.waiting[NODES[0]]
    values = pending.values.copy()
    values[3] = bad
    with pytest.raises(TrainingError, match="not finite"):
        quantised(replace(pending, values=values), four.cohort, NODES[0], PLAN, np.zeros(SIZE))


# --- opening ------------------------------------------------------------------------------------


def test_the_sum_of_the_whole_cohort_opens(four: Scene) -> None:
    opened = four.open(four.aggregate())
    expected = sum(
        quantised(pending, four.cohort, node, PLAN, dither_of(PLAN, 1, 1, node, SIZE))[0]
        for node, pending in four.waiting.items()
    )
    assert isinstance(expected, np.ndarray)
    assert opened.values.tolist() == expected.tolist()
    assert (opened.clients, opened.votes.size) == (4, 0)


@pytest.mark.parametrize(
    ("field", "other"),
    [("run", bytes(16)), ("round", 2), ("plan", bytes(32)), ("key", bytes(16)), ("support", bytes(32))],
)
def test_an_aggregate_that_names_another_run_round_plan_key_or_support_is_refused(
    field: str, other: object, four: Scene
) -> None:
    changed: dict[str, Any] = {field: other}
    with pytest.raises(PeerMismatch) as caught:
        four.open(replace(four.aggregate(), **changed))
    assert caught.value.field == field


def test_an_honest_aggregate_of_another_run_round_or_plan_is_refused(four: Scene) -> None:
    aggregate = four.aggregate()
    for field, arguments in (
        ("run", {"run": bytes(16)}),
        ("round", {"round_": 2}),
        ("plan", {"plan": replace(PLAN, epochs=9)}),
    ):
        changed: dict[str, Any] = arguments
        with pytest.raises(PeerMismatch) as caught:
            four.open(aggregate, **changed)
        assert caught.value.field == field


def test_an_aggregate_of_another_federation_does_not_open_even_if_it_names_this_ones_key(four: Scene) -> None:
    other = federation(PLAN, secret=bytes(32))
    waiting = {node: ready(kit) for node, kit in other.kits.items()}
    cohort = gather_cohort([p.attendance for p in waiting.values()], other.roster)
    foreign = Scene(other, waiting, cohort).aggregate()
    with pytest.raises(PeerMismatch) as caught:
        four.open(foreign)
    assert caught.value.field == "key"
    with pytest.raises(MalformedMessage, match="not made with this cohort secret"):
        four.open(replace(foreign, key=four.fed.roster.key_id(RUN, 1)))
    ours = four.aggregate()
    with pytest.raises(MalformedMessage, match="does not decrypt to the sum of one whole cohort"):
        four.open(replace(ours, first=foreign.first, second=foreign.second))


def test_a_sum_under_the_key_of_another_round_does_not_open(four: Scene) -> None:
    call = Call(RUN, 2, 1)
    waiting = {node: ready(four.kits[node], call) for node in NODES[:4]}
    cohort = gather_cohort([p.attendance for p in waiting.values()], four.fed.roster)
    sent = {node: Scene(four.fed, waiting, cohort).contribution(node, cohort, call) for node in waiting}
    later = decode_aggregate(add_up(PLAN, four.fed.roster, cohort, 1, sent), PLAN.parameters)
    now = four.aggregate()
    assert four.open(later, round_=2).clients == 4
    with pytest.raises(MalformedMessage, match="does not decrypt"):
        four.open(replace(now, first=later.first, second=later.second))


def test_tampered_sealed_terms_are_refused_with_and_without_their_digest(four: Scene) -> None:
    aggregate = four.aggregate()
    for position in range(0, len(aggregate.sealed), 3):
        sealed = bytearray(aggregate.sealed)
        sealed[position] ^= 1
        tampered = replace(aggregate, sealed=bytes(sealed))
        with pytest.raises(PeerMismatch) as caught:
            four.open(tampered)
        assert caught.value.field == "support"
        with pytest.raises(MalformedMessage, match="sealed terms"):
            four.open(replace(tampered, support=support_digest(bytes(sealed))))


def test_the_terms_of_another_round_do_not_open_this_sum(four: Scene) -> None:
    aggregate = four.aggregate()
    sealed = four.kits[NODES[0]].secret.seal(encode_terms(terms_of(STATE, LAYOUT)), RUN, 2)
    with pytest.raises(MalformedMessage, match="for this round"):
        four.open(replace(aggregate, sealed=sealed, support=support_digest(sealed)))


def test_terms_of_another_size_than_the_sums_are_refused(four: Scene) -> None:
    short = Terms(Support(np.arange(SIZE - 1), SIZE), clips(STATE.vector, LAYOUT))
    sealed = four.kits[NODES[0]].secret.seal(encode_terms(short), RUN, 1)
    with pytest.raises(PeerMismatch) as caught:
        four.open(replace(four.aggregate(), sealed=sealed, support=support_digest(sealed)))
    assert (caught.value.field, caught.value.ours, caught.value.theirs) == ("values", SIZE - 1, SIZE)


def parts(scene: Scene, nodes: tuple[int, ...]) -> list[tuple[Words, tuple[bytes, ...]]]:
    """The ciphertexts of these members' contributions to the whole cohort."""
    members = {member.node: member for member in scene.cohort.members}
    read = [
        decode_contribution(scene.contribution(node, scene.cohort), members[node], PLAN.parameters, scene.fed.roster)
        for node in nodes
    ]
    return [(contribution.first, contribution.seeds) for contribution in read]


ALL = NODES[:4]


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param(ALL[1:], id="one missing"),
        pytest.param(ALL[:2], id="two missing"),
        pytest.param((*ALL, ALL[3]), id="one doubled"),
        pytest.param((*ALL[1:], ALL[1]), id="one in the place of another"),
        pytest.param((*ALL, *ALL)[:6], id="two doubled"),
    ],
)
@pytest.mark.parametrize("clients", [3, 4, 5, 6])
def test_a_sum_of_anything_but_each_member_once_does_not_open(
    nodes: tuple[int, ...], clients: int, four: Scene
) -> None:
    honest = four.aggregate()
    wrong = ciphertext_sum(PLAN.parameters, parts(four, nodes))
    with pytest.raises(MalformedMessage, match="left out or added twice"):
        four.open(replace(honest, first=wrong.first, second=wrong.second, clients=clients))


def test_a_whole_cohort_added_twice_does_not_pass_for_once_although_its_masks_cancel(six: Scene) -> None:
    cohort = gather_cohort(six.cohort.encoded[:3], six.fed.roster)
    three = Scene(six.fed, {node: six.waiting[node] for node in NODES[:3]}, cohort)
    twice = ciphertext_sum(PLAN.parameters, parts(three, NODES[:3] * 2))
    with pytest.raises(MalformedMessage, match="does not decrypt"):
        three.open(replace(three.aggregate(), first=twice.first, second=twice.second))


def test_the_honest_ciphertexts_in_the_same_hands_do_open(four: Scene) -> None:
    """The control of the refusals above."""
    honest = four.aggregate()
    same = ciphertext_sum(PLAN.parameters, parts(four, ALL))
    opened = four.open(replace(honest, first=same.first, second=same.second))
    assert opened.values.tolist() == four.open(honest).values.tolist()


@pytest.mark.parametrize("clients", [3, 5, 6])
def test_an_aggregate_that_claims_another_number_of_clients_does_not_open(clients: int, four: Scene) -> None:
    whole = ciphertext_sum(PLAN.parameters, parts(four, ALL))
    with pytest.raises(MalformedMessage, match="one whole cohort"):
        four.open(replace(four.aggregate(), first=whole.first, second=whole.second, clients=clients))


def test_an_aggregate_of_too_few_clients_is_refused_before_it_is_decrypted(four: Scene) -> None:
    aggregate = four.aggregate()
    assert isinstance(aggregate.second, tuple)
    with pytest.raises(CohortRefused, match="holds 2 clients; the plan asks for 3"):
        four.open(replace(aggregate, clients=2, second=tuple(block[:2] for block in aggregate.second)))


def forged(four: Scene, values: Integers, checks: int, padding: int, votes: Integers, clients: int = 4) -> Aggregate:
    """A sum that the holder of the cohort secret has encrypted in one piece, without any mask."""
    p = PLAN.parameters
    lanes = np.concatenate([values, np.full(CHECKS, checks, np.int64)])
    lanes = np.concatenate([lanes, np.full(-lanes.size % p.fields, padding, np.int64)])
    slots = np.concatenate([pack(lanes, p.values), pack(votes, p.votes)])
    kit = four.kits[NODES[0]]
    with RoundCipher(p, kit.secret.bfv_seed(RUN, 1)) as cipher:
        total = ciphertext_sum(p, [cipher.encrypt(slots)])
    sealed = four.waiting[NODES[0]].sealed
    return replace(
        total, clients=clients, values=values.size, votes=votes.size, plan=PLAN.digest,
        key=kit.roster.key_id(RUN, 1), support=support_digest(sealed), sealed=sealed,
    )  # fmt: skip


NO_VOTES = np.zeros(0, np.int64)


def test_a_sum_at_the_end_of_its_lane_opens_and_one_beyond_does_not(four: Scene) -> None:
    reach = PLAN.parameters.grid.reach
    for end in (reach, -reach):
        values = np.full(SIZE, end, np.int64)
        assert four.open(forged(four, values, 4, 0, NO_VOTES)).values.tolist() == [end] * SIZE
    values[5] = reach + 1
    with pytest.raises(MalformedMessage, match="does not decrypt"):
        four.open(forged(four, values, 4, 0, NO_VOTES))


@pytest.mark.parametrize(("checks", "padding"), [(3, 0), (5, 0), (0, 0), (-4, 0), (4, 1), (4, -1)])
def test_wrong_check_lanes_or_padding_do_not_open(checks: int, padding: int, four: Scene) -> None:
    assert (SIZE + CHECKS) % PLAN.parameters.fields != 0
    with pytest.raises(MalformedMessage, match="does not decrypt"):
        four.open(forged(four, np.zeros(SIZE, np.int64), checks, padding, NO_VOTES))


def test_more_votes_than_clients_do_not_open(four: Scene) -> None:
    values, votes = np.zeros(SIZE, np.int64), np.full(SIZE, 4, np.int64)
    assert four.open(forged(four, values, 4, 0, votes)).votes.tolist() == [4] * SIZE
    votes[SIZE - 1] = 5
    with pytest.raises(MalformedMessage, match="does not decrypt"):
        four.open(forged(four, values, 4, 0, votes))


@pytest.mark.parametrize("part", ["first", "second"])
def test_residues_beyond_the_modulus_are_refused(part: str, four: Scene) -> None:
    whole = ciphertext_sum(PLAN.parameters, parts(four, ALL))
    wrong = replace(four.aggregate(), first=whole.first, second=whole.second)
    halves: dict[str, Any] = {
        "first": np.full_like(wrong.first, (1 << PLAN.parameters.width_down) - 1),
        "second": np.full_like(whole.second, (1 << 60) - 1),
    }
    with pytest.raises(MalformedMessage, match="not below the modulus"):
        four.open(replace(wrong, **{part: halves[part]}))


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 50, -1])
def test_an_aggregate_that_is_cut_short_or_goes_on_is_refused(cut: int, four: Scene) -> None:
    data = encode_aggregate(four.aggregate(), PLAN.parameters)
    for broken in (data[:cut], data + b"\0"):
        with pytest.raises(PeerError):
            open_sum(broken, RUN, 1, four.kits[NODES[0]], PLAN, LAYOUT)


@settings(deadline=None, max_examples=60)
@given(position=st.integers(0, 2**16), flip=st.integers(1, 255))
def test_a_changed_byte_is_refused_as_the_peers_mistake_or_changes_a_sum_and_nothing_worse(
    position: int, flip: int, four: Scene
) -> None:
    data = bytearray(four.aggregate_bytes)
    data[position % len(data)] ^= flip
    try:
        opened = open_sum(bytes(data), RUN, 1, four.kits[NODES[0]], PLAN, LAYOUT)
    except PeerError:
        return
    assert opened.clients == 4
    assert np.abs(opened.values).max() <= PLAN.parameters.grid.reach


def test_flipped_bits_of_the_ciphertext_never_give_a_whole_cohort_with_other_votes_or_members(four: Scene) -> None:
    """A change of the second half reaches every coefficient, the check lanes included."""
    whole = ciphertext_sum(PLAN.parameters, parts(four, ALL))
    honest = replace(four.aggregate(), first=whole.first, second=whole.second)
    assert isinstance(honest.second, np.ndarray)
    for bit in (20, 35, 58):
        second = honest.second.copy()
        second[0, 77] ^= np.uint64(1 << bit)
        with pytest.raises(MalformedMessage):
            four.open(replace(honest, second=second))


# --- from a sum to a state ----------------------------------------------------------------------


class EveryOther(Sparsifier):
    """Keeps what is named, and remembers what it was asked."""

    name = "every-other"

    def survivors(self, mean: Vector, votes: Integers, clients: int, layout: Layout, state: GlobalState) -> Mask:
        self.asked = (mean, votes, clients, state)
        kept: Mask = np.arange(layout.size) % 2 == 0
        return kept


def test_the_next_state_is_the_mean_on_what_survives_and_zero_elsewhere() -> None:
    mask = np.arange(SIZE) < 20
    support = Support.of(mask)
    terms = Terms(support, np.array([2.0], np.float32))
    values, votes = np.arange(20, dtype=np.int64) - 10, np.arange(20, dtype=np.int64) % 4
    method = EveryOther(PLAN)
    state = next_state(Sum(terms, 4, values, votes), 3, PLAN, LAYOUT, method)
    mean = np.zeros(SIZE, np.float32)
    mean[:20] = (values * (2.0 / PLAN.parameters.grid.levels)).astype(np.float32)
    seen_mean, seen_votes, clients, merged = method.asked
    assert seen_mean.tolist() == merged.vector.tolist() == mean.tolist()
    assert seen_votes.tolist() == votes.tolist() + [0] * 30
    assert (clients, merged.round, state.round) == (4, 3, 3)
    assert merged.mask.tolist() == mask.tolist()
    assert state.mask.tolist() == (np.arange(SIZE) % 2 == 0).tolist()
    assert state.vector.tolist() == np.where(np.arange(SIZE) % 2 == 0, mean, 0).tolist()


def test_without_votes_a_method_sees_none(four: Scene) -> None:
    method = EveryOther(PLAN)
    next_state(four.open(four.aggregate()), 1, PLAN, LAYOUT, method)
    assert method.asked[1].tolist() == [0] * SIZE


def test_the_first_state_is_the_initial_model_and_everything_travels() -> None:
    state = first_state(STATE.vector, LAYOUT)
    assert (state.round, state.mask.tolist()) == (0, [True] * SIZE)
    assert state.vector.tolist() == STATE.vector.tolist()
    assert terms_of(state, LAYOUT).support.mask.all()


def test_all_clients_derive_one_state_from_one_sum(four: Scene) -> None:
    data = encode_aggregate(four.aggregate(), PLAN.parameters)
    call = Call(RUN, 2, 1)
    digests = set()
    for kit in four.kits.values():
        state = next_state(open_sum(data, RUN, 1, kit, PLAN, LAYOUT), 1, PLAN, LAYOUT, FedAvg(PLAN))
        digests.add(model_digest(state, call, kit))
    assert len(digests) == 1


def test_two_tensors_have_a_clip_each_and_so_a_step_each() -> None:
    layout = Layout((TensorSpec("a", (3,), True), TensorSpec("b", (2,), False)))
    state = first_state(np.array([0.1, -4, 0, 10, 1], np.float32), layout)
    kit = federation(PLAN).kits[NODES[0]]
    pending = attend(CALL, kit, PLAN, layout, state, state.vector, np.zeros(0, np.bool_), samples=1)
    levels = PLAN.parameters.grid.levels
    assert pending.step.tolist() == [8 / levels] * 3 + [20 / levels] * 2
