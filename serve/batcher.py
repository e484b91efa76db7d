"""Requests that wait together run together: dynamic micro-batching with a bounded queue.

Law: every request gets exactly the rows that the model gives for its own rows, in order, however they were merged or
split; a request is answered or refused, never lost. Models must treat rows independently, as networks in inference do;
one that does not is served with batches of one request by ``Batching(size=1)``.

A batch starts when it is full or when its oldest request has waited for ``wait``; while one runs, the next gathers. A
request larger than a batch is cut, so that no request decides how much memory an inference takes. There is no task
while the queue is empty: a batcher that nobody refers to any more has nothing left to do.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from protocol.errors import InferenceError, Overloaded, TooLarge
from serve.tensors import Array

Run = Callable[[Mapping[str, Array]], list[Array]]


@dataclass(frozen=True)
class Batching:
    """How requests are merged.

    Attributes:
        size: Rows of one batch, at most.
        wait: Seconds that the oldest request waits for others; those that arrive while a batch runs are merged anyway.
        queue: Rows that may wait; what would exceed it is refused.
    """

    size: int = 32
    wait: float = 0.0
    queue: int = 1024


class BatchObserver(Protocol):
    """Who is told of each batch."""

    def batch(self, rows: int, seconds: float) -> None:
        """A batch of so many rows has run for so long."""


@dataclass
class _Job:
    """A request on its way: ``taken`` of its rows have gone into a batch."""

    inputs: Mapping[str, Array]
    rows: int
    arrived: float
    done: asyncio.Future[list[Array]]
    taken: int = 0
    parts: list[list[Array]] = field(default_factory=list)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [array.shape[1:] for array in self.inputs.values()]


@dataclass(frozen=True)
class _Slice:
    """Some rows of a job."""

    job: _Job
    start: int
    stop: int


class Batcher:
    """The queue before one model."""

    def __init__(self, run: Run, batching: Batching, executor: Executor, observer: BatchObserver) -> None:
        self._run, self._batching, self._executor, self._observer = run, batching, executor, observer
        self._jobs: deque[_Job] = deque()
        self._arrival = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self.waiting = 0
        """Rows in the queue."""

    async def infer(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs for these rows.

        Args:
            inputs: All the model's inputs, in its order, each with the same number of rows.

        Raises:
            TooLarge: More rows than the queue ever holds.
            Overloaded: More rows than the queue has room for now.
            InferenceError: The model failed.
        """
        rows = len(next(iter(inputs.values())))
        if rows > self._batching.queue:
            raise TooLarge(f"{rows} rows in one request; this server queues {self._batching.queue}, send them in parts")
        if self.waiting + rows > self._batching.queue:
            raise Overloaded("the queue is full; try again later")
        loop = asyncio.get_running_loop()
        job = _Job(inputs, rows, loop.time(), loop.create_future())
        self._jobs.append(job)
        self.waiting += rows
        self._arrival.set()
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        return await job.done

    async def _work(self) -> None:
        """Run batches until nothing waits."""
        loop = asyncio.get_running_loop()
        try:
            while self._jobs:
                await self._gather(self._jobs[0].arrived + self._batching.wait)
                if not (batch := self._take()):
                    continue
                started = loop.time()
                try:
                    outputs = await loop.run_in_executor(self._executor, self._compute, batch)
                except RuntimeError as error:
                    for piece in batch:
                        _fail(piece.job, InferenceError(f"the model failed: {error}"))
                    continue
                self._observer.batch(sum(piece.stop - piece.start for piece in batch), loop.time() - started)
                _deal(batch, outputs)
        finally:
            self._worker = None

    async def _gather(self, deadline: float) -> None:
        """Wait until a batch is full, or until the deadline."""
        loop = asyncio.get_running_loop()
        while self.waiting < self._batching.size and (left := deadline - loop.time()) > 0:
            self._arrival.clear()
            try:
                await asyncio.wait_for(self._arrival.wait(), left)
            except TimeoutError:
                return

    def _take(self) -> list[_Slice]:
        """The next batch: rows from the head of the queue, of one shape."""
        batch: list[_Slice] = []
        room = self._batching.size
        while self._jobs and room:
            job = self._jobs[0]
            if job.done.done():  # its client has gone, or an earlier part failed
                self.waiting -= job.rows - job.taken
                self._jobs.popleft()
                continue
            if batch and job.shapes != batch[0].job.shapes:
                break
            stop = min(job.rows, job.taken + room)
            batch.append(_Slice(job, job.taken, stop))
            room -= stop - job.taken
            self.waiting -= stop - job.taken
            job.taken = stop
            if stop == job.rows:
                self._jobs.popleft()
        return batch

    def _compute(self, batch: Sequence[_Slice]) -> list[Array]:
        """Merge and run, in a thread of the executor."""
        first = batch[0]
        if len(batch) == 1:
            return self._run({name: array[first.start : first.stop] for name, array in first.job.inputs.items()})
        return self._run(
            {
                name: np.concatenate([piece.job.inputs[name][piece.start : piece.stop] for piece in batch])
                for name in first.job.inputs
            }
        )


def _deal(batch: Sequence[_Slice], outputs: Sequence[Array]) -> None:
    """Give each request its rows of the outputs."""
    rows = sum(piece.stop - piece.start for piece in batch)
    whole = all(len(output) == rows for output in outputs)
    at = 0
    for piece in batch:
        job, end = piece.job, at + piece.stop - piece.start
        if not whole:
            _fail(job, InferenceError("the model gave another number of rows than it was given"))
            continue
        job.parts.append([output[at:end] for output in outputs])
        at = end
        if piece.stop == job.rows and not job.done.done():
            parts = job.parts
            job.done.set_result(
                parts[0] if len(parts) == 1 else [np.concatenate(part) for part in zip(*parts, strict=True)]
            )


def _fail(job: _Job, error: InferenceError) -> None:
    if not job.done.done():
        job.done.set_exception(error)
