"""No schedule of attempts opens sums that expose a client, and the search would find one that did."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import combinations
from random import Random
from typing import Any

import pytest

from protocol import openings
from protocol.call import Call
from protocol.openings import Nodes, Opening, require_openable
from tests.attacks import search
from tests.attacks.search import Attempt, Schedule, attack, draw, exposed, play

SEEDS = range(600)
RUN, OTHER = bytes(16), bytes([1]) * 16
STATE, LIKE_IT = bytes(32), bytes([1]) * 32
WHOLE = frozenset(range(10))
WITHOUT = WHOLE - {9}


def found(seeds: Iterable[int]) -> list[int]:
    """The seeds whose schedules expose somebody."""
    schedules = ((seed, draw(Random(seed))) for seed in seeds)  # noqa: S311
    return [seed for seed, schedule in schedules if attack(schedule, play(schedule))]


def test_nobody_is_exposed() -> None:
    assert found(SEEDS) == []


def test_many_schedules_open_several_sums_of_one_state_also_beside_that_of_all() -> None:
    schedules = [draw(Random(seed)) for seed in SEEDS]  # noqa: S311
    opened = [sums for schedule in schedules for sums in play(schedule).by_state.values()]
    assert sum(len(sums) > 1 for sums in opened) > 100
    assert sum(any(len(one & other) for one, other in combinations(sums, 2)) for sums in opened) > 20
    assert sum(len(attempt.groups) > 1 for schedule in schedules for attempt in schedule.attempts) > 300


Rule = Callable[..., None]


def without_memory(memory: Any, invited: Any, sets: Any, colluders: int) -> None:
    require_openable((), invited, sets, colluders)


def without_a_quorum_of_the_earlier_invited(memory: Any, invited: Any, sets: Any, colluders: int) -> None:
    require_openable([Opening(invited, one.sets) for one in memory], invited, sets, colluders)


@pytest.mark.parametrize(
    ("rule", "seeds", "many"),
    [
        (without_memory, SEEDS, 100),
        pytest.param(without_a_quorum_of_the_earlier_invited, range(3_000), 0, marks=pytest.mark.slow),
    ],
)
def test_the_search_finds_what_a_weaker_rule_would_give(
    rule: Rule, seeds: Iterable[int], many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openings, "require_openable", rule)
    assert len(found(seeds)) > many


def test_the_search_finds_what_differences_of_one_would_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openings, "smallest", lambda _: 1)
    assert len(found(SEEDS)) > 50


def test_the_search_finds_what_small_groups_would_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "fewest", lambda _: 1)
    assert found(SEEDS) == [], "what may not be left over may not be a group"
    monkeypatch.setattr(openings, "smallest", lambda _: 1)
    small = [seed for seed in SEEDS if attacked_at_once(seed)]
    assert len(small) > 10


def attacked_at_once(seed: int) -> bool:
    """Whether an attempt that divides its cohort exposes somebody by itself."""
    schedule = draw(Random(seed))  # noqa: S311
    alone = [replace(schedule, attempts=[one], forgetful={}) for one in schedule.attempts if one.groups]
    return any(attack(one, play(one)) for one in alone)


@pytest.mark.slow
def test_the_search_finds_what_half_of_the_invited_would_give(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (openings, search):
        monkeypatch.setattr(module, "threshold", lambda invited, _: invited // 2)
    assert found(range(2_000))


def two(second: Call, state: bytes = STATE, **changes: Any) -> Schedule:
    """The sum of all, and then that of all but node 9."""
    first = Attempt(Call(RUN, 1, 1), STATE, WHOLE, WHOLE, WHOLE, (((WHOLE,), WHOLE),))
    again = Attempt(second, state, WHOLE, WITHOUT, WITHOUT, (((WITHOUT,), WITHOUT),))
    return Schedule(1, changes.get("corrupt", frozenset()), changes.get("forgetful", {}), [first, again])


SECOND = {
    "another attempt": two(Call(RUN, 1, 2)),
    "another attempt from another sum of the round before": two(Call(RUN, 1, 2), LIKE_IT),
    "a later round from the same state": two(Call(RUN, 2, 1)),
    "another run from the same state": two(Call(OTHER, 1, 1)),
    "another run, with a colluder": two(Call(OTHER, 1, 1), corrupt=frozenset({0})),
    "another run, with one that has forgotten": two(Call(OTHER, 1, 1), forgetful={0: (1, 0)}),
}


@pytest.mark.parametrize("how", SECOND)
def test_the_sum_without_one_does_not_follow_that_of_all(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = SECOND[how]
    opened = play(schedule)
    assert [len(sums) for sums in opened.by_state.values()] == [1]
    assert attack(schedule, opened) == frozenset()
    monkeypatch.setattr(openings, "require_openable", without_memory)
    opened = play(schedule)
    if how == "another attempt from another sum of the round before":
        assert len(opened.by_state) == 2
    assert attack(schedule, opened) == {9}


GROUPS = (frozenset({0, 3, 6}), frozenset({1, 4, 7}), frozenset({2, 5, 8, 9}))
FEWER = (GROUPS[0], GROUPS[1], GROUPS[2] - {9})


def then_groups(first: tuple[Nodes, ...], sets: tuple[Nodes, ...], corrupt: Nodes = frozenset()) -> Schedule:
    """The sum of all, and then those of groups."""
    schedule = two(Call(RUN, 1, 2), corrupt=corrupt)
    again = Attempt(Call(RUN, 1, 2), STATE, WHOLE, WHOLE, WHOLE, ((sets, WHOLE),), first)
    return replace(schedule, attempts=[schedule.attempts[0], again])


def test_after_the_sum_of_all_those_of_groups_are_opened_but_for_what_leaves_one_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for good in (GROUPS, GROUPS[1:]):
        opened = play(then_groups(GROUPS, good))
        assert opened.by_state[STATE] == {WHOLE, *good}
        assert attack(then_groups(GROUPS, good), opened) == frozenset()
    for groups in (GROUPS, FEWER):
        assert play(then_groups(groups, FEWER)).by_state[STATE] == {WHOLE}
    monkeypatch.setattr(openings, "smallest", lambda _: 1)
    for groups in (GROUPS, FEWER):
        assert attack(then_groups(groups, FEWER), play(then_groups(groups, FEWER))) == {9}


def test_a_group_of_fewer_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = (frozenset({0, 9}), WHOLE - {0, 9})
    schedule = then_groups(groups, groups, corrupt=frozenset({0}))
    assert play(schedule).by_state[STATE] == {WHOLE - {0}}
    monkeypatch.setattr(search, "fewest", lambda _: 2)
    monkeypatch.setattr(openings, "smallest", lambda _: 2)
    assert attack(schedule, play(schedule)) == {9}


def test_more_who_forget_than_the_plan_has_colluders_expose_one() -> None:
    """What is not held: everybody but the victim has an old ledger put back."""
    schedule = two(Call(RUN, 1, 2), forgetful=dict.fromkeys(WITHOUT, (1, 0)))
    assert attack(schedule, play(schedule)) == {9}


# --- what follows from sums -----------------------------------------------------------------------


def test_sums_that_expose_are_recognised() -> None:
    a, b, c = frozenset({1, 2, 3, 4, 5}), frozenset({1, 2}), frozenset({3, 4})
    assert exposed([a, b, c], set(), 2) == {5}
    assert exposed([a, frozenset({1, 2, 3, 4})], set(), 2) == {5}
    assert exposed([b, frozenset({2, 3}), frozenset({1, 3})], set(), 2)
    assert exposed([b], {1}, 2) == {2}
    assert exposed([a, b], {3, 4}, 2) == {5}
    for safe in ([a, b], [b, c], [], [a]):
        assert not exposed(safe, set(), 2)


def test_a_combination_that_touches_too_few_counts_even_if_it_is_no_sum_of_theirs() -> None:
    """x1 - x2 is neither of the two, and tells of both."""
    one, other = frozenset({1, 3, 4, 5}), frozenset({2, 3, 4, 5})
    assert exposed([one, other], set(), 3) == {1, 2}
    assert not exposed([one, other], set(), 2)
