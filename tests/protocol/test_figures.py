"""``protocol.figures``: what clients have measured adds up exactly, whatever they tell."""

import math
from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.errors import MalformedMessage
from protocol.figures import (
    FIGURES,
    FIGURES_BYTES,
    NOTHING,
    UNIT,
    Figures,
    base,
    decode_figures,
    encode_figures,
    figures_from_bytes,
    figures_to_bytes,
    in_units,
    places,
)
from protocol.grid import Grid
from protocol.openings import MOST_NODES

GRIDS = [Grid(2, 1), Grid(2, 3), Grid(2, 200), Grid(8, 10), Grid(12, 10), Grid(16, 10), Grid(16, 1000), Grid(24, 3)]
LARGEST = Figures(*((1 << 46) - 1 if "loss" in name else (1 << 32) - 1 for name in FIGURES))
COUNTS, LOSSES = (st.integers(-(1 << bits) + 1, (1 << bits) - 1) for bits in (32, 46))


def some_figures() -> st.SearchStrategy[Figures]:
    return st.builds(Figures, *(LOSSES if "loss" in name else COUNTS for name in FIGURES))


@given(st.lists(some_figures(), min_size=1, max_size=10), st.sampled_from(GRIDS))
@example([LARGEST] * 3, Grid(2, 3))
@example([LARGEST] * 10, Grid(16, 10))
def test_the_sum_of_the_digits_is_that_of_the_sums(them: list[Figures], grid: Grid) -> None:
    them = them[: grid.clients]
    total = np.sum([encode_figures(each, grid) for each in them], axis=0)
    assert total.shape == (places(grid),)
    assert np.abs(total).max() <= grid.reach, "each digit stays within its lane"
    assert decode_figures(total, grid) == reduce(add, them)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_base_is_the_largest_of_which_the_digits_of_a_full_cohort_stay_within_a_lane(grid: Grid) -> None:
    assert grid.clients * (base(grid) - 1) <= grid.reach < grid.clients * base(grid)
    assert base(grid) >= 2


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_figure_beyond_its_limit_is_told_as_the_limit(name: str, sign: int) -> None:
    told = decode_figures(encode_figures(replace(NOTHING, **{name: sign << 70}), GRIDS[5]), GRIDS[5])
    assert told == replace(NOTHING, **{name: sign * getattr(LARGEST, name)})


def test_the_sums_of_the_largest_cohort_fit_their_frame() -> None:
    most = Figures(*(MOST_NODES * getattr(LARGEST, name) for name in FIGURES))
    assert figures_from_bytes(figures_to_bytes(most)) == most


@given(some_figures())
def test_figures_from_bytes_undoes_figures_to_bytes(made: Figures) -> None:
    assert figures_from_bytes(figures_to_bytes(made)) == made


@pytest.mark.parametrize("length", [0, 1, FIGURES_BYTES - 1, FIGURES_BYTES + 1])
def test_figures_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(MalformedMessage, match=f"figures are {FIGURES_BYTES} bytes long, not {length}"):
        figures_from_bytes(bytes(length))


@given(st.floats(-1e9, 1e9))
def test_a_loss_is_told_to_the_nearest_unit(loss: float) -> None:
    assert abs(in_units(loss) * UNIT - loss) <= UNIT / 2


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_told_as_the_largest(loss: float) -> None:
    told = decode_figures(encode_figures(Figures(test_loss=in_units(loss)), GRIDS[5]), GRIDS[5])
    assert told == Figures(test_loss=LARGEST.test_loss)
