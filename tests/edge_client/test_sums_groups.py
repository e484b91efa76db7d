"""``edge_client.sums``: of the sums of groups a client adds up those that are good, and says which are not."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edge_client.round import dither_of, quantised, terms_of
from edge_client.sums import Sum, open_sum
from protocol.call import Call
from protocol.ciphertext import restore, truncate
from protocol.cohort import gather_cohort
from protocol.errors import CohortRefused, MalformedMessage, PeerMismatch, Spoiled
from protocol.grid import Integers
from protocol.parameters import MODULUS
from protocol.terms import encode_terms, support_digest
from protocol.wire import Aggregate, aggregates, decode_aggregate, encode_aggregate
from tests.edge_client.federation import RUN
from tests.edge_client.scene import LAYOUT, SIZE, STATE, THREE_GROUPS, TWELVE, Scene, ready

A, B, C = THREE_GROUPS


def opened(scene: Scene, data: bytes) -> Sum:
    return open_sum(data, RUN, 1, scene.kits[TWELVE[0]], scene.plan, LAYOUT)


def clear(scene: Scene, nodes: Collection[int]) -> Integers:
    """What these nodes have added to the sums of their groups."""
    total = np.zeros(SIZE, np.int64)
    for node in nodes:
        dither = dither_of(scene.plan, scene.call, node, SIZE)
        total += quantised(scene.waiting[node], scene.cohort, node, scene.plan, dither)[0]
    return total


def of_groups(scene: Scene) -> tuple[Aggregate, ...]:
    """The true sum of each group."""
    return tuple(decode_aggregate(each, scene.plan.parameters) for each, _ in aggregates(scene.aggregate_bytes))


def weight(scene: Scene, nodes: Collection[int]) -> int:
    weights = scene.cohort.weights(scene.plan.max_share)
    return sum(weights[node] for node in nodes)


# --- good and spoiled ones ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoilers", "groups", "good", "spoiled"),
    [
        pytest.param((), (0, 1, 2), A | B | C, 0, id="none"),
        pytest.param((min(A),), (0, 1, 2), B | C, 0b001, id="the first"),
        pytest.param((min(B),), (0, 1, 2), A | C, 0b010, id="one in the middle"),
        pytest.param((max(C),), (0, 1, 2), A | B, 0b100, id="the last"),
        pytest.param((min(A), max(B)), (0, 1, 2), C, 0b011, id="all but the last"),
        pytest.param((min(B), min(C)), (0, 1, 2), A, 0b110, id="all but the first"),
        pytest.param((min(B), max(B)), (0, 1, 2), A | C, 0b010, id="two in one group"),
        pytest.param((min(C),), (0, 2), A, 0b10, id="the second that was opened, of the third group"),
        pytest.param((min(C),), (0, 1), A | B, 0, id="one that is not opened"),
    ],
)
def test_the_good_sums_are_added_up_and_each_other_has_its_bit(
    spoilers: tuple[int, ...], groups: tuple[int, ...], good: frozenset[int], spoiled: int, divided: Scene
) -> None:
    total = opened(divided, divided.released(divided.summed(spoilers=spoilers, groups=groups)))
    assert total.values.tolist() == clear(divided, good).tolist()
    assert (total.clients, total.told.spoiled, total.votes.size) == (len(good), spoiled, 0)
    assert total.whole == weight(divided, TWELVE) / weight(divided, good)


def test_a_lost_member_is_missing_in_the_sum_of_its_group_alone(divided: Scene) -> None:
    total = opened(divided, divided.released(divided.summed(lost={max(A)}, spoilers={min(B)})))
    good = A - {max(A)} | C
    assert total.values.tolist() == clear(divided, good).tolist()
    assert (total.clients, total.told.spoiled) == (7, 0b010)


@pytest.mark.parametrize("groups", [(0, 1, 2), (1, 2), (1, 2, 0)])
def test_where_no_sum_is_good_the_whole_is_spoiled(groups: tuple[int, ...], divided: Scene) -> None:
    spoilers = {min(THREE_GROUPS[group]) for group in groups}
    data = divided.released(divided.summed(spoilers=spoilers, groups=groups))
    with pytest.raises(Spoiled, match="does not decrypt to the sum of its clients"):
        opened(divided, data)


def test_a_spoiled_sum_of_a_whole_cohort_is_an_error_of_its_own(four: Scene) -> None:
    data = four.released(four.summed(spoilers={3}))
    with pytest.raises(Spoiled) as caught:
        open_sum(data, RUN, 1, four.kits[2], four.plan, LAYOUT)
    assert caught.value.code == 119


# --- what does not belong together ------------------------------------------------------------------


def test_no_aggregate_at_all_is_refused(divided: Scene) -> None:
    with pytest.raises(MalformedMessage, match="there is no aggregate"):
        opened(divided, b"")


@pytest.mark.parametrize(
    ("field", "change"),
    [("attempt", 1), ("cohort", bytes(32)), ("members", -1), ("total", 1)],
)
def test_sums_of_different_attempts_cohorts_or_totals_are_not_added_up_whoever_vouches(
    field: str, change: "int | bytes", divided: Scene
) -> None:
    one, other, _ = of_groups(divided)
    changed: dict[str, Any] = {field: change if isinstance(change, bytes) else getattr(other, field) + change}
    with pytest.raises(MalformedMessage, match="no member of the cohort vouches"):
        divided.open(one, replace(other, **changed))
    with pytest.raises(PeerMismatch) as caught:
        divided.open(one, divided.vouched(replace(other, **changed)))
    assert caught.value.field == field


def test_sums_under_different_terms_are_not_added_up(divided: Scene) -> None:
    one, other, _ = of_groups(divided)
    terms = replace(terms_of(STATE, LAYOUT), clips=terms_of(STATE, LAYOUT).clips * np.float32(2))
    sealed = divided.kits[TWELVE[0]].secret.seal(encode_terms(terms), RUN, 1)
    with pytest.raises(PeerMismatch) as caught:
        divided.open(one, replace(other, sealed=sealed, support=support_digest(sealed)))
    assert caught.value.field == "support"


def test_true_sums_of_two_attempts_are_not_added_up(divided: Scene) -> None:
    call = Call(RUN, 1, 2)
    waiting = {node: ready(divided.kits[node], call, plan=divided.plan) for node in TWELVE}
    cohort = gather_cohort([pending.attendance for pending in waiting.values()], divided.fed.roster, THREE_GROUPS)
    again = Scene(divided.fed, waiting, cohort, call, divided.plan)
    (one, _, _), (_, other, last) = of_groups(divided), of_groups(again)
    assert again.open(other, last).clients == 8
    with pytest.raises(PeerMismatch) as caught:
        divided.open(one, other)
    assert caught.value.field == "attempt"


@pytest.mark.parametrize("places", [(0, 0), (1, 0), (0, 1, 1), (0, 2, 1), (2, 1, 0)])
def test_sums_that_are_repeated_or_in_another_order_are_refused(places: tuple[int, ...], divided: Scene) -> None:
    sums = of_groups(divided)
    with pytest.raises(PeerMismatch) as caught:
        divided.open(*(sums[place] for place in places))
    assert caught.value.field == "group"


def test_a_group_of_too_few_is_refused_however_many_others_there_are(divided: Scene) -> None:
    one, other, last = of_groups(divided)
    assert isinstance(other.second, tuple)
    small = divided.vouched(replace(other, clients=2, second=tuple(block[:2] for block in other.second)))
    with pytest.raises(CohortRefused, match="holds 2 clients; the plan asks for 3"):
        divided.open(one, small, last)


@pytest.mark.parametrize("changes", [{"values": LAYOUT.size + 1}, {"votes": 1}])
def test_each_aggregate_is_bounded_by_the_model_before_it_is_decoded(
    changes: dict[str, int], divided: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def heads(_: bytes) -> "list[tuple[bytes, dict[str, int]]]":
        return [(b"", {"values": SIZE, "votes": 0} | change) for change in ({}, changes)]

    monkeypatch.setattr("edge_client.sums.aggregates", heads)
    monkeypatch.setattr("edge_client.sums._admitted", lambda *_: None)
    with pytest.raises(PeerMismatch, match="values and votes"):
        opened(divided, b"two")


def test_sums_of_another_size_than_the_terms_are_refused(divided: Scene) -> None:
    one, other, _ = of_groups(divided)
    less = SIZE - 4
    short = replace(other, values=less, first=other.first[: divided.plan.parameters.slots(less, 0)])
    with pytest.raises(PeerMismatch) as caught:
        divided.open(one, short)
    assert (caught.value.field, caught.value.ours, caught.value.theirs) == ("values", SIZE, less)


# --- one that is passed off as another --------------------------------------------------------------


def test_a_groups_sum_is_none_under_the_head_of_another(divided: Scene) -> None:
    one, other, last = of_groups(divided)
    exchanged = replace(one, first=other.first, second=other.second)
    total = divided.open(exchanged, other, last)
    assert (total.told.spoiled, total.clients) == (0b001, 8)
    assert total.values.tolist() == clear(divided, B | C).tolist(), "nothing counts twice"
    with pytest.raises(Spoiled):
        divided.open(exchanged)


def test_a_groups_sum_with_the_number_of_another_is_refused_and_is_none_even_if_a_client_vouches(
    divided: Scene,
) -> None:
    one, other, last = of_groups(divided)
    with pytest.raises(MalformedMessage, match="no member of the cohort vouches"):
        divided.open(one, replace(one, group=1), last)
    total = divided.open(one, divided.vouched(replace(one, group=1)), last)
    assert (total.told.spoiled, total.clients) == (0b010, 8)
    assert total.values.tolist() == clear(divided, A | C).tolist()
    assert divided.open(one, other, last).told.spoiled == 0, "the control"


def added(scene: Scene, one: Aggregate, other: Aggregate) -> Aggregate:
    """The sum of two groups' sums, under the head of the first of them, as somebody with a client's kit makes it."""
    p = scene.plan.parameters
    first = (restore(one.first, p.drop_down) + restore(other.first, p.drop_down)) % np.uint64(MODULUS)
    assert isinstance(one.second, tuple)
    assert isinstance(other.second, tuple)
    return scene.vouched(
        replace(
            one,
            clients=one.clients + other.clients,
            weight=one.weight + other.weight,
            first=truncate(first, p.drop_down),
            second=tuple(a + b for a, b in zip(one.second, other.second, strict=True)),
        )
    )


@pytest.mark.parametrize("group", [0, 1])
def test_two_groups_sums_added_up_are_no_sum(group: int, divided: Scene) -> None:
    one, other, last = of_groups(divided)
    both = divided.vouched(replace(added(divided, one, other), group=group))
    with pytest.raises(Spoiled):
        divided.open(both)
    total = divided.open(both, last)
    assert (total.told.spoiled, total.clients) == (0b01, 4)


def test_the_sums_of_all_groups_are_not_that_of_the_cohort(divided: Scene) -> None:
    one, other, last = of_groups(divided)
    with pytest.raises(Spoiled):
        divided.open(added(divided, added(divided, one, other), last))


def test_an_aggregate_that_is_cut_short_or_followed_by_another_byte_is_refused(divided: Scene) -> None:
    data = b"".join(encode_aggregate(each, divided.plan.parameters) for each in of_groups(divided))
    for broken in (data[:-1], data + b"\0", data[1:]):
        with pytest.raises(MalformedMessage):
            opened(divided, broken)
