"""Flower's private rooms, as far as a node enters them.

Flower promises its public packages alone: `flwr.app`, `flwr.clientapp`, `flwr.serverapp`. What a node needs of
`flwr.common`, `flwr.supercore` and `flwr.supernode` is imported here and nowhere else. ``tests/test_flower_rooms.py``
names every part of it, and is the first to fail when another version of Flower has moved one.

Each of a node's three processes is Flower's own, with a part replaced while it runs: Flower has a setting for none of
them. A replaced name is one that Flower's code looks up in its module each time that it is used.

To import this is to import Flower's services and their database: three seconds and 120 MB, which each of the three
processes needs anyhow. Whoever only reads the list of bundles (:mod:`edge_client.bundle`) does without.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from flwr.app import Message
from flwr.common.constant import Status, SubStatus
from flwr.supercore.cli import flower_superexec
from flwr.supercore.constant import TaskType
from flwr.supercore.exit.exit_handler import registered_exit_handlers
from flwr.supercore.object_store import ObjectStore
from flwr.supercore.superexec import run_superexec as superexec
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult
from flwr.supernode import start_client_internal as steps
from flwr.supernode.cli import flower_supernode, flwr_clientapp
from flwr.supernode.nodestate import NodeState
from flwr.supernode.nodestate.in_memory_nodestate import CLIENT_APP_CRASHED_ERROR
from flwr.supernode.runtime import run_clientapp as clientapp

__all__ = [
    "ExecutionSpec",
    "Executor",
    "LaunchResult",
    "NodeState",
    "ObjectStore",
    "Pull",
    "Push",
    "Status",
    "SubStatus",
    "TaskType",
    "answer_for_the_dead",
    "clientapp",
    "forget_exit_handlers",
    "run_clientapp",
    "run_superexec",
    "run_supernode",
    "steps",
    "superexec",
]

Pull = Callable[..., int | None]
"""Flower's step that pulls a message and stores it: the run of the message, or None where there is none."""

Push = Callable[..., None]
"""Flower's step that waits for replies, sends them, logs what goes wrong and forgets them."""


# --- flower-superexec ------------------------------------------------------------------------------


class Executor(Protocol):
    """Flower's interface of what starts the processes of tasks."""

    def get_eligible_capacity(self, *_: object, **__: object) -> tuple[set[TaskType], set[str]]:
        """Which tasks may be asked for."""

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Start the process of a task."""

    def reconcile(self) -> None:
        """Look after the processes that have ended."""

    def close(self) -> None:
        """The SuperExec ends."""


def run_superexec(executor: Executor) -> None:
    """Run `flower-superexec` with an executor of ours.

    Replaced is ``get_executor``, as `run_superexec` calls it once: Flower's makes an executor that starts a new Python
    or a Kubernetes job for each task, and knows no third.
    """
    vars(superexec)["get_executor"] = lambda *_, **__: executor
    sys.argv[0] = "flower-superexec"
    flower_superexec()


def forget_exit_handlers() -> None:
    """Forget, in a fork, what Flower has registered for the end of the process that was forked."""
    registered_exit_handlers.clear()


# --- flwr-clientapp ----------------------------------------------------------------------------------


def run_clientapp(check: Callable[[bytes], None]) -> None:
    """Run `flwr-clientapp`, which lets a bundle be checked before it is unpacked.

    Replaced is ``install_from_fab``, as `run_clientapp` calls it: Flower's unpacks whatever the SuperLink sends.

    Args:
        check: Given the bundle; Flower sends the text of what it raises to the server.
    """
    install = vars(clientapp)["install_from_fab"]

    def checked(bundle: bytes, *rest: Any, **options: Any) -> Path:
        check(bundle)
        return Path(install(bundle, *rest, **options))

    vars(clientapp)["install_from_fab"] = checked
    sys.argv[0] = "flwr-clientapp"
    flwr_clientapp()


# --- flower-supernode --------------------------------------------------------------------------------


def run_supernode(wrapped: Callable[[Pull, Push], tuple[Pull, Push]]) -> None:
    """Run `flower-supernode` with its two steps wrapped; as long as it is well, it does not return.

    Replaced are ``_pull_and_store_message`` and ``_push_messages``, as the loop of `start_client_internal` calls them
    in turn, by keywords: :mod:`edge_client.supernode` says what is wrong with them alone.

    Args:
        wrapped: Given Flower's steps, makes those that take their places.
    """
    names = vars(steps)
    pull, push = wrapped(names["_pull_and_store_message"], names["_push_messages"])
    names.update(_pull_and_store_message=pull, _push_messages=push)
    sys.argv[0] = "flower-supernode"
    flower_supernode()


def answer_for_the_dead(message: Message, state: NodeState, store: ObjectStore) -> None:
    """Store the error that Flower itself answers with, for some deaths of a client app, as the reply to a message."""
    steps._insert_message(Message(CLIENT_APP_CRASHED_ERROR, reply_to=message), state, store)
