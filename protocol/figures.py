"""The pair encode_figures / decode_figures: what a client has measured, as digits whose sums are exact.

Law: ``decode_figures(sum_k encode_figures(f_k, grid), grid) == sum_k f_k``, figure by figure.

What a client knows of its own rows and of its own training leaves it in no other way than in a sum. A figure is a whole
number; what is no whole number is counted in units of `UNIT`. It is cut into digits, one for each value lane, of so
small a base that the digits of a full cohort still add up to less than a lane holds. A figure beyond its limit is told
as the limit: nothing depends on figures but what people read of them.
"""

import math
import struct
from dataclasses import astuple, dataclass
from typing import Final

import numpy as np

from protocol.errors import MalformedMessage
from protocol.grid import Grid, Integers

UNIT: Final = 2.0**-16
"""What a loss is counted in."""
_COUNT_BITS, _LOSS_BITS = 32, 46
_BITS: Final[dict[str, int]] = {
    "loss": _LOSS_BITS,
    "clipped": _COUNT_BITS,
    "correct": _COUNT_BITS,
    "tested": _COUNT_BITS,
    "test_loss": _LOSS_BITS,
    "parameters": _COUNT_BITS,
    "kept": _COUNT_BITS,
}
"""A figure of so many bits is smaller than 2^bits in magnitude."""
FIGURES: Final = tuple(_BITS)
"""Their names, in the order of every encoding."""


@dataclass(frozen=True)
class Figures:
    """The figures of one client, or the sums of those of several.

    Attributes:
        loss: The mean training loss times what the client counts for, in units of `UNIT`.
        clipped: Values that were clipped to the grid.
        correct: Rows for testing that the model the round began with gets right.
        tested: Rows for testing.
        test_loss: The sum of that model's losses on them, in units of `UNIT`.
        parameters: The parameters of that model.
        kept: Those that are not zero.
    """

    loss: int = 0
    clipped: int = 0
    correct: int = 0
    tested: int = 0
    test_loss: int = 0
    parameters: int = 0
    kept: int = 0

    def __add__(self, other: "Figures") -> "Figures":
        """Figure by figure."""
        return Figures(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


NOTHING: Final = Figures()
"""Those of nobody."""
_SUMS: Final = struct.Struct(f"<{len(FIGURES)}q")
FIGURES_BYTES: Final = _SUMS.size


def figures_to_bytes(figures: Figures) -> bytes:
    """Sums of figures as a frame: i64 each."""
    return _SUMS.pack(*astuple(figures))


def figures_from_bytes(data: bytes) -> Figures:
    """Read what :func:`figures_to_bytes` has written.

    Raises:
        MalformedMessage: It is something else.
    """
    if len(data) != _SUMS.size:
        raise MalformedMessage(f"figures are {_SUMS.size} bytes long, not {len(data)}")
    return Figures(*_SUMS.unpack(data))


def in_units(loss: float) -> int:
    """A loss as a whole number of units; what is not finite counts as the largest there is."""
    return round(loss / UNIT) if math.isfinite(loss) else 1 << _LOSS_BITS


def base(grid: Grid) -> int:
    """The base of the digits: the largest of which K digits stay within a lane's reach; 2 or more."""
    return grid.reach // grid.clients + 1


def places(grid: Grid) -> int:
    """How many digits all figures of a client take together."""
    return sum(_places(bits, base(grid)) for bits in _BITS.values())


def encode_figures(figures: Figures, grid: Grid) -> Integers:
    """One client's figures as digits, i64[places], the lowest of each figure first."""
    digits = []
    for name, bits in _BITS.items():
        figure, limit = int(getattr(figures, name)), (1 << bits) - 1
        rest, sign = min(abs(figure), limit), -1 if figure < 0 else 1
        for _ in range(_places(bits, base(grid))):
            rest, digit = divmod(rest, base(grid))
            digits.append(sign * digit)
    return np.array(digits, np.int64)


def decode_figures(digits: Integers, grid: Grid) -> Figures:
    """The figures, or sums of figures, of which these are the digits, or the sums of digits: i64[places]."""
    sums, at = {}, 0
    for name, bits in _BITS.items():
        end = at + _places(bits, base(grid))
        sums[name] = sum(int(digit) * base(grid) ** place for place, digit in enumerate(digits[at:end]))
        at = end
    return Figures(**sums)


def _places(bits: int, radix: int) -> int:
    """The fewest digits that hold every number of so many bits."""
    count = 1
    while radix**count < 1 << bits:
        count += 1
    return count
