"""``protocol.grid``: the sum of a cohort stays inside its lane, and stands for the mean."""

from fractions import Fraction
from math import isqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol.errors import ConfigError, TrainingError
from protocol.grid import Grid, Integers, Reals, Share, clips, dequantise, quantise, steps
from protocol.layout import Layout, TensorSpec, Vector
from protocol.support import Support
from tests.factories import layout

BITS = st.integers(2, 24)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
DITHER = st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, 0.5, float(np.nextafter(1.0, 0.0))])
SAMPLES = st.lists(st.integers(1, 9) | st.integers(1, (1 << 32) - 1), min_size=1, max_size=12)


def one(value: float) -> Vector:
    return np.array([value], np.float32)


def real(value: float) -> Reals:
    return np.array([value], np.float64)


def codes(values: list[float], step: float, share: Share, grid: Grid, dither: list[float]) -> list[int]:
    """The integers alone, for values that share one step."""
    made, _ = quantise(np.array(values, np.float32), np.full(len(values), step), share, grid, np.array(dither))
    result: list[int] = made.tolist()
    return result


@given(BITS, SAMPLES, st.data())
def test_zero_stays_zero(bits: int, samples: list[int], data: st.DataObject) -> None:
    grid, share = Grid(bits, len(samples)), Share(samples[0], sum(samples))
    dither = data.draw(st.lists(DITHER, min_size=2, max_size=2))
    assert codes([0.0, -0.0], 0.5 / grid.levels, share, grid, dither) == [0, 0]


