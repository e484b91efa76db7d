"""Flower's SuperNode that does not hang: ``python -m edge_client.supernode``, with the flags of Flower's own.

* When its connection breaks in the middle of a TLS handshake, Flower's SuperNode gives up: it logs the error and its
  main function raises it or simply returns, but other threads keep the process alive, connected to nothing, and whoever
  would start it again never learns. Here the process ends with exit code 1.
* When a client app is killed while it hands over its reply, Flower's SuperNode waits for the rest of it for ever, and
  answers nothing else. Here it gives the reply up: the node is lost for that message, not for
  the run.
* When a client app ends without a reply, Flower's SuperNode waits for one for ever. Here it waits no longer.
* When a run ends while Flower's SuperNode receives a message of it, the message's task stays: its app waits for the
  rest of the message, or answers a run that nobody asks any more, and the SuperNode takes that answer for the one to
  the next message, whose own answer then lies there until yet another message comes. So a node would be one answer
  behind ever after. Here the task ends with its message, and every answer is sent as soon as it is there.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from flwr.app import Message
from flwr.common.constant import Status, SubStatus
from flwr.supercore.object_store import ObjectStore
from flwr.supernode import start_client_internal as flower
from flwr.supernode.cli import flower_supernode
from flwr.supernode.nodestate import NodeState

PATIENCE: Final = 60.0
"""Seconds that a part of a reply, at most some megabytes from the next process, may take."""

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


class _Received:
    """A node's state that notes what a pull has made: the message and its task."""

    def __init__(self, state: NodeState) -> None:
        self._state = state
        self.message = ""
        self.task: int | None = None

    def forget(self, object_store: ObjectStore) -> None:
        """Let no app work on the message."""
        if self.task is not None:
            self._state.finish_task(self.task, SubStatus.FAILED, "its message is forgotten")
            self._state.delete_messages(message_ids=[self.message])
            object_store.delete(self.message)

    def ended(self) -> bool:
        """Whether the task has ended."""
        tasks = self._state.get_tasks(task_ids=[self.task]) if self.task is not None else []
        return any(task.status.status == Status.FINISHED for task in tasks)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def create_task(self, **named: Any) -> int | None:
        self.task = self._state.create_task(**named)
        return self.task

    def store_message(self, message: Message) -> str | None:
        self.message = message.metadata.message_id
        return self._state.store_message(message)


class _NoAnswer(Exception):
    """The app of a task has ended, and there is no reply."""


class _Answered:
    """A node's state that gives the replies which were found before, and does not let anybody wait for one in vain."""

    def __init__(self, state: NodeState, found: Sequence[Message], received: _Received) -> None:
        self._state, self._found, self._received = state, found, received

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def get_messages_legacy(self, **named: Any) -> Sequence[Message]:
        """The replies to send.

        Raises:
            _NoAnswer: There will be none.
        """
        if self._found:
            return self._found
        ended = self._received.ended()  # asked first: an app hands over its reply before it ends
        replies = self._state.get_messages_legacy(**named)
        if ended and not replies:
            raise _NoAnswer
        return replies


class Post:
    """The two steps that Flower's SuperNode repeats: pull a message and store it; wait for the reply and push it.

    Args:
        pull: Flower's `_pull_and_store_message`, which gives the run of the message, or None where there is none.
        push: Flower's `_push_messages`, which waits for a reply, logs what goes wrong and forgets the reply.
    """

    def __init__(self, pull: Callable[..., int | None], push: Callable[..., None]) -> None:
        self._pull, self._push = pull, push
        self._found: Sequence[Message]
        self._received: _Received

    def pull(self, state: NodeState, object_store: ObjectStore, **named: Any) -> int | None:
        """Pull a message, unless a reply lies there: that goes first."""
        self._received = _Received(state)
        self._found = state.get_messages_legacy(is_reply=True)
        if self._found:
            return self._found[0].metadata.run_id
        run = self._pull(state=self._received, object_store=object_store, **named)
        if run is None:
            self._received.forget(object_store)
        return run

    def push(self, state: NodeState, object_store: ObjectStore, **named: Any) -> None:
        """Push the replies that lie there, or else wait for one."""
        try:
            answered = _Answered(state, self._found, self._received)
            self._push(state=answered, object_store=_Impatient(object_store), **named)
        except _NoAnswer:
            _log.error("the client app has ended without a reply; the trainer's log says why")
            self._received.forget(object_store)


def main() -> None:
    """Run SuperNode."""
    sys.argv[0] = "flower-supernode"
    names = vars(flower)
    post = Post(names["_pull_and_store_message"], names["_push_messages"])
    names.update(_pull_and_store_message=post.pull, _push_messages=post.push)
    reason: Exception | None = None
    try:
        flower_supernode()  # as long as it is well, it does not return
    except Exception as error:
        reason = error
    _log.error("the SuperNode has failed; start it again", exc_info=reason)
    logging.shutdown()
    os._exit(1)  # not sys.exit, which would wait for the other threads


if __name__ == "__main__":
    main()
