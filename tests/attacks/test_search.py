"""No schedule of announcements opens sums that expose a client, and the search would find one that did."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from protocol.call import Call
from protocol.cohort import successor_sizes
from tests.attacks.search import Memory, Schedule, Step, attack, draw, exposed, play

SEEDS = range(1_000)
RUN, OTHER = bytes(16), bytes([1]) * 16
STATE, LIKE_IT = bytes(32), bytes([1]) * 32
WHOLE = frozenset(range(10))
WITHOUT = WHOLE - {9}


def found(seeds: range) -> list[int]:
    """The seeds whose schedules expose somebody."""
    schedules = ((seed, draw(Random(seed))) for seed in seeds)  # noqa: S311
    return [seed for seed, schedule in schedules if attack(schedule, play(schedule))]


def test_nobody_is_exposed() -> None:
    assert found(SEEDS) == []


def test_many_schedules_open_several_sums_of_one_state() -> None:
    opened = [play(draw(Random(seed))).by_state for seed in SEEDS[:300]]  # noqa: S311
    assert sum(max(map(len, sums.values()), default=0) > 1 for sums in opened) > 30


def test_the_search_finds_what_clients_without_a_ledger_would_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memory, "consent", lambda *_: None)
    assert len(found(SEEDS[:300])) > 5


def test_the_search_finds_what_a_constant_of_one_colluder_would_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_for_one(first: int, last: int, minimum: int, colluders: int) -> range:
        return successor_sizes(first, last, minimum, min(colluders, 1))

    monkeypatch.setattr("protocol.cohort.successor_sizes", as_for_one)
    monkeypatch.setattr("tests.attacks.search.successor_sizes", as_for_one)
    assert found(SEEDS)


def two(second: Call, state: bytes = STATE, **changes: Any) -> Schedule:
    """The sum of all, and then that of all but node 9."""
    steps = [Step(Call(RUN, 1, 1), STATE, WHOLE, WHOLE), Step(second, state, WITHOUT, WITHOUT)]
    return replace(Schedule(1, frozenset(), {}, steps), **changes)


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
    assert list(opened.by_state.values()) == [{WHOLE}]
    assert attack(schedule, opened) == frozenset()
    monkeypatch.setattr(Memory, "consent", lambda *_: None)
    opened = play(schedule)
    if how == "another attempt from another sum of the round before":
        assert len(opened.by_state) == 2
    assert attack(schedule, opened) == {9}


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
