"""What several tests of the aggregator share."""

import json
import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aggregator.records import METRICS_FILE
from tests.aggregator.stub_grid import FIRST_FLOWER_NODE, FLOWER_STEP, Scene, make_scene, small_plan

BAD = 5
"""The node that does what it should not."""

BEARER = 2
"""The node that is asked for the sealed terms first."""

MakeScene = Callable[..., Scene]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeScene:
    """Make a federation of so many nodes, in a folder of its own; ``changes`` are fields of its plan."""

    def make(
        nodes: int, folder: str = "run", votes: bool = False, before: Scene | None = None, **changes: Any
    ) -> Scene:
        return make_scene(tmp_path / folder, monkeypatch, small_plan(**changes), nodes, votes, before)

    return make


def lines(scene: Scene) -> list[dict[str, Any]]:
    """What the run has recorded, round by round; nothing where there is no file yet."""
    path = scene.folder / METRICS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def flower(*nodes: int) -> list[int]:
    """Flower's numbers of these nodes."""
    return [FIRST_FLOWER_NODE + FLOWER_STEP * node for node in nodes]


def asked(scene: Scene, kind: str, *, after: bool = False) -> list[tuple[int, int, tuple[int, ...]]]:
    """Round, attempt and nodes of each message of a kind: of the rounds of the plan, or of what comes after them."""
    return [
        (round_, attempt, nodes)
        for name, round_, attempt, nodes in scene.grid.asked
        if name == kind and after == (round_ > scene.plan.rounds)
    ]


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
