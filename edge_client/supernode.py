"""Flower's SuperNode that does not hang: ``python -m edge_client.supernode``, with the flags of Flower's own.

* When its connection breaks in the middle of a TLS handshake, Flower's SuperNode gives up: it logs the error and its
  main function raises it or simply returns, but other threads keep the process alive, connected to nothing, and whoever
  would start it again never learns. Here the process ends with exit code 1.
* When a client app is killed while it hands over its reply, Flower's SuperNode waits for the rest of it for ever, and
  answers nothing else. Here it gives the reply up: the node is lost for that message, not for the run.
* When a client app gives up without a reply, Flower's SuperNode waits for one for ever. Here it answers with an error.
* When a run ends while Flower's SuperNode receives a message of it, the message's task stays: its app waits for the
  rest of the message, or answers a run that nobody asks any more, and the SuperNode takes that answer for the one to
  the next message, whose own answer then lies there until yet another message comes. So a node would be one answer
  behind ever after. Here the task ends with its message, and a message is done when its own answer is sent.
"""

import logging
import os
import time
from collections.abc import Sequence
from typing import Any, Final

from flwr.app import Message

from edge_client.flower import (
    NodeState,
    ObjectStore,
    Pull,
    Push,
    Status,
    SubStatus,
    answer_for_the_dead,
    run_supernode,
)

PATIENCE: Final = 60.0
"""Seconds that a part of a reply, at most some megabytes from the next process, may take."""
_TICK: Final = 0.1

_log = logging.getLogger("pruneseal.supernode")


class _Impatient:
    """An object store that does not let anybody wait for one object longer than `PATIENCE`."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._missed: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get(self, object_id: str) -> bytes | None:
        """What the store has; empty where it is still to come.

        Raises:
            TimeoutError: It does not come.
        """
        if (content := self._store.get(object_id)) == b"":
            now = time.monotonic()
            if now - self._missed.setdefault(object_id, now) > PATIENCE:
                raise TimeoutError("the client app has ended while it handed over its reply")
        return content


class _NoAnswer(Exception):
    """The app of a message has ended, and there is no reply."""


class _Exchange:
    """A node's state, on account of one message: it notes the message and its task, and whether it is answered."""

    def __init__(self, state: NodeState) -> None:
        self._state = state
        self._task: int | None = None
        self.message: Message | None = None
        self.answered = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def create_task(self, **named: Any) -> int | None:
        self._task = self._state.create_task(**named)
        return self._task

    def store_message(self, message: Message) -> str | None:
        self.message = message
        return self._state.store_message(message)

    def get_messages_legacy(self, **named: Any) -> Sequence[Message]:
        """The replies to send.

        Raises:
            _NoAnswer: There will be none.
        """
        pending = self.pending()  # asked first: an app hands over its reply before it ends
        replies = self._state.get_messages_legacy(**named)
        if not replies and not pending:
            raise _NoAnswer
        asked = self.message.metadata.message_id if self.message else ""
        self.answered |= self._task is None or any(asked == reply.metadata.reply_to_message_id for reply in replies)
        return replies

    def pending(self) -> bool:
        """Whether the task has yet to end."""
        tasks = self._state.get_tasks(task_ids=[self._task]) if self._task is not None else []
        return any(task.status.status != Status.FINISHED for task in tasks)

    def forget(self, object_store: ObjectStore) -> None:
        """Let no app work on the message."""
        if self._task is not None and self.message is not None:
            self._state.finish_task(self._task, SubStatus.FAILED, "its message is forgotten")
            self._state.delete_messages(message_ids=[self.message.metadata.message_id])
            object_store.delete(self.message.metadata.message_id)


class Post:
    """The two steps that Flower's SuperNode repeats: pull a message and store it; wait for the reply and push it.

    Args:
        pull: Flower's first step.
        push: Its second.
    """

    def __init__(self, pull: Pull, push: Push) -> None:
        self._pull, self._push = pull, push
        self._exchange: _Exchange

    def pull(self, state: NodeState, object_store: ObjectStore, **named: Any) -> int | None:
        """Pull a message."""
        self._exchange = _Exchange(state)
        run = self._pull(state=self._exchange, object_store=object_store, **named)
        if run is None:
            self._exchange.forget(object_store)
        return run

    def push(self, state: NodeState, object_store: ObjectStore, **named: Any) -> None:
        """Push replies until that to the message which was pulled is among them, and its task has ended."""
        exchange, store = self._exchange, _Impatient(object_store)
        try:
            while not exchange.answered:
                self._push(state=exchange, object_store=store, **named)
        except _NoAnswer:
            _log.error("the client app has ended without a reply; the trainer's log says why")
            exchange.forget(object_store)
            if exchange.message is not None:
                answer_for_the_dead(exchange.message, state, object_store)
                self._push(state=state, object_store=store, **named)
        while exchange.pending():
            time.sleep(_TICK)


def _wrapped(pull: Pull, push: Push) -> tuple[Pull, Push]:
    post = Post(pull, push)
    return post.pull, post.push


def main() -> None:
    """Run SuperNode."""
    reason: Exception | None = None
    try:
        run_supernode(_wrapped)
    except Exception as error:
        reason = error
    _log.error("the SuperNode has failed; start it again", exc_info=reason)
    logging.shutdown()
    os._exit(1)  # not sys.exit, which would wait for the other threads


if __name__ == "__main__":
    main()
