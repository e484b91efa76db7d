"""``edge_client.sparsify.allocation``: exactly the asked number stays, shared out as the rule says."""

from dataclasses import replace
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.sparsify.allocation import NAMES, allocate, weights
from protocol.errors import ConfigError
from protocol.layout import Layout, Mask, TensorSpec, Vector
from tests.edge_client.federation import random_vector

LAYOUT = Layout(
    (
        TensorSpec("a.bias", (10,), True),
        TensorSpec("a.weight", (10, 4, 3, 3), True, work=16),
        TensorSpec("b.mean", (10,), False),
        TensorSpec("b.weight", (20, 40), True),
        TensorSpec("c.weight", (5, 20), True),
    )
)
CANDIDATES = LAYOUT.prunable


def by_tensor(mask: Mask) -> dict[str, int]:
    cuts = np.split(mask, LAYOUT.offsets[1:-1])
    return {tensor.name: int(cut.sum()) for tensor, cut in zip(LAYOUT.tensors, cuts, strict=True) if tensor.trainable}


def scores(seed: int = 0) -> Vector:
    return np.abs(random_vector(seed, LAYOUT.size))


def test_weights_are_the_trainable_tensors_of_two_or_more_dimensions() -> None:
    assert by_tensor(weights(LAYOUT)) == {"a.bias": 0, "a.weight": 360, "b.weight": 800, "c.weight": 100}
    assert int(weights(LAYOUT).sum()) == 1260


@settings(deadline=None)
@given(
    rule=st.sampled_from(NAMES),
    share=st.floats(0.01, 1),
    density=st.floats(0.05, 1),
    floor=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_exactly_the_asked_number_of_candidates_stays_and_no_tensor_falls_below_the_floor(
    rule: str, share: float, density: float, floor: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    candidates = CANDIDATES & (rng.random(LAYOUT.size) < share)
    count = max(1, int(density * candidates.sum()))
    floor *= count / 1270 * 0.5
    least = sum(min(int(floor * tensor.size), 10**9) for tensor in LAYOUT.tensors if tensor.trainable)
    assert least <= count
    kept = allocate(scores(seed), candidates, count, LAYOUT, rule, floor)
    assert int(kept.sum()) == min(count, int(candidates.sum()))
    assert not (kept & ~candidates).any()
    there = by_tensor(candidates)
    for name, number in by_tensor(kept).items():
        size = next(tensor.size for tensor in LAYOUT.tensors if tensor.name == name)
        assert number >= min(there[name], int(floor * size))


@pytest.mark.parametrize("rule", NAMES)
def test_within_a_tensor_the_highest_scores_stay(rule: str) -> None:
    given_ = scores()
    kept = allocate(given_, CANDIDATES, 300, LAYOUT, rule)
    for start, tensor in zip(LAYOUT.offsets, LAYOUT.tensors, strict=False):
        inside = kept[start : start + tensor.size]
        if tensor.trainable and inside.any() and not inside.all():
            values = given_[start : start + tensor.size]
            assert values[inside].min() >= values[~inside].max()


def test_global_looks_at_scores_alone() -> None:
    high = scores() + np.where(np.arange(LAYOUT.size) >= LAYOUT.offsets[4], 10, 0).astype(np.float32)
    kept = allocate(high, CANDIDATES, 100, LAYOUT, "global")
    assert by_tensor(kept) == {"a.bias": 0, "a.weight": 0, "b.weight": 0, "c.weight": 100}


def test_uniform_keeps_the_same_share_of_every_tensor() -> None:
    kept = by_tensor(allocate(scores(), CANDIDATES, 127, LAYOUT, "uniform"))
    assert kept == {"a.bias": 1, "a.weight": 36, "b.weight": 80, "c.weight": 10}


def test_erk_keeps_shares_that_fall_with_size() -> None:
    """Densities in the ratio of sum(shape) / prod(shape), none above 1: here the bias is kept whole."""
    kept = by_tensor(allocate(scores(), CANDIDATES, 10 + 105, LAYOUT, "erk"))
    assert kept == {"a.bias": 10, "a.weight": 20, "b.weight": 60, "c.weight": 25}
    densities = [kept[name] / prod(shape) for name, shape in (("a.weight", (10, 4, 3, 3)), ("b.weight", (20, 40)))]
    assert densities[0] / densities[1] == pytest.approx((20 / 360) / (60 / 800))


def test_macs_ranks_by_magnitude_for_each_multiply_accumulate() -> None:
    """Every weight of the convolution works for 16 outputs, so it must be 16 times as large to stay."""
    flat = np.ones(LAYOUT.size, np.float32)
    flat[LAYOUT.offsets[1] : LAYOUT.offsets[1] + 360] = 15.9
    kept = by_tensor(allocate(flat, CANDIDATES, 910, LAYOUT, "macs"))
    assert kept == {"a.bias": 10, "a.weight": 0, "b.weight": 800, "c.weight": 100}
    flat[LAYOUT.offsets[1] : LAYOUT.offsets[1] + 360] = 16.1
    assert by_tensor(allocate(flat, CANDIDATES, 360, LAYOUT, "macs"))["a.weight"] == 360


def test_a_floor_keeps_a_layer_from_dying() -> None:
    dying = scores()
    dying[LAYOUT.offsets[3] : LAYOUT.offsets[4]] *= 1e-6
    assert by_tensor(allocate(dying, CANDIDATES, 100, LAYOUT, "global"))["b.weight"] == 0
    assert by_tensor(allocate(dying, CANDIDATES, 100, LAYOUT, "global", floor=0.05))["b.weight"] == 40


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"layer-floor 0.5 needs 635 positions where 100 stay"):
        allocate(scores(), CANDIDATES, 100, LAYOUT, "global", floor=0.5)
    with pytest.raises(ConfigError, match="there is no allocation 'fair'; known are global, uniform, erk, macs"):
        allocate(scores(), CANDIDATES, 100, LAYOUT, "fair")


def test_where_no_more_candidates_are_left_all_of_them_stay() -> None:
    few = np.zeros(LAYOUT.size, np.bool_)
    few[[3, 50, 900]] = True
    assert allocate(scores(), few, 5, LAYOUT, "erk", floor=0.5).tolist() == few.tolist()


@pytest.mark.parametrize("rule", NAMES)
def test_ties_go_to_the_earlier_position(rule: str) -> None:
    layout = Layout(tuple(replace(tensor, work=1) for tensor in LAYOUT.tensors))
    kept = allocate(np.ones(LAYOUT.size, np.float32), CANDIDATES, 127, layout, rule)
    for start, tensor in zip(LAYOUT.offsets, LAYOUT.tensors, strict=False):
        inside = kept[start : start + tensor.size]
        assert inside[: int(inside.sum())].all()