@pytest.mark.slow
@given(BITS, SAMPLES, st.data())
@settings(max_examples=300)
def test_the_sum_of_a_cohort_fits_its_lane(bits: int, samples: list[int], data: st.DataObject) -> None:
    grid, total = Grid(bits, len(samples)), sum(samples)
    clip = data.draw(st.floats(0.5, 2.0**100, width=32))
    summed = 0
    for count in samples:
        value = data.draw(FLOATS | st.sampled_from([clip, -clip, 2 * clip, -2 * clip]))
        summed += codes([value], clip / grid.levels, Share(count, total), grid, [data.draw(DITHER)])[0]
    assert abs(summed) <= grid.reach == grid.levels + grid.clients - 1


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bits", [2, 16, 24])
@pytest.mark.parametrize("samples", [[1], [1, 1, 1], [1] * 10, [1] * 1000, [1, (1 << 32) - 1, 7]])
def test_the_largest_sum_stays_inside_and_is_nearly_reached(sign: int, bits: int, samples: list[int]) -> None:
    grid, total = Grid(bits, len(samples)), sum(samples)
    up = 1 - 2.0**-53 if sign > 0 else 0.0
    sums = sum(codes([sign * 9.0], 9.0 / grid.levels, Share(n, total), grid, [up])[0] for n in samples)
    assert grid.levels <= sign * sums <= grid.reach
    if samples == [1] * 1000:
        assert sign * sums == 1000 * -(-grid.levels // 1000)


@pytest.mark.slow
@given(BITS, SAMPLES, st.data())
@settings(max_examples=300)
def test_the_sum_stands_for_the_mean_within_a_step_a_client(bits: int, samples: list[int], data: st.DataObject) -> None:
    grid, total = Grid(bits, len(samples)), sum(samples)
    clip = data.draw(st.floats(0.5, 2.0**100, width=32))
    step = clip / grid.levels
    summed, mean = 0, Fraction(0)
    for count in samples:
        value = data.draw(st.floats(-clip, clip, width=32))
        made, clipped = quantise(one(value), real(step), Share(count, total), grid, real(data.draw(DITHER)))
        assert clipped == 0
        summed += int(made[0])
        mean += Fraction(value) * Fraction(count, total)
    error = abs(Fraction(step) * summed - mean)
    assert error < len(samples) * Fraction(step) * (1 + Fraction(1, 1 << 27))
    assert dequantise(np.array([summed]), real(step))[0] == np.float32(summed * step)


@given(st.integers(2, 16), st.integers(1, 6), st.data())
def test_the_rounding_is_unbiased(bits: int, power: int, data: st.DataObject) -> None:
    # For a value of m / M steps, the dithers 0, 1/M, … (M - 1)/M must give m in total (Hermite's identity).
    grid, parts = Grid(bits, 1), 1 << power
    m = data.draw(st.integers(-grid.levels * parts, grid.levels * parts))
    dither = [i / parts for i in range(parts)]
    assert sum(codes([m / parts] * parts, 1.0, Share(1, 1), grid, dither)) == m


def test_the_share_is_applied_before_rounding() -> None:
    grid = Grid(8, 2)
    assert codes([1.0, 0.5, -1.0], 1 / 128, Share(1, 4), grid, [0.0] * 3) == [32, 16, -32]
    assert codes([1.0], 1 / 128, Share(3, 4), grid, [0.0]) == [96]


def test_values_beyond_the_clip_saturate_and_are_counted() -> None:
    grid = Grid(4, 1)
    values = np.array([1.0, 1.0001, -1.0, -2.0, 3e38], np.float32)
    made, clipped = quantise(values, np.full(5, 1 / 8), Share(1, 1), grid, np.zeros(5))
    assert made.tolist() == [8, 8, -8, -8, 8]
    assert made.dtype == np.int64
    assert clipped == 3


def test_float_rounding_cannot_lift_a_code_over_its_cap() -> None:
    # 49 * (1 / 49) is a little less than 1 in float64, 7 * (3 / 7) exactly 3; neither may reach the next integer.
    grid = Grid(24, 49)
    for count, total in ((1, 49), (3, 7), (1, 3), ((1 << 32) - 1, (1 << 32) + 1)):
        cap = -(-grid.levels * count // total)
        almost = float(np.nextafter(1.0, 0.0))
        assert abs(codes([5.0], 5.0 / grid.levels, Share(count, total), grid, [almost])[0]) <= cap
        assert abs(codes([-5.0], 5.0 / grid.levels, Share(count, total), grid, [0.0])[0]) <= cap


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_our_own_training_error(bad: float) -> None:
    with pytest.raises(TrainingError, match="not finite"):
        quantise(np.array([0.0, bad], np.float32), np.ones(2), Share(1, 1), Grid(8, 1), np.zeros(2))


@given(hnp.arrays(np.int64, 5, elements=st.integers(-(1 << 24), 1 << 24)), st.floats(1e-6, 1e6))
def test_the_mean_of_zero_is_zero_and_of_a_negative_sum_the_negative(total: Integers, step: float) -> None:
    values = dequantise(total, np.full(5, step))
    assert values.dtype == np.float32
    assert (-values).tolist() == dequantise(-total, np.full(5, step)).tolist()
    assert (values == 0).tolist() == (total == 0).tolist()


@given(BITS, st.integers(1, 100_000))
def test_the_radix_holds_every_sum(bits: int, clients: int) -> None:
    grid = Grid(bits, clients)
    assert grid.levels == 2 ** (bits - 1)
    assert 2**bits + 2 * clients == 2 * grid.reach + 2 <= grid.radix


@given(BITS, st.integers(1, 100_000))
@settings(max_examples=30)
def test_the_radix_is_the_first_prime_that_does(bits: int, clients: int) -> None:
    grid = Grid(bits, clients)

    def prime(number: int) -> bool:
        return all(number % divisor for divisor in range(2, isqrt(number) + 1))

    assert prime(grid.radix)
    assert not any(prime(number) for number in range(2 * grid.reach + 2, grid.radix))


@pytest.mark.parametrize("bits", [-1, 0, 1, 25, 64])
def test_a_grid_of_too_few_or_too_many_bits_is_refused(bits: int) -> None:
    with pytest.raises(ConfigError, match="between 2 and 24"):
        Grid(bits, 3)


@pytest.mark.parametrize("clients", [0, -1])
def test_a_sum_of_nobody_is_refused(clients: int) -> None:
    with pytest.raises(ConfigError, match="at least one client"):
        Grid(8, clients)


@pytest.mark.parametrize(("samples", "total"), [(0, 5), (-1, 5), (6, 5), (0, 0)])
def test_a_share_is_a_part_of_the_whole(samples: int, total: int) -> None:
    with pytest.raises(ConfigError, match="is not in"):
        Share(samples, total)


def test_the_clip_is_twice_the_largest_magnitude_but_never_less_than_the_floor() -> None:
    vector = np.array([0.25, -1.5, 0.0, 0.0, 0.1], np.float32)
    clip = clips(vector, layout(2, 2, 1))
    assert clip.dtype == np.float32
    assert clip.tolist() == [3.0, 0.5, 0.5]


def test_an_empty_tensor_has_the_clip_of_the_floor() -> None:
    made = Layout((TensorSpec("a", (0,), trainable=True), TensorSpec("b", (1,), trainable=True)))
    assert clips(np.array([4.0], np.float32), made).tolist() == [0.5, 8.0]


def test_each_value_has_the_step_of_its_tensor() -> None:
    grid = Grid(4, 3)
    clip = np.array([0.5, 8.0, 2.0], np.float32)
    support = Support(np.array([0, 2, 3, 5], np.int64), 6)
    step = steps(clip, layout(2, 1, 3), support, grid)
    assert step.dtype == np.float64
    assert step.tolist() == [0.0625, 1.0, 0.25, 0.25]


def test_empty_tensors_shift_no_step() -> None:
    made = Layout(tuple(TensorSpec(name, (size,), trainable=True) for name, size in (("a", 0), ("b", 2), ("c", 0))))
    support = Support(np.array([0, 1], np.int64), 2)
    assert steps(np.array([1, 2, 4], np.float32), made, support, Grid(2, 1)).tolist() == [1.0, 1.0]
