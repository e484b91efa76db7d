"""Flower on one machine, without a network: the public `Grid` interface over a pool of worker processes.

The same `ServerApp` and `ClientApp` as in a deployment run here. Every message is taken apart into the objects that
Flower would send and put together again on the other side, so nothing gets by that the network could not carry.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from multiprocessing.connection import wait
from types import TracebackType
from typing import Final, Self

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid

from fleet.flower import ErrorCode, NodeInfo, Parcel, Run, be_task, empty_run, unwrap, wrap
from protocol.call import Action
from protocol.messages import call_of

_RUN_ID: Final = 1
_FIRST_NODE: Final = 100
_POLL_SECONDS = 0.02


class LocalGrid(Grid):
    """A grid of ``nodes`` clients on this machine; a context manager around its processes.

    Args:
        nodes: How many clients.
        run_config: The run config that they see.
        environment: Added to the environment of the client processes.
        client_app: ``package.module:attribute`` of the `ClientApp`.
        workers: Processes; by default one per processor.
        drop: The probability that a client that has attended misses one of the two messages that follow.
        seed: Of those losses.
    """

    def __init__(
        self,
        nodes: int,
        run_config: Mapping[str, str | int | float | bool],
        environment: Mapping[str, str],
        client_app: str = "edge_client.app:app",
        workers: int | None = None,
        drop: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._nodes, self._run_config = nodes, dict(run_config)
        self._worker = (client_app, dict(environment))
        self._workers = min(nodes, workers or os.cpu_count() or 1)
        self._drop, self._seed = drop, seed
        self._asked: Counter[tuple[int, int]] = Counter()
        self._lost: dict[int, Action] = {}
        self._lock = threading.Lock()
        self._jobs: dict[str, tuple[Message, Future[Parcel]]] = {}
        self._pool = self._start()
        self._run = empty_run(_RUN_ID)
        be_task(_RUN_ID, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:  # nobody waits for what the clients are busy with
            _terminate(self._pool)
        self._pool.shutdown(cancel_futures=True)  # waits: at exit, Python may write to a pipe that a pool just closes

    # --- the Grid interface --------------------------------------------------------------------

    def set_run(self, run: Run) -> None:
        """Flower's runtime would name its run here."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes; on one machine they are always there."""
        return range(_FIRST_NODE, _FIRST_NODE + self._nodes)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """All nodes, by the names of their kits."""
        return [NodeInfo(node_id=i, name=f"node-{i - _FIRST_NODE}") for i in self.get_node_ids()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand each message to a worker process."""
        ids = []
        for message in messages:
            parcel = wrap(message)
            node = message.metadata.dst_node_id
            self._maybe_lose(node, message)
            with self._lock:
                job = self._failed() if self._is_lost(node, message) else self._submit(node, parcel)
                self._jobs[parcel.message_id] = (message, job)
            ids.append(parcel.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are ready."""
        replies = []
        for message_id in message_ids:
            with self._lock:
                if message_id not in self._jobs or not self._jobs[message_id][1].done():
                    continue
                message, job = self._jobs.pop(message_id)
            replies.append(self._reply(message, job))
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Wait for all replies, or for the time-out."""
        waiting = set(self.push_messages(messages))
        replies: list[Message] = []
        clock = threading.Event()
        left = float("inf") if timeout is None else timeout
        while waiting and left > 0:
            ready = list(self.pull_messages(waiting))
            replies += ready
            waiting -= {reply.metadata.reply_to_message_id for reply in ready}
            clock.wait(_POLL_SECONDS)
            left -= _POLL_SECONDS
        return replies

    # --- clients ---------------------------------------------------------------------------------

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self._workers, multiprocessing.get_context("spawn"), initializer=_prepare, initargs=self._worker
        )

    def _submit(self, node: int, parcel: Parcel) -> "Future[Parcel]":
        position = node - _FIRST_NODE
        node_config = {"partition-id": position, "num-partitions": self._nodes}
        with _interrupt_later():
            try:
                return self._pool.submit(_answer, parcel, node, node_config, self._run_config)
            except BrokenProcessPool:
                self._pool = self._start()
                return self._pool.submit(_answer, parcel, node, node_config, self._run_config)

    def _reply(self, message: Message, job: "Future[Parcel]") -> Message:
        try:
            return unwrap(job.result())
        except _LostError as error:
            return _refusal(message, ErrorCode.NODE_UNAVAILABLE, str(error))
        except BrokenProcessPool:
            return _refusal(message, ErrorCode.CLIENT_APP_CRASHED, "ClientApp stopped responding.")
        except Exception as error:  # whatever the app raises: its node fails, and no other
            return _refusal(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{type(error)}:<'{error}'>")

    def _maybe_lose(self, node: int, message: Message) -> None:
        """Decide, when a client is asked to train, whether it misses a message afterwards, and which.

        By how often it was asked in this round since this process began, not by the number of the attempt: so a run
        that was killed and resumed loses the same clients as one that was not.
        """
        if message.metadata.message_type != Action.TRAIN:
            return
        call = call_of(message.content)
        self._asked[call.round, node] += 1
        lost, late = np.random.default_rng([self._seed, call.round, self._asked[call.round, node], node]).random(2)
        self._lost.pop(node, None)
        if lost < self._drop:
            self._lost[node] = Action.CONTRIBUTE if late < 1 / 2 else Action.RELEASE

    def _is_lost(self, node: int, message: Message) -> bool:
        if self._lost.get(node) != message.metadata.message_type:
            return False
        del self._lost[node]  # asked again, it is back
        return True

    @staticmethod
    def _failed() -> "Future[Parcel]":
        job: Future[Parcel] = Future()
        job.set_exception(_LostError("Node Unavailable (--drop)"))
        return job


def _terminate(pool: ProcessPoolExecutor) -> None:
    """End the processes of a pool in the middle of their work: Python's own has no way to (before 3.14)."""
    for process in list((pool._processes or {}).values()):
        process.terminate()
    # The pool may be reading a reply; it sees the pipe end once no process, this one included, can write to it.
    pool._result_queue._writer.close()  # type: ignore[attr-defined]


@contextmanager
def _interrupt_later() -> Iterator[None]:
    """Put Ctrl-C off: a process that is started here begins with it blocked, and nothing is left half started."""
    noted: list[int] = []
    raising = threading.current_thread() is threading.main_thread()  # in others Python raises no KeyboardInterrupt
    handler = signal.getsignal(signal.SIGINT)
    if raising:
        signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if raising:
            signal.signal(signal.SIGINT, handler)
        for number in noted[:1]:
            signal.raise_signal(number)


class _LostError(Exception):
    """A client that was made to vanish."""


def _refusal(message: Message, code: int, reason: str) -> Message:
    """An error reply that this grid makes itself, as it would arrive."""
    return unwrap(wrap(Message(Error(code, reason), reply_to=message)))


# --- in the worker processes -----------------------------------------------------------------------

_app: str = ""


def _prepare(client_app: str, environment: Mapping[str, str]) -> None:
    """Set up a worker: it leaves Ctrl-C to its parent, and does not outlive it."""
    global _app  # noqa: PLW0603  # one app per process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()
    os.environ.update(environment)
    logging.basicConfig(level=logging.WARNING)
    _app = client_app


def _follow(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _answer(
    parcel: Parcel, node: int, node_config: dict[str, int], run_config: dict[str, str | int | float | bool]
) -> Parcel:
    """Let the client app answer one message."""
    be_task(_RUN_ID, node)
    module, attribute = _app.split(":")
    client_app = getattr(import_module(module), attribute)
    context = Context(_RUN_ID, node, dict(node_config), RecordDict(), dict(run_config))
    return wrap(client_app(message=unwrap(parcel), context=context))
