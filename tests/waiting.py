"""Waiting for what must come true: never for a time, and with more patience than a busy machine needs."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

PATIENCE: Final = 120.0
"""Seconds after which what has not happened will not."""

T = TypeVar("T")


def wait_for(
    reached: Callable[[], T], what: str | Callable[[], str] = "it", seconds: float = PATIENCE, pause: float = 0.02
) -> T:
    """Wait until something holds, and return it.

    Args:
        reached: Called again and again until it returns what is true.
        what: What is waited for, or a function that also tells how things stand when it has not come.
        seconds: How long to wait at the most.
        pause: Seconds between two looks.

    Raises:
        AssertionError: It has not come true.
    """
    end = time.monotonic() + seconds
    while not (found := reached()):
        assert time.monotonic() < end, f"{what if isinstance(what, str) else what()} takes more than {seconds:g} s"
        time.sleep(pause)
    return found
