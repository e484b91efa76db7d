"""``edge_client.sparsify.schedule``: the cubic schedule, against its own literal values and its laws."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.sparsify.schedule import sparsity_after
from edge_client.sparsify.topk import kept_at


def after(
    round_: int, final: float = 0.95, first: int = 1, rounds: int = 200, frequency: int = 1, exponent: float = 3.0
) -> float:
    return sparsity_after(round_, final=final, first=first, rounds=rounds, frequency=frequency, exponent=exponent)


@pytest.mark.parametrize(
    ("round_", "value"),
    [
        (1, 0.0),
        (2, 0.014249760709814),
        (3, 0.028356308955702),
        (10, 0.123152954489881),
        (50, 0.543146409302111),
        (100, 0.829450787941374),
        (101, 0.833031220088727),
        (150, 0.934931348492672),
        (199, 0.949999879450788),
        (200, 0.95),
    ],
)
def test_the_papers_main_run_has_these_values(round_: int, value: float) -> None:
    """S = 0.95, T = 200, t0 = 1, F = 1, n = 3; worked out with fractions."""
    assert after(round_) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(("round_", "value"), [(0, 0.0), (1, 0.0), (2, 0.4375), (3, 0.5)])
def test_three_rounds_can_be_worked_out_by_hand(round_: int, value: float) -> None:
    assert after(round_, final=0.5, rounds=3) == value


@pytest.mark.parametrize(("exponent", "value"), [(1.0, 0.475), (6.0, 0.93515625), (12.0, 0.949768066406250)])
def test_a_larger_exponent_prunes_sooner(exponent: float, value: float) -> None:
    assert after(101, rounds=201, exponent=exponent) == pytest.approx(value, abs=1e-12)


def test_with_a_frequency_the_sparsity_stands_still_between_prunings() -> None:
    values = [after(t, final=0.8, rounds=12, frequency=5) for t in range(1, 13)]
    assert values[:4] == [0.0] * 4
    assert len(set(values[4:9])) == 1
    assert values[4] == pytest.approx(0.8 - 0.8 * (1 - 4 / 11) ** 3)
    assert values[9] == values[10] == pytest.approx(0.8 - 0.8 * (1 - 9 / 11) ** 3)


def test_the_last_round_reaches_the_target_also_where_the_frequency_does_not_divide_it() -> None:
    """The published formula would stop at round 10 of 12."""
    assert after(12, final=0.8, rounds=12, frequency=5) == 0.8
    assert after(3, final=0.8, rounds=3, frequency=7) == 0.8


def test_a_multiple_of_the_frequency_before_the_first_pruning_prunes_nothing() -> None:
    """There the published formula is negative."""
    assert [after(t, first=8, frequency=5) for t in (5, 7, 8, 9)] == [0.0] * 4
    assert after(10, first=8, frequency=5) > 0


@given(
    final=st.floats(0, 0.999),
    first=st.integers(0, 20),
    length=st.integers(1, 60),
    frequency=st.integers(1, 9),
    exponent=st.floats(0.1, 12),
    size=st.integers(1, 10_000),
)
def test_sparsity_rises_from_zero_to_the_target_and_the_last_round_keeps_the_right_number(
    final: float, first: int, length: int, frequency: int, exponent: float, size: int
) -> None:
    rounds = first + length
    values = [after(t, final, first, rounds, frequency, exponent) for t in range(rounds + 3)]
    assert values[: first + 1] == [0.0] * (first + 1)
    assert all(0 <= a <= b for a, b in pairwise(values))
    assert values[rounds:] == [final] * 3
    kept = [kept_at(value, size) for value in values]
    assert all(a >= b for a, b in pairwise(kept))
    assert kept[first] == size
