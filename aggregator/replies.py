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

from protocol.text import cleaned

_log = logging.getLogger("pruneseal.aggregator")
_PULLERS = 2
_PUSH_BATCH = 25
_IDLE_SECONDS = 0.02


def stream_replies(grid: Grid, messages: Sequence[Message], timeout: float) -> Iterator[tuple[int, Message]]:
    """Send the messages and yield each reply once, in the order of arrival, until all are in or time is up.

    With each reply comes the node that was asked, from our own books: what a reply says of its sender is the sender's
    word.

    Args:
        grid: Where the nodes are.
        messages: One per node.
        timeout: Seconds from now.
    """
    end = time.monotonic() + timeout
    waiting: dict[str, int] = {}
    for start in range(0, len(messages), _PUSH_BATCH):
        batch = messages[start : start + _PUSH_BATCH]
        # Flower gives no ids at all for a batch that it refuses, and none for a message to an unknown node.
        ids = zip(grid.push_messages(batch), batch, strict=False)
        waiting.update({i: message.metadata.dst_node_id for i, message in ids if i})
    puller = _Puller(grid, list(waiting))
    try:
        while waiting and (left := end - time.monotonic()) > 0:
            reply = puller.next(left)
            if reply is not None and reply.metadata.reply_to_message_id in waiting:
                yield waiting.pop(reply.metadata.reply_to_message_id), reply
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
                asked = self._outstanding.pop(0) if self._outstanding else None
            replies = self._try(asked) if asked else []
            if asked and not replies:
                with self._lock:
                    self._outstanding.append(asked)
            for reply in replies:
                self._hand_over(reply)
            if not replies:
                self._stopped.wait(_IDLE_SECONDS)

    def _try(self, asked: str) -> list[Message]:
        """Pull one reply.

        Flower forgets all replies of a pull in which one cannot be put together again, so in a larger batch one client
        could cost others their answers.
        """
        try:
            return list(self._grid.pull_messages([asked]))
        except Exception as error:  # whatever the transport raises: the deadline bounds how often it is tried again
            _log.warning("pulling replies failed, trying again: %s", cleaned(str(error)))
            return []

    def _hand_over(self, reply: Message) -> None:
        while not self._stopped.is_set():
            try:
                self._ready.put(reply, timeout=0.5)
            except queue.Full:
                continue
            return
