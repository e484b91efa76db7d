"""Replies as they arrive, with a deadline and bounded memory.

Flower's own `send_and_receive` waits for everybody and holds every reply. Its `pull_messages` can block for one node's
slow upload, so a few threads pull, and a queue of one holds them back while a reply is being added.
"""

import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

_log = logging.getLogger("pruneseal.aggregator")
_PULLERS = 2
_PUSH_BATCH = 25
_PULL_BATCH = 8
_IDLE_SECONDS = 0.05


def stream_replies(grid: Grid, messages: Sequence[Message], timeout: float) -> Iterator[Message]:
    """Send the messages and yield each reply once, in the order of arrival, until all are in or time is up.

    Args:
        grid: Where the nodes are.
        messages: One a node.
        timeout: Seconds from now.
    """
    end = time.monotonic() + timeout
    waiting: set[str] = set()
    for start in range(0, len(messages), _PUSH_BATCH):
        waiting.update(i for i in grid.push_messages(messages[start : start + _PUSH_BATCH]) if i)
    puller = _Puller(grid, list(waiting))
    try:
        while waiting and (left := end - time.monotonic()) > 0:
            reply = puller.next(left)
            if reply is not None and reply.metadata.reply_to_message_id in waiting:
                waiting.discard(reply.metadata.reply_to_message_id)
                yield reply
    finally:
        puller.stop()


class _Puller:
    """Threads that pull what is still outstanding."""

    def __init__(self, grid: Grid, outstanding: list[str]) -> None:
        self._grid, self._outstanding = grid, outstanding
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._ready: queue.Queue[Message] = queue.Queue(maxsize=1)
        for _ in range(_PULLERS):
            threading.Thread(target=self._pull, name="pruneseal-pull", daemon=True).start()

    def next(self, timeout: float) -> Message | None:
        """The next reply, or None when there was none for a second or the timeout."""
        try:
            return self._ready.get(timeout=min(timeout, 1.0))
        except queue.Empty:
            return None

    def stop(self) -> None:
        """Let the threads end; one that is blocked in Flower ends with its call."""
        self._stopped.set()

    def _pull(self) -> None:
        while not self._stopped.is_set():
            with self._lock:
                batch, self._outstanding[:] = self._outstanding[:_PULL_BATCH], self._outstanding[_PULL_BATCH:]
            replies = self._try(batch) if batch else []
            answered = {reply.metadata.reply_to_message_id for reply in replies}
            with self._lock:
                self._outstanding.extend(i for i in batch if i not in answered)
            for reply in replies:
                self._hand_over(reply)
            if not replies:
                self._stopped.wait(_IDLE_SECONDS)

    def _try(self, batch: list[str]) -> list[Message]:
        try:
            return list(self._grid.pull_messages(batch))
        except Exception as error:  # whatever the transport raises: the deadline bounds how often it is tried again
            _log.warning("pulling replies failed, trying again: %s", error)
            return []

    def _hand_over(self, reply: Message) -> None:
        while not self._stopped.is_set():
            try:
                self._ready.put(reply, timeout=0.5)
            except queue.Full:
                continue
            return
