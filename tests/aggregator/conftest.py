"""What the tests of the aggregator's processes share."""

import logging
import signal
from collections.abc import Iterator

import pytest


@pytest.fixture
def put_back() -> Iterator[None]:
    """Handlers of logs and signals are afterwards what they were before."""
    logger, numbers = logging.getLogger("pruneseal"), (signal.SIGTERM, signal.SIGINT)
    handlers, level, kept = logger.handlers[:], logger.level, [signal.getsignal(number) for number in numbers]
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
    for number, handler in zip(numbers, kept, strict=True):
        signal.signal(number, handler)
