"""The pair pack / unpack: several small integers in one plaintext coefficient.

Law: ``unpack(sum_k pack(x_k) mod t, n) == sum_k x_k`` whenever every sum lies in [low, low + radix).

A slot holds ``per_slot`` lanes in mixed radix. The integers of one client may be negative: they are packed modulo t,
and only the sum is shifted into [0, radix) before it is cut into digits, so no client pays for a sign.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.errors import HeadroomError
from protocol.grid import Grid, Integers

Slots = NDArray[np.uint64]


@dataclass(frozen=True)
class Lanes:
    """How integers whose *sum* lies in [low, low + radix) share slots modulo t.

    Raises:
        HeadroomError: The lanes do not fit the modulus, the modulus no signed word, or a lane cannot hold zero.
    """

    low: int
    radix: int
    per_slot: int
    modulus: int

    def __post_init__(self) -> None:
        if self.per_slot < 1 or self.radix < 2 or self.radix**self.per_slot > self.modulus:
            raise HeadroomError(f"{self.per_slot} lanes of radix {self.radix} do not fit the modulus {self.modulus}")
        if self.modulus >= 1 << 63 or not self.low <= 0 < self.low + self.radix:
            raise HeadroomError(f"lanes from {self.low} modulo {self.modulus} must hold zero and fit a word of 63 bits")

    def slots(self, count: int) -> int:
        """How many slots ``count`` integers take."""
        return -(-count // self.per_slot)


def value_lanes(grid: Grid, per_slot: int) -> Lanes:
    """Lanes for quantised values; they define the modulus t = R^per_slot."""
    return Lanes(-grid.reach, grid.radix, per_slot, grid.radix**per_slot)


def vote_lanes(clients: int, modulus: int) -> Lanes:
    """Lanes for one vote, 0 or 1, per client: a radix of K + 1, as many as the modulus takes."""
    radix, per_slot = clients + 1, 1
    while radix ** (per_slot + 1) <= modulus:
        per_slot += 1
    return Lanes(0, radix, per_slot, modulus)


def pack(integers: Integers, lanes: Lanes) -> Slots:
    """i64[n] -> u64[slots] modulo t; lane j of slot i holds integer i * per_slot + j.

    Raises:
        ValueError: An integer alone is out of the range of the sum.
    """
    if integers.size and not (lanes.low <= integers.min() and integers.max() < lanes.low + lanes.radix):
        raise ValueError("an integer is out of its lane's range")
    padded = np.zeros(lanes.slots(integers.size) * lanes.per_slot, np.int64)
    padded[: integers.size] = integers
    rows = padded.reshape(-1, lanes.per_slot)
    slots = rows[:, -1].copy()
    for lane in reversed(range(lanes.per_slot - 1)):
        slots = slots * lanes.radix + rows[:, lane]
    return np.where(slots < 0, slots + lanes.modulus, slots).astype(np.uint64)


def unpack(slots: Slots, count: int, lanes: Lanes) -> Integers:
    """u64[slots] of a sum -> i64[count].

    Raises:
        ValueError: The slots are not those of ``count`` integers.
    """
    if slots.shape != (lanes.slots(count),):
        raise ValueError(f"{count} integers take {lanes.slots(count)} slots, not {slots.shape}")
    bias = -lanes.low * sum(lanes.radix**lane for lane in range(lanes.per_slot))
    rest = (slots + np.uint64(bias)) % np.uint64(lanes.modulus)
    rows = np.empty((slots.size, lanes.per_slot), np.int64)
    for lane in range(lanes.per_slot - 1):
        rest, digit = np.divmod(rest, np.uint64(lanes.radix))
        rows[:, lane] = digit
    rows[:, -1] = rest
    return rows.ravel()[:count] + lanes.low
