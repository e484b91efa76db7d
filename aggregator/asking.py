"""One message to many nodes: the frames that come back, and what is told of those that do not count."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from aggregator.observer import Observer
from aggregator.replies import stream_replies
from aggregator.tally import Tally
from protocol.errors import MalformedMessage, PeerError
from protocol.messages import from_record, to_record


@dataclass(frozen=True)
class Answer:
    """One client's answer: where it came from, its frame and its scalars."""

    source: int
    frame: bytes
    metrics: Mapping[str, float]


class Asker:
    """Asks the nodes of a grid.

    Args:
        grid: Flower's grid of nodes.
        run: The name of the run.
        deadline: Seconds that a message may take.
        observer: Who is told.
    """

    def __init__(self, grid: Grid, run: bytes, deadline: float, observer: Observer) -> None:
        self._grid, self._run, self._deadline, self._observer = grid, run, deadline, observer

    def ask(
        self, tally: Tally, kind: str, nodes: Sequence[int], name: str, frame: bytes, reply: str
    ) -> Iterator[Answer]:
        """Send one message to many nodes; yield the frames that come back, count bytes, report failures."""
        call = ConfigRecord({"run": self._run, "round": tally.round, "attempt": tally.attempt})
        content = RecordDict({name: to_record({name: frame}), "call": call})
        messages = [Message(content, node, kind, ttl=self._deadline, group_id=str(tally.round)) for node in nodes]
        tally.downlink += len(frame) * len(messages)
        tally.recent.clear()
        for source, message in stream_replies(self._grid, messages, self._deadline):
            if message.has_error():
                reason = message.error.reason or f"Flower error {message.error.code}"
                tally.fail(reason.split(" [ref")[0])
                self._observer.failed(tally.round, source, reason)
                continue
            answer = None
            with Refusals(tally, self._observer, source):
                answer = _read(source, message, reply)
            if answer is not None:
                tally.uplink += len(answer.frame)
                yield answer


class Refusals:
    """Turns a peer's error into a count and a line for the operator; everything else goes through."""

    def __init__(self, tally: Tally, observer: Observer, source: int) -> None:
        self._tally, self._observer, self._source = tally, observer, source

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, PeerError):
            return False
        self._tally.refused[type(error).__name__] += 1
        self._tally.fail(type(error).__name__)
        self._observer.refused(self._tally.round, self._source, error)
        return True


def _read(source: int, message: Message, name: str) -> Answer:
    """The frame and the scalars of a reply.

    Raises:
        MalformedMessage: There is no frame of ours under this name.
    """
    records = message.content.array_records
    frames = from_record(records[name]) if name in records else {}
    if set(frames) != {name}:
        raise MalformedMessage(f"the reply holds no {name}")
    metrics = message.content.metric_records.get("metrics") or MetricRecord()
    numbers = {
        key: float(value) for key, value in metrics.items() if isinstance(value, int | float) and isfinite(value)
    }
    return Answer(source, frames[name], numbers)
