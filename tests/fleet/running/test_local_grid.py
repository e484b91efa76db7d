"""``fleet.running.local_grid``: Flower's grid over local processes; a dead client costs one reply, none is left."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fleet.flower import Parcel, empty_run, unwrap, wrap
from fleet.running.local_grid import LocalGrid
from protocol.call import Action, Call
from protocol.messages import to_request
from tests.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
APP = "tests.fleet.tiny_app:app"
RUN_CONFIG: dict[str, str | int | float | bool] = {"rounds": 3, "rate": 0.5, "method": "fedavg", "big": True}


@pytest.fixture(scope="module")
def grid() -> Iterator[LocalGrid]:
    with LocalGrid(4, RUN_CONFIG, {"PRUNESEAL_TEST_SETTING": "from the desk"}, client_app=APP, workers=2) as made:
        yield made


def do(what: str, node: int = 100, **more: str) -> Message:
    return Message(RecordDict({"do": ConfigRecord({"what": what, **more})}), node, "query")


def train(kind: str, node: int, round_: int = 1, attempt: int = 1) -> Message:
    return Message(to_request(Action(kind), Call(bytes(16), round_, attempt), {}), node, kind)


def ask(grid: LocalGrid, messages: Sequence[Message]) -> dict[int, Message]:
    """The replies by node; all of them."""
    replies = {m.metadata.src_node_id: m for m in grid.send_and_receive(messages, timeout=PATIENCE)}
    assert len(replies) == len(messages)
    return replies


def where(grid: LocalGrid, *nodes: int) -> list[dict[str, Any]]:
    """What each of the nodes says of its place."""
    replies = ask(grid, [do("where", node) for node in nodes])
    return [dict(replies[node].content.config_records["where"]) for node in nodes]


def worker_of(grid: LocalGrid) -> int:
    """The process that answers."""
    return int(where(grid, 100)[0]["pid"])


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: Sequence[int]) -> None:
    """Wait until none of the processes lives; what is left then is killed."""
    try:
        wait_for(lambda: not any(map(alive, pids)), "the end of the processes", 20)
    finally:
        for pid in filter(alive, pids):
            os.kill(pid, signal.SIGKILL)


# --- parcels -----------------------------------------------------------------------------------------


def content() -> RecordDict:
    array = Array(dtype="bytes", shape=(6,), stype="own", data=b"\0\1\2\3\4\5")
    return RecordDict(
        {
            "frame": ArrayRecord({"frame": array}),
            "numbers": ArrayRecord([np.arange(6, dtype=np.float32).reshape(2, 3)]),
            "metrics": MetricRecord({"loss": 0.25, "counts": [1, 2, 3]}),
            "call": ConfigRecord({"run": bytes(range(16)), "round": 7, "name": "x", "flags": [True, False]}),
        }
    )


def test_a_message_that_was_taken_apart_is_put_together_again(grid: LocalGrid) -> None:
    message = Message(content(), 101, "query", ttl=12.5, group_id="7")
    parcel = wrap(message)
    back = unwrap(parcel)
    assert back.content == message.content
    assert back.metadata.message_id == parcel.message_id == message.metadata.message_id
    assert (back.metadata.dst_node_id, back.metadata.ttl, back.metadata.group_id) == (101, 12.5, "7")
    assert all(isinstance(data, bytes) for data in parcel.objects.values())


def test_a_parcel_can_be_opened_twice(grid: LocalGrid) -> None:
    parcel = wrap(Message(content(), 101, "query"))
    assert unwrap(parcel).content == unwrap(parcel).content


def test_a_parcel_without_a_message_is_refused() -> None:
    record = MetricRecord({"loss": 0.5})
    with pytest.raises(TypeError, match="holds a MetricRecord"):
        unwrap(Parcel(record.object_id, {record.object_id: record.deflate()}))


# --- messages ------------------------------------------------------------------------------------------


def test_what_is_sent_comes_back_as_it_was_and_from_whom_it_was_asked(grid: LocalGrid) -> None:
    messages = [Message(content(), node, "query", group_id="7") for node in grid.get_node_ids()]
    replies = ask(grid, messages)
    assert sorted(replies) == [100, 101, 102, 103]
    for message in messages:
        reply = replies[message.metadata.dst_node_id]
        assert reply.content == content()
        assert reply.metadata.reply_to_message_id == message.metadata.message_id
        assert reply.metadata.group_id == "7"


def test_the_nodes_are_numbered_and_named_by_their_kits(grid: LocalGrid) -> None:
    assert [(node.node_id, node.name) for node in grid.get_nodes()] == [
        (100 + position, f"node-{position}") for position in range(4)
    ]


def test_a_client_knows_its_place_its_run_and_its_settings(grid: LocalGrid) -> None:
    (told,) = where(grid, 102)
    pid = told.pop("pid")
    assert told == RUN_CONFIG | {
        "node": 102,
        "partition-id": 2,
        "num-partitions": 4,
        "setting": "from the desk",
    }
    assert pid != os.getpid()


def test_the_settings_of_the_clients_do_not_reach_this_process(grid: LocalGrid) -> None:
    assert where(grid, 100)[0]["setting"] == "from the desk"
    assert "PRUNESEAL_TEST_SETTING" not in os.environ


def test_no_more_processes_work_than_were_asked_for(grid: LocalGrid) -> None:
    assert 1 <= len({told["pid"] for told in where(grid, 100, 101, 102, 103)}) <= 2


def test_a_reply_is_pulled_once_and_a_stranger_never(grid: LocalGrid) -> None:
    (identity,) = grid.push_messages([do("echo")])
    replies = wait_for(lambda: list(grid.pull_messages([identity, "nobody's"])), "the reply")
    assert [reply.metadata.reply_to_message_id for reply in replies] == [identity]
    assert list(grid.pull_messages([identity])) == []


def test_the_grid_makes_messages_and_keeps_the_run_that_it_is_given(grid: LocalGrid) -> None:
    made = grid.create_message(content(), "query", 101, "7", ttl=3.0)
    assert (made.metadata.dst_node_id, made.metadata.message_type, made.metadata.ttl) == (101, "query", 3.0)
    run = empty_run(5)
    grid.set_run(run)
    assert grid.run is run


# --- clients that fail -----------------------------------------------------------------------------------


def test_a_client_that_raises_is_one_error_reply_and_the_others_answer(grid: LocalGrid) -> None:
    replies = ask(grid, [do("echo", 100), do("raise", 101), do("echo", 102)])
    assert replies[101].has_error()
    assert (replies[101].error.code, replies[101].error.reason) == (
        2,
        "<class 'ValueError'>:<'patient 4711 not found'>",
    )
    assert [replies[node].has_content() for node in (100, 102)] == [True, True]


def test_an_app_that_cannot_be_imported_is_an_error_reply() -> None:
    with LocalGrid(1, {}, {}, client_app="tests.fleet.no_such_app:app", workers=1) as made:
        error = ask(made, [do("echo")])[100].error
    assert error.code == 2
    assert error.reason == "<class 'ModuleNotFoundError'>:<'No module named 'tests.fleet.no_such_app''>"


def test_a_client_whose_process_dies_is_answered_for_and_the_pool_goes_on() -> None:
    with LocalGrid(2, RUN_CONFIG, {}, client_app=APP, workers=1) as made:
        before = worker_of(made)
        for _ in range(2):
            error = ask(made, [do("die")])[100].error
            assert (error.code, error.reason) == (8, "ClientApp stopped responding.")
            assert ask(made, [do("echo", 101)])[101].has_content()
        assert worker_of(made) != before


def test_a_client_that_does_not_answer_in_time_is_not_waited_for() -> None:
    def run() -> None:
        with LocalGrid(2, RUN_CONFIG, {}, client_app=APP, workers=2) as made:
            wait_for(lambda: len({told["pid"] for told in where(made, 100, 101)}) == 2, "the start of both")
            replies = list(made.send_and_receive([do("sleep", 100), do("echo", 101)], timeout=3))
            assert [reply.metadata.src_node_id for reply in replies] == [101]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()


# --- clients that are made to vanish -----------------------------------------------------------------------


def lost(seed: int, drop: float, rounds: int = 5, nodes: int = 12) -> list[tuple[list[int], list[int]]]:
    """The nodes that miss the second message of each round, and those that miss the third."""
    gone = []
    with LocalGrid(nodes, {}, {}, client_app=APP, workers=1, drop=drop, seed=seed) as made:
        for number in range(1, rounds + 1):
            trained = ask(made, [train("train", node, number) for node in made.get_node_ids()])
            assert all(reply.has_content() for reply in trained.values())
            missing = []
            for message in ("train.contribute", "train.release"):
                asked = ask(made, [train(message, node, number) for node in made.get_node_ids()])
                errors = {node: reply.error for node, reply in asked.items() if reply.has_error()}
                assert {error.code for error in errors.values()} <= {5}
                again = ask(made, [train(message, node, number) for node in made.get_node_ids()])
                assert all(reply.has_content() for reply in again.values()), "asked again, they are back"
                missing.append(sorted(errors))
            gone.append((missing[0], missing[1]))
    return gone


def test_clients_miss_one_of_two_messages_with_the_given_probability_and_the_seed_repeats_it() -> None:
    first = lost(seed=1, drop=0.25)
    assert lost(seed=1, drop=0.25) == first
    assert lost(seed=2, drop=0.25) != first
    every = [node for missing in first for nodes in missing for node in nodes]
    assert 0.15 < len(every) / (5 * 12) < 0.35
    assert all(any(missing[message] for missing in first) for message in (0, 1))
    assert all(set(contributions).isdisjoint(consents) for contributions, consents in first)


def test_nobody_vanishes_unless_it_is_asked_for() -> None:
    assert lost(seed=1, drop=0.0, rounds=1) == [([], [])]


def test_who_vanishes_is_drawn_again_when_the_round_is_trained_again() -> None:
    with LocalGrid(12, {}, {}, client_app=APP, workers=1, drop=0.5, seed=3) as made:
        gone = []
        for attempt in (1, 2):
            ask(made, [train("train", node, 1, attempt) for node in made.get_node_ids()])
            asked = ask(made, [train("train.contribute", node, 1, attempt) for node in made.get_node_ids()])
            gone.append({node for node, reply in asked.items() if reply.has_error()})
    assert gone[0] != gone[1]
    assert gone[0] | gone[1] != gone[0]


def test_a_round_that_another_process_goes_on_with_loses_the_same_clients() -> None:
    gone = []
    for attempt in (1, 2):
        with LocalGrid(12, {}, {}, client_app=APP, workers=1, drop=0.5, seed=3) as made:
            ask(made, [train("train", node, 4, attempt) for node in made.get_node_ids()])
            asked = ask(made, [train("train.contribute", node, 4, attempt) for node in made.get_node_ids()])
            gone.append({node for node, reply in asked.items() if reply.has_error()})
    assert gone[0] == gone[1]


# --- processes -----------------------------------------------------------------------------------------------


def test_leaving_the_grid_ends_its_processes() -> None:
    with LocalGrid(2, RUN_CONFIG, {}, client_app=APP, workers=1) as made:
        pid = worker_of(made)
        assert alive(pid)
    wait_until_gone([pid])


def test_leaving_the_grid_by_an_error_does_not_wait_for_a_busy_client(tmp_path: Path) -> None:
    workers = []

    def run() -> None:
        with LocalGrid(2, RUN_CONFIG, {}, client_app=APP, workers=1) as made:
            workers.append(worker_of(made))
            begun = tmp_path / "begun"
            made.push_messages([do("sleep", begun=str(begun)), do("sleep", 101)])
            wait_for(begun.exists, "the client's work")
            raise KeyboardInterrupt

    start, threads = time.monotonic(), threading.enumerate()
    with pytest.raises(KeyboardInterrupt):
        run()
    wait_until_gone(workers)
    assert time.monotonic() - start < 30
    assert set(threading.enumerate()) <= set(threads)


PARENT = """
import signal
import sys
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from protocol.call import Action, Call
from protocol.messages import to_request
from fleet.running.local_grid import LocalGrid
from tests.waiting import wait_for

