"""The pair quantise / dequantise: real values and the integers whose sums are exact.

Each client first scales its values by its share n_k / total of the cohort's samples and quantises then, so the sum of a
whole cohort stays inside one grid of Q = 2^(b-1) steps on either side of zero, and the mean needs no division.

Laws, for the values v_k of a cohort of at most K clients, the steps s and any dither in [0, 1):

* zero stays exactly zero: ``quantise(0) == 0``;
* the sum fits one lane: ``|sum_k quantise(v_k)| <= Q + K - 1``;
* ``|s * sum_k quantise(v_k) - sum_k v_k * n_k / total| < K * s * (1 + 2^-27)`` where no value was clipped (2^-27 is
  the rounding of float64), and ``dequantise`` gives the float32 next to the first of these two;
* the rounding is unbiased where no value was clipped (stochastic rounding; Konecny et al. 2016, arXiv:1610.05492).
"""

from dataclasses import dataclass
from functools import cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from protocol.errors import ConfigError, TrainingError
from protocol.layout import Layout, Vector
from protocol.support import Support

Integers = NDArray[np.int64]
Reals = NDArray[np.float64]

_HEADROOM = 2.0
_FLOOR = 0.5


@dataclass(frozen=True)
class Grid:
    """The grid of the *sum*: b bits for values of a cohort of at most K clients.

    The radix of a lane, R, is the first prime from 2^b + 2K: the 2Q + 1 points of the grid, and at either end one step
    for the rounding of each client (the last of them at one end is never reached). A prime for the tag's sake
    (`protocol/tag.py`): the difference of two sums is then zero or invertible modulo R^f.
    """

    bits: int
    clients: int

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 24:
            raise ConfigError(f"bits must lie between 2 and 24, not {self.bits}")
        if self.clients < 1:
            raise ConfigError(f"a sum needs at least one client, not {self.clients}")

    @property
    def levels(self) -> int:
        """Q, the number of steps from zero to a tensor's clip."""
        return 1 << (self.bits - 1)

    @property
    def radix(self) -> int:
        """R, how many values one lane of the sum can take."""
        return _prime_from(2 * self.levels + 2 * self.clients)

    @property
    def reach(self) -> int:
        """The largest absolute value of a sum, Q + K - 1."""
        return self.levels + self.clients - 1


@cache
def _prime_from(number: int) -> int:
    """The smallest prime that is not below ``number``, from 3."""
    number |= 1
    while any(number % divisor == 0 for divisor in range(3, isqrt(number) + 1, 2)):
        number += 2
    return number


def clips(vector: Vector, layout: Layout) -> Vector:
    """One clip per tensor, float32[tensors], from the last global model, float32[P].

    Twice the tensor's largest magnitude leaves room to grow; the floor lets a tensor that starts at zero move at all.
    """
    peaks = [np.abs(cut).max(initial=0.0) for cut in np.split(vector, layout.offsets[1:-1])]
    clip: Vector = np.maximum(_HEADROOM * np.array(peaks, np.float32), _FLOOR).astype(np.float32)
    return clip


def steps(clip: Vector, layout: Layout, support: Support, grid: Grid) -> Reals:
    """The step of each value that travels, float64[n], from the tensors' clips."""
    tensor = np.searchsorted(layout.offsets, support.positions, side="right") - 1
    return np.asarray(clip.astype(np.float64)[tensor] / grid.levels)


@dataclass(frozen=True)
class Share:
    """One client's part of the cohort's samples: its own count, and everybody's."""

    samples: int
    total: int

    def __post_init__(self) -> None:
        if not 0 < self.samples <= self.total:
            raise ConfigError(f"a share of {self.samples} of {self.total} samples is not in (0, 1]")


def quantise(values: Vector, step: Reals, share: Share, grid: Grid, dither: Reals) -> tuple[Integers, int]:
    """Scale by the share, round to the grid: float32[n] -> i64[n], and how many values were clipped.

    Args:
        values: The client's values on the support, finite.
        step: The step of each value, float64[n].
        share: The client's part of the samples.
        grid: The grid of the sum.
        dither: Uniform in [0, 1), float64[n].

    Raises:
        TrainingError: A value is not finite.
    """
    if not np.isfinite(values).all():
        raise TrainingError("the trained model holds values that are not finite: lower the learning rate")
    scaled = values.astype(np.float64)
    scaled /= step
    clipped = int(np.count_nonzero(scaled > grid.levels) + np.count_nonzero(scaled < -grid.levels))
    np.clip(scaled, -grid.levels, grid.levels, out=scaled)
    scaled *= share.samples / share.total
    scaled += dither
    np.floor(scaled, out=scaled)
    # The cap is computed in integers: float rounding can never lift the sum out of its lane.
    cap = -(-grid.levels * share.samples // share.total)
    np.clip(scaled, -cap, cap, out=scaled)
    return scaled.astype(np.int64), clipped


def dequantise(total: Integers, step: Reals) -> Vector:
    """The mean that the cohort's sum stands for: i64[n] -> float32[n]; one product per value, alike on any machine."""
    return (total.astype(np.float64) * step).astype(np.float32)
