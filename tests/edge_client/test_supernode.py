"""``edge_client.supernode``: no SuperNode that has failed lives on, waits for ever, or is one answer late."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import Status, SubStatus
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.run import Run, RunNotRunningException, RunStatus
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal as flower
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from edge_client import supernode
from edge_client.supernode import Post

FAILING = """
import threading, time
from edge_client import flower, supernode

def fail():
    threading.Thread(target=time.sleep, args=(600,)).start()
    {end}

flower.flower_supernode = fail
supernode.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["raise OSError('handshake')", "raise __import__('ssl').SSLError(1, 'EOF')", "return"])
def test_it_ends_with_an_exit_code_although_other_threads_live(end: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAILING.format(end=end)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "the SuperNode has failed; start it again" in done.stderr


@pytest.fixture
def flower_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Flower's messages ask for when they are made."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Node:
    """A SuperNode's state and its steps, with a SuperLink and client apps that do as they are told."""

    def __init__(self) -> None:
        self.store = InMemoryObjectStore(verify=False)
        self.state = InMemoryNodeState(self.store)
        self.post = Post(flower._pull_and_store_message, flower._push_messages)
        self.inbox: list[Message] = []
        self.over: set[int] = set()
        self.sent: list[str] = []
        self.errors: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.pushed: dict[str, bytes] = {}
        self.on_confirm: Callable[[], None] = lambda: None
        for run in (1, 2):
            running = RunStatus(Status.RUNNING, "", "")
            self.state.store_run(Run(run, "", "", "", {}, "", "", "", "", running, "", "", 1, 0, 0, 0.0))

    def ask(self, run: int, text: str) -> Message:
        """Let the SuperLink have a message for this node."""
        message = Message(RecordDict({"call": ConfigRecord({"text": text})}), dst_node_id=1, message_type="train")
        vars(message.metadata).update(_run_id=run, _src_node_id=9)
        vars(message.metadata)["_message_id"] = message.object_id
        self.inbox.append(message)
        return message

    def step(self) -> bool:
        """What the loop of Flower's SuperNode does, in a few seconds; whether there was anything to push."""
        there: list[bool] = []
        thread = threading.Thread(target=lambda: there.append(self._step()), daemon=True)
        thread.start()
        thread.join(10)
        assert there, "the node waits for something that does not come"
        return there[0]

    def _step(self) -> bool:
        contents: dict[str, bytes] = {}

        def receive() -> tuple[Message, ObjectTree] | None:
            if not self.inbox:
                return None
            message = self.inbox.pop(0)
            contents.update((name, entry.deflate()) for name, entry in get_all_nested_objects(message).items())
            return message, get_object_tree(message)

        def confirm(run: int, message: str) -> None:
            self.on_confirm()
            self.require_running(run)

        def never(*_: object) -> Run:
            raise AssertionError("the runs are known")

        run = self.post.pull(
            state=self.state,
            object_store=self.store,
            node_config={},
            receive=receive,
            get_run=never,
            get_fab=never,
            pull_object=lambda run, name: contents[name],
            confirm_message_received=confirm,
            trusted_entities=None,
        )
        if run is not None:
            self.post.push(self.state, self.store, send=self.send, push_object=self.push_object)
        return run is not None

    def send(self, message: Message, tree: ObjectTree, seconds: float) -> tuple[set[str], str]:
        self.require_running(message.metadata.run_id)
        self.sent.append(message.metadata.reply_to_message_id)
        if message.has_error():
            self.errors.append(message.error.reason or "")
        return {*self.objects}, "session"

    def push_object(self, run: int, session: str, name: str, content: bytes) -> None:
        self.pushed[name] = content

    def require_running(self, run: int) -> None:
        if run in self.over:
            raise RunNotRunningException

    def answer(self, run: int, lost: int = 0, *, ends: bool = True) -> None:
        """Let a client app take the run's message and hand over its reply, but for some objects, and end."""
        (message,) = self.state.get_messages_legacy(run_ids=[run], is_reply=False, limit=1)
        self.state.record_message_processing_start(message.metadata.message_id)
        reply = Message(RecordDict({"config": ConfigRecord({"to": message.metadata.message_id})}), reply_to=message)
        vars(reply.metadata)["_message_id"] = reply.object_id
        self.store.preregister(message.metadata.run_id, get_object_tree(reply))
        self.objects = {name: entry.deflate() for name, entry in get_all_nested_objects(reply).items()}
        for name in [*self.objects][: len(self.objects) - lost]:
            self.store.put(name, self.objects[name])
        self.state.record_message_processing_end(message.metadata.message_id)
        self.state.store_message(reply)
        if ends:
            self.end_tasks()

    def has_forgotten_all(self) -> bool:
        """Whether neither a message nor a reply is kept, nor any object of the last reply."""
        return not self.state.msg_store and not any(name in self.store for name in self.objects)

    def end_tasks(self) -> None:
        """Let the client apps end without a reply."""
        for task in self.state.get_tasks():
            self.state.finish_task(task.task_id, SubStatus.FAILED, "it could not read its message")


@pytest.fixture
def node(flower_task: None) -> Node:
    return Node()


def test_a_message_of_a_running_run_is_answered(node: Node) -> None:
    asked = node.ask(1, "train")
    node.on_confirm = lambda: node.answer(1)
    assert node.step()
    assert node.sent == [asked.metadata.message_id]
    assert node.pushed == node.objects
    assert node.has_forgotten_all()
    assert not node.step()


@pytest.mark.parametrize("lost", [1, 2])
def test_a_reply_that_a_killed_app_never_finished_is_given_up(
    node: Node, lost: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supernode, "PATIENCE", 0.3)
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    node.ask(1, "train")
    node.on_confirm = lambda: node.answer(1, lost)
    assert node.step()
    assert node.pushed.items() < node.objects.items()
    assert node.has_forgotten_all()
    assert "the client app has ended while it handed over its reply" in caplog.text
    asked = node.ask(1, "train again")
    node.on_confirm = lambda: node.answer(1)
    assert node.step()
    assert node.sent[1:] == [asked.metadata.message_id]


def test_the_task_of_a_message_whose_run_ends_meanwhile_ends_too(node: Node) -> None:
    node.ask(1, "train")
    node.over = {1}
    assert not node.step()
    assert [task.status.status for task in node.state.get_tasks()] == [Status.FINISHED]
    assert node.state.get_messages_legacy() == []
    assert len(node.store) == 0


def test_an_answer_to_a_run_that_is_over_is_not_taken_for_the_next_one(node: Node) -> None:
    node.ask(1, "train")
    node.over = {1}
    node.on_confirm = lambda: node.answer(1)
    assert not node.step()
    asked = node.ask(2, "train")
    node.on_confirm = lambda: threading.Timer(1, node.answer, [2]).start()
    assert node.step()
    assert node.sent == [asked.metadata.message_id]
    assert not node.step()


def test_an_app_that_ends_without_a_reply_is_answered_for(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    lost = node.ask(1, "train")
    node.on_confirm = node.end_tasks
    assert node.step()
    assert node.sent == [lost.metadata.message_id]
    assert node.errors == ["ClientApp stopped responding."]
    assert "the client app has ended without a reply" in caplog.text
    asked = node.ask(1, "train again")
    node.on_confirm = lambda: node.answer(1)  # to this message: the first is gone
    assert node.step()
    assert node.sent == [lost.metadata.message_id, asked.metadata.message_id]


def test_no_message_is_received_before_the_task_of_the_last_one_has_ended(node: Node) -> None:
    first, second = node.ask(1, "train"), node.ask(1, "train again")
    answered: list[float] = []

    def answer() -> None:
        node.answer(1, ends=False)
        answered.append(time.monotonic())
        threading.Timer(1, node.end_tasks).start()

    node.on_confirm = answer
    assert node.step()
    assert time.monotonic() - answered[0] > 0.9
    assert node.inbox == [second]
    node.on_confirm = lambda: node.answer(1)
    assert node.step()
    assert node.sent == [first.metadata.message_id, second.metadata.message_id]


def test_where_flower_has_stored_no_message_nobody_is_answered(node: Node) -> None:
    asked: list[object] = []

    def pull(**_: object) -> int:
        return 1

    def push(state: Any, **_: object) -> None:
        asked.append(state)
        state.get_messages_legacy(run_ids=[1], is_reply=True)

    post = Post(pull, push)
    post.pull(node.state, node.store)
    post.push(node.state, node.store)
    assert len(asked) == 1
    assert node.sent == []


@pytest.mark.slow
def test_the_supernode_runs_with_it() -> None:
    before = flower._push_messages
    code = (
        "from edge_client import flower, supernode\n"
        "own = flower.steps\n"
        "steps = lambda: (own._pull_and_store_message.__qualname__, own._push_messages.__qualname__)\n"
        "flower.flower_supernode = lambda: print(*steps(), flush=True)\nsupernode.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["Post.pull", "Post.push"]
    assert before.__qualname__ == "_push_messages"