def do(what, node):
    begun = str(Path(sys.argv[1], str(node)))
    return Message(RecordDict({"do": ConfigRecord({"what": what, "begun": begun})}), node, "query")

if __name__ == "__main__":
    with LocalGrid(2, {}, {}, client_app="tests.fleet.tiny_app:app", workers=2) as grid:
        replies = grid.send_and_receive([do("where", 100), do("where", 101)])
        grid.push_messages([do("sleep", 100), do("sleep", 101)])
        wait_for(lambda: all(Path(sys.argv[1], node).exists() for node in ("100", "101")))
        print(*(process.pid for process in grid._pool._processes.values()), flush=True)
        signal.pause()
"""


STOPPED = """
import time
from flwr.app import ConfigRecord, Message, RecordDict
from protocol.call import Action, Call
from protocol.messages import to_request
from fleet.running.local_grid import LocalGrid

if __name__ == "__main__":
    with LocalGrid(1, {}, {}, client_app="tests.fleet.tiny_app:app", workers=1) as grid:
        grid.push_messages([Message(RecordDict({"do": ConfigRecord({"what": "much"})}), 100, "query")])
        while not grid._pool._result_queue._reader.poll():
            time.sleep(0.001)
        raise KeyboardInterrupt
"""


def test_leaving_the_grid_by_an_error_does_not_wait_for_the_rest_of_a_reply(tmp_path: Path) -> None:
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED)
    ended = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.stderr.splitlines()[-1] == "KeyboardInterrupt"


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_a_parent_that_is_killed(tmp_path: Path, end: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    with subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(map(alive, workers))
        parent.send_signal(end)
        parent.wait(20)
    wait_until_gone(workers)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises `KeyboardInterrupt`, also where the tests run in the background, and would ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_at_the_keyboard_does_not_reach_a_client_that_is_starting() -> None:
    with LocalGrid(1, RUN_CONFIG, {}, client_app=APP, workers=1) as made:
        (identity,) = made.push_messages([do("echo")])
        (pid,) = made._pool._processes

        def interrupted() -> list[Message]:
            os.kill(pid, signal.SIGINT)
            return list(made.pull_messages([identity]))

        replies = wait_for(interrupted, "the reply")
        assert [reply.has_content() for reply in replies] == [True]
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_while_clients_are_started_comes_when_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    elsewhere = threading.Thread(target=ended.wait, daemon=True)
    elsewhere.start()  # a thread that does not block the signal, as those of numerical libraries
    told, tells = socket.socketpair()
    told.settimeout(PATIENCE)
    tells.setblocking(False)
    signal.set_wakeup_fd(tells.fileno())
    with LocalGrid(1, RUN_CONFIG, {}, client_app=APP, workers=1) as made:
        spawn = made._pool._spawn_process  # type: ignore[attr-defined]

        def interrupted() -> None:
            os.kill(os.getpid(), signal.SIGINT)
            assert told.recv(1) == bytes([signal.SIGINT])  # it has come
            spawn()

        monkeypatch.setattr(made._pool, "_spawn_process", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made.push_messages([do("echo")])
        assert len(made._pool._processes) == 1
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert ask(made, [do("echo")])[100].has_content()
    signal.set_wakeup_fd(-1)
    for end in (told, tells):
        end.close()
    ended.set()
    elsewhere.join()


def test_an_interrupt_at_the_keyboard_is_left_to_the_parent(grid: LocalGrid) -> None:
    pid = worker_of(grid)
    os.kill(pid, signal.SIGINT)
    wait_for(lambda: worker_of(grid) == pid, "an answer of the process that was interrupted")
    assert alive(pid)
    assert ask(grid, [do("echo")])[100].has_content()
