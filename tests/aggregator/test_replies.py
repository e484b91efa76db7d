"""``aggregator.replies``: replies as they arrive, a deadline that holds, memory that is bounded."""

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import cast

import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from aggregator.replies import stream_replies
from fleet.flower import Run, be_task
from tests.waiting import PATIENCE, wait_for

PULLERS, PULL_BATCH, PUSH_BATCH = 2, 8, 25


@pytest.fixture(autouse=True)
def _identity() -> None:
    be_task(1, 1)


class PostBox(Grid):
    """A grid whose nodes answer at once, or when a test says so; pushing and pulling can be made to go wrong."""

    def __init__(self, *answering: int, everybody: bool = False) -> None:
        self.answering = range(1, 1000) if everybody else answering
        self.sent: dict[str, Message] = {}
        self.batches: list[int] = []
        self.refused: set[int] = set()
        self.refuses_batches = False
        self.ready: list[Message] = []
        self.failures = 0
        self.pulled = 0
        self.slow: set[str] = set()
        self.after_pull: Callable[[list[Message]], list[Message]] = list
        self.lock = threading.Lock()
        self.released = threading.Event()

    def reply(self, message_id: str) -> None:
        with self.lock:
            self.ready.append(Message(RecordDict(), reply_to=self.sent[message_id]))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            identity = f"m{message.metadata.dst_node_id}"
            message.metadata.__dict__["_message_id"] = identity
            if message.metadata.dst_node_id in self.refused:
                ids.append("")
            else:
                self.sent[identity] = message
                ids.append(identity)
                if message.metadata.dst_node_id in self.answering:
                    self.reply(identity)
        self.batches.append(len(ids))
        return [] if self.refuses_batches else ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        if wanted & self.slow:
            self.released.wait(5)
        with self.lock:
            if self.failures:
                self.failures -= 1
                raise ConnectionError("the link is down")
            mine = [reply for reply in self.ready if reply.metadata.reply_to_message_id in wanted]
            self.ready = [reply for reply in self.ready if reply not in mine]
            self.pulled += len(mine)
            return self.after_pull(mine)

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError


def to_nodes(count: int) -> list[Message]:
    return [Message(RecordDict(), 1 + i, "train") for i in range(count)]


def nodes(stream: Iterator[tuple[int, Message]]) -> list[int]:
    return [node for node, _ in stream]


def pullers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pruneseal-pull"]


def wait_for_pullers_to_end() -> None:
    wait_for(lambda: not pullers(), "the end of the pullers")


def test_every_reply_comes_once_with_the_node_that_was_asked() -> None:
    grid = PostBox(everybody=True)
    replies = list(stream_replies(grid, to_nodes(30), 20))
    assert sorted(node for node, _ in replies) == list(range(1, 31))
    assert all(reply.metadata.reply_to_message_id == f"m{node}" for node, reply in replies)


def test_the_node_is_the_one_that_was_asked_whatever_the_reply_says_of_its_sender() -> None:
    def forge(replies: list[Message]) -> list[Message]:
        for reply in replies:
            reply.metadata.__dict__["_src_node_id"] = 666
        return replies

    grid = PostBox(1)
    grid.after_pull = forge
    ((node, reply),) = stream_replies(grid, to_nodes(1), 20)
    assert (node, reply.metadata.src_node_id) == (1, 666)


def test_a_reply_is_yielded_while_the_others_are_still_awaited() -> None:
    grid = PostBox(2)
    stream = stream_replies(grid, to_nodes(3), 20)
    assert next(stream)[0] == 2
    grid.reply("m3")
    assert next(stream)[0] == 3
    grid.reply("m1")
    assert nodes(stream) == [1]


def test_the_stream_ends_when_time_is_up_and_keeps_what_has_arrived() -> None:
    grid = PostBox(2)
    start = time.monotonic()
    assert nodes(stream_replies(grid, to_nodes(3), 1.0)) == [2]
    assert 1 <= time.monotonic() - start < 20


def test_without_messages_the_stream_ends_at_once() -> None:
    start = time.monotonic()
    assert nodes(stream_replies(PostBox(), [], 60)) == []
    assert time.monotonic() - start < 20


def test_messages_are_pushed_in_batches() -> None:
    grid = PostBox(everybody=True)
    assert len(nodes(stream_replies(grid, to_nodes(60), 20))) == 60
    assert grid.batches == [PUSH_BATCH, PUSH_BATCH, 10]


def test_a_node_that_the_grid_does_not_know_is_not_waited_for() -> None:
    grid = PostBox(everybody=True)
    grid.refused = {2}
    start = time.monotonic()
    assert nodes(stream_replies(grid, to_nodes(3), 60)) == [1, 3]
    assert time.monotonic() - start < 20


def test_a_batch_that_the_grid_refuses_is_not_waited_for() -> None:
    grid = PostBox()
    grid.refuses_batches = True
    start = time.monotonic()
    assert nodes(stream_replies(grid, to_nodes(2), 60)) == []
    assert time.monotonic() - start < 20


def test_a_failing_transport_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    grid = PostBox(everybody=True)
    grid.failures = 3
    assert sorted(nodes(stream_replies(grid, to_nodes(3), 20))) == [1, 2, 3]
    assert grid.failures == 0
    assert "trying again: the link is down" in caplog.text


def test_replies_that_nobody_waits_for_are_dropped() -> None:
    grid = PostBox(everybody=True)
    stranger = Message(RecordDict(), 9, "train")
    stranger.metadata.__dict__["_message_id"] = "m9"
    grid.after_pull = lambda mine: [Message(RecordDict(), reply_to=stranger), *mine, *mine] if mine else []
    assert sorted(nodes(stream_replies(grid, to_nodes(3), 20))) == [1, 2, 3]


def test_one_slow_upload_does_not_hold_the_others_up() -> None:
    grid = PostBox(everybody=True)
    grid.slow = {"m1"}
    stream = stream_replies(grid, to_nodes(3 * PULL_BATCH), 20)
    first = [next(stream)[0] for _ in range(2 * PULL_BATCH)]
    assert 1 not in first
    grid.released.set()
    assert 1 in nodes(stream)


class NarrowQueue(queue.Queue[Message]):
    """Counts how often there was no room."""

    refusals = 0

    def put(self, item: Message, block: bool = True, timeout: float | None = None) -> None:
        try:
            super().put(item, block, timeout)
        except queue.Full:
            type(self).refusals += 1
            raise


def test_replies_are_held_back_while_the_reader_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = PostBox(everybody=True)
    monkeypatch.setattr(queue, "Queue", NarrowQueue)
    stream = stream_replies(grid, to_nodes(60), PATIENCE)
    next(stream)
    wait_for(lambda: NarrowQueue.refusals > PULLERS, "a puller that has waited for room more than once")
    assert grid.pulled <= 2 + PULLERS * PULL_BATCH
    assert len(nodes(stream)) == 59


def test_the_threads_end_with_the_stream() -> None:
    grid = PostBox(everybody=True)
    list(stream_replies(grid, to_nodes(5), 20))
    wait_for_pullers_to_end()
    assert pullers() == []


def test_the_threads_end_when_the_reader_leaves_with_replies_in_flight() -> None:
    grid = PostBox(everybody=True)
    stream = cast(Generator[tuple[int, Message]], stream_replies(grid, to_nodes(40), 20))
    next(stream)
    assert len(pullers()) == PULLERS
    stream.close()
    wait_for_pullers_to_end()
    assert pullers() == []
