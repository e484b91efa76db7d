"""CPU time by step, and the steps of an encrypted sum that `benchmarks/aggregate.py` tells apart."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from time import process_time
from typing import Final

AGREE, FIRST, SETUP, PACK, BLIND, ENCRYPT = (
    "agree",
    "first set up",
    "set up",
    "quantise+pack",
    "blind",
    "encrypt+encode",
)
TAG, OWN, DEAL, TAKE, CONSENT = "tag", "own mask", "deal", "take", "consent"
CONTRIBUTE, ADD, CLOSE, DECRYPT = "contribute", "decode+add", "close sum", "decrypt"
LAZY = "decode+add, lazy"
COLUMNS: Final = (
    AGREE, DEAL, FIRST, SETUP, PACK, BLIND, ENCRYPT, TAG, OWN, CONTRIBUTE, TAKE, CONSENT, ADD, LAZY, CLOSE, DECRYPT,
)  # fmt: skip

UPDATE: Final = (SETUP, PACK, BLIND, ENCRYPT)
"""What a client has done for its contribution ever since protocol 1."""

ADDED: Final = 4
"""Contributions that one repetition adds."""


@dataclass
class Stopwatch:
    """CPU seconds of this process, by the name of the step."""

    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @contextmanager
    def lap(self, step: str) -> Iterator[None]:
        """Time what happens inside."""
        start = process_time()
        yield
        self.seconds[step].append(process_time() - start)

    def per_value(self, values: int) -> dict[str, float]:
        """The median of each step, microseconds per value."""
        return {step: median(laps) / values * 1e6 for step, laps in self.seconds.items()}
