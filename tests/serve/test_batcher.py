"""``serve.batcher``: each request gets its own rows, and none is lost."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol.errors import InferenceError, Overloaded, TooLarge
from serve.batcher import Batcher, Batching
from tests.waiting import PATIENCE

Array = NDArray[Any]


class Seen:
    """The rows of every batch."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def batch(self, rows: int, seconds: float) -> None:
        assert seconds >= 0
        self.rows.append(rows)


@pytest.fixture(scope="module")
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


async def until(true: Callable[[], bool]) -> None:
    """Let the others of the loop go on until something holds."""
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.001)


def double(inputs: Mapping[str, Array]) -> list[Array]:
    return [inputs["x"] * 2, inputs["x"].sum(axis=1)]


def rows(count: int, start: int = 0) -> dict[str, Array]:
    return {"x": np.arange(start, start + count * 2, dtype=np.float32).reshape(count, 2)}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 7))
def test_each_request_gets_its_own_rows_however_they_are_merged(sizes: list[int], size: int) -> None:
    async def scenario(pool: ThreadPoolExecutor, seen: Seen) -> list[list[Array]]:
        batcher = Batcher(double, Batching(size, 0.001, 1000), pool, seen)
        answers = await asyncio.gather(*(batcher.infer(rows(n, 100 * k)) for k, n in enumerate(sizes)))
        assert batcher.waiting == 0
        return answers

    seen = Seen()
    with ThreadPoolExecutor(1) as pool:
        answers = asyncio.run(scenario(pool, seen))
    for k, (n, answer) in enumerate(zip(sizes, answers, strict=True)):
        for got, wanted in zip(answer, double(rows(n, 100 * k)), strict=True):
            assert np.array_equal(got, wanted)
    assert sum(seen.rows) == sum(sizes)
    assert max(seen.rows) <= size


def test_requests_that_wait_together_run_together(executor: ThreadPoolExecutor) -> None:
    seen = Seen()

    async def scenario() -> None:
        batcher = Batcher(double, Batching(16, 5.0, 100), executor, seen)
        await asyncio.gather(*(batcher.infer(rows(1)) for _ in range(16)))

    asyncio.run(scenario())
    assert seen.rows == [16]


def test_a_lonely_request_waits_no_longer_than_it_must(executor: ThreadPoolExecutor) -> None:
    async def scenario() -> float:
        batcher = Batcher(double, Batching(16, 0.05, 100), executor, Seen())
        started = asyncio.get_running_loop().time()
        await batcher.infer(rows(1))
        return asyncio.get_running_loop().time() - started

    assert asyncio.run(scenario()) >= 0.05


def test_rows_of_different_shapes_never_run_together(executor: ThreadPoolExecutor) -> None:
    seen = Seen()

    async def scenario() -> list[list[Array]]:
        batcher = Batcher(double, Batching(16, 0.01, 100), executor, seen)
        return await asyncio.gather(*(batcher.infer({"x": np.ones((1, 2 + k % 2), np.float32)}) for k in range(4)))

    answers = asyncio.run(scenario())
    assert [answer[1].tolist() for answer in answers] == [[2.0], [3.0], [2.0], [3.0]]
    assert seen.rows == [1, 1, 1, 1]


def test_a_full_queue_refuses_and_then_takes_again(executor: ThreadPoolExecutor) -> None:
    begun, free = threading.Event(), threading.Event()

    def slow(inputs: Mapping[str, Array]) -> list[Array]:
        begun.set()
        assert free.wait(PATIENCE)
        return double(inputs)

    async def scenario() -> None:
        batcher = Batcher(slow, Batching(2, 0.0, 4), executor, Seen())
        running = asyncio.create_task(batcher.infer(rows(2)))
        await until(begun.is_set)
        waiting = asyncio.create_task(batcher.infer(rows(4)))
        await until(lambda: batcher.waiting == 4)
        with pytest.raises(Overloaded):
            await batcher.infer(rows(1))
        free.set()
        assert len((await running)[0]) == 2
        assert len((await waiting)[0]) == 4
        assert len((await batcher.infer(rows(1)))[0]) == 1

    asyncio.run(scenario())


def test_more_rows_than_the_queue_ever_holds_are_told_so(executor: ThreadPoolExecutor) -> None:
    async def scenario() -> None:
        with pytest.raises(TooLarge, match="queues 4"):
            await Batcher(double, Batching(2, 0.0, 4), executor, Seen()).infer(rows(5))

    asyncio.run(scenario())


def test_a_failing_model_fails_its_batch_and_nothing_else(executor: ThreadPoolExecutor) -> None:
    def fragile(inputs: Mapping[str, Array]) -> list[Array]:
        if (inputs["x"] < 0).any():
            raise RuntimeError("negative")
        return double(inputs)

    async def scenario() -> None:
        batcher = Batcher(fragile, Batching(4, 0.0, 100), executor, Seen())
        with pytest.raises(InferenceError, match="the model failed: negative"):
            await batcher.infer(rows(10, -2))
        assert batcher.waiting == 0
        assert len((await batcher.infer(rows(3)))[0]) == 3

    asyncio.run(scenario())


def test_a_model_that_mixes_up_rows_is_found_out(executor: ThreadPoolExecutor) -> None:
    async def scenario() -> None:
        batcher = Batcher(lambda inputs: [inputs["x"][:1]], Batching(4, 0.0, 100), executor, Seen())
        with pytest.raises(InferenceError, match="another number of rows"):
            await batcher.infer(rows(2))

    asyncio.run(scenario())


def test_a_client_that_has_gone_costs_the_others_nothing(executor: ThreadPoolExecutor) -> None:
    begun, free = threading.Event(), threading.Event()
    seen = Seen()

    def slow(inputs: Mapping[str, Array]) -> list[Array]:
        begun.set()
        assert free.wait(PATIENCE)
        return double(inputs)

    async def scenario() -> None:
        batcher = Batcher(slow, Batching(4, 0.0, 100), executor, seen)
        running = asyncio.create_task(batcher.infer(rows(4)))
        await until(begun.is_set)
        gone = asyncio.create_task(batcher.infer(rows(3)))
        stays = asyncio.create_task(batcher.infer(rows(1, 50)))
        await until(lambda: batcher.waiting == 4)
        gone.cancel()
        await until(gone.cancelled)
        free.set()
        assert np.array_equal((await stays)[0], double(rows(1, 50))[0])
        await running
        assert batcher.waiting == 0

    asyncio.run(scenario())
    assert seen.rows == [4, 1]
