"""``edge_client.sparsify.topk``: how many stay, which ones, and that ties go by position."""

from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.sparsify.topk import kept_at, top_k


@pytest.mark.parametrize(
    ("sparsity", "size", "kept"),
    [
        (0.0, 100, 100),
        (0.95, 100, 5),
        (0.95, 17_226, 861),
        (0.95, 118_282, 5_914),
        (0.99, 1_609_930, 16_099),
        (0.1, 10, 9),
        (0.7, 10, 3),
        (0.3, 10, 7),
        (0.95, 1, 1),
        (0.999, 3, 1),
    ],
)
def test_kept_is_what_the_exact_fraction_leaves_over_and_at_least_one(sparsity: float, size: int, kept: int) -> None:
    exact = Fraction(str(sparsity))
    assert kept_at(sparsity, size) == kept == max(1, size - ceil(exact * size))


@given(thousandths=st.integers(0, 999), size=st.integers(1, 4_000_000))
def test_float_rounding_never_moves_a_position(thousandths: int, size: int) -> None:
    zeros = -(-thousandths * size // 1000)
    assert kept_at(thousandths / 1000, size) == max(1, size - zeros)


@given(scores=st.lists(st.integers(0, 5), min_size=1, max_size=40), data=st.data())
def test_the_highest_stay_and_among_equals_the_earlier(scores: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(scores)))
    by_rank = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    mask = top_k(np.array(scores, np.float32), count)
    assert np.flatnonzero(mask).tolist() == sorted(by_rank[:count])


def test_ties_at_the_threshold_are_broken_by_position() -> None:
    mask = top_k(np.array([1, 3, 1, 1, 3, 0], np.float32), 4)
    assert mask.tolist() == [True, True, True, False, True, False]


@given(
    scores=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=40).map(lambda s: np.array(s, np.float32)),
    data=st.data(),
)
def test_masks_of_fewer_positions_lie_within_those_of_more(scores: np.ndarray, data: st.DataObject) -> None:
    more = data.draw(st.integers(2, scores.size))
    fewer = data.draw(st.integers(1, more - 1))
    assert not (top_k(scores, fewer) & ~top_k(scores, more)).any()


@pytest.mark.parametrize("count", [-1, 0, 4])
def test_a_number_of_positions_that_are_not_there_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} of 3 positions cannot be kept"):
        top_k(np.ones(3, np.float32), count)
