"""Quantities as an operator reads them: bytes in SI units, seconds as a clock.

Both functions are total over the non-negative numbers and refuse the rest: a negative size or
duration is a mistake of the caller, not something to show.
"""

from __future__ import annotations

from typing import Final

_PREFIXES: Final = ("kB", "MB", "GB", "TB", "PB", "EB")


def human_bytes(n: int) -> str:
    """A number of bytes in SI units (1 kB = 1000 B), one decimal above 999 B.

    Args:
        n: The number of bytes, at least 0.

    Returns:
        For instance ``999 B``, ``512.3 kB``, ``1.0 MB``; never ``1000.0`` of anything but the
        largest unit.

    Raises:
        ValueError: ``n`` is negative.
    """
    if n < 0:
        raise ValueError(f"a number of bytes cannot be negative: {n}")
    if n < 1000:
        return f"{n} B"
    power = 1
    while round(n / 1000**power, 1) >= 1000 and power < len(_PREFIXES):
        power += 1
    return f"{n / 1000**power:.1f} {_PREFIXES[power - 1]}"


def clock(seconds: float) -> str:
    """A duration as ``mm:ss``, or ``h:mm:ss`` from one hour on, to the nearest second.

    Args:
        seconds: The duration in seconds, at least 0 and finite.

    Raises:
        ValueError: ``seconds`` is negative.
    """
    if seconds < 0:
        raise ValueError(f"a duration cannot be negative: {seconds}")
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
