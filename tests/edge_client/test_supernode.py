"""``edge_client.supernode``: a SuperNode that has failed does not live on, and none waits for ever for a reply."""

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal as flower

from edge_client import supernode
from edge_client.supernode import patiently

FAILING = """
import threading, time
from edge_client import supernode

def fail():
    threading.Thread(target=time.sleep, args=(600,)).start()
    {end}

supernode.flower_supernode = fail
supernode.main()
"""


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


class State:
    """A SuperNode's state with one reply to send."""

    def __init__(self, reply: Message) -> None:
        self.reply, self.deleted = reply, set[str]()

    def get_messages_legacy(self, *, is_reply: bool) -> list[Message]:
        assert is_reply
        return [self.reply]

    def get_message_processing_duration(self, message_id: str) -> float:
        return 1.0

    def delete_messages(self, message_ids: Sequence[str]) -> None:
        self.deleted |= set(message_ids)


@pytest.fixture
def flower_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Flower's messages ask for when they are made."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def pushed(lost: int) -> tuple[State, dict[str, bytes], dict[str, bytes]]:
    """Let Flower send a reply of which some objects never came: its state, what was there, and what was sent."""
    request = Message(RecordDict(), dst_node_id=1, message_type="train")
    vars(request.metadata)["_message_id"] = "request"
    reply = Message(RecordDict({"config": ConfigRecord({"blob": b"contribution"})}), reply_to=request)
    vars(reply.metadata)["_message_id"] = reply.object_id
    objects = {name: entry.deflate() for name, entry in get_all_nested_objects(reply).items()}
    store, there = InMemoryObjectStore(verify=False), dict([*objects.items()][: len(objects) - lost])
    store.preregister(1, get_object_tree(reply))
    for name, content in there.items():
        store.put(name, content)
    state, sent = State(reply), dict[str, bytes]()
    patiently(flower._push_messages)(
        state=state,
        object_store=store,
        send=lambda message, tree, seconds: ({*objects}, "session"),
        push_object=lambda run, session, name, content: sent.update({name: content}),
    )
    assert store.get(reply.object_id) is None  # forgotten
    return state, there, sent


@pytest.mark.usefixtures("flower_task")
@pytest.mark.parametrize("lost", [1, 2])
def test_a_reply_that_a_killed_app_never_finished_is_given_up(
    lost: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supernode, "PATIENCE", 0.3)
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    state, there, sent = pushed(lost)
    assert there
    assert sent.items() < there.items() or sent == there
    assert state.deleted == {state.reply.metadata.message_id, "request"}
    assert "the client app has ended while it handed over its reply" in caplog.text


@pytest.mark.usefixtures("flower_task")
def test_a_whole_reply_is_sent_as_it_is() -> None:
    state, there, sent = pushed(0)
    assert sent == there
    assert state.deleted == {state.reply.metadata.message_id, "request"}


def test_the_supernode_runs_with_it() -> None:
    before = flower._push_messages
    code = (
        "from flwr.supernode import start_client_internal as flower\nfrom edge_client import supernode\n"
        "supernode.flower_supernode = lambda: print(flower._push_messages.__qualname__)\nsupernode.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["patiently.<locals>.push"]
    assert before.__qualname__ == "_push_messages"
