"""A message to many nodes: the frames that come back, and what is told of those that do not count."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from aggregator.observer import Observer
from aggregator.replies import stream_replies
from aggregator.tally import Tally
from protocol.call import Action, Call
from protocol.errors import LedgerLost, PeerError, Spoiled
from protocol.messages import from_error, from_reply, to_request


@dataclass(frozen=True)
class Answer:
    """One client's answer: where it came from, and its frames by name."""

    source: int
    frames: Mapping[str, bytes]


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

    def ask(self, tally: Tally, action: Action, nodes: Mapping[int, Mapping[str, bytes]]) -> Iterator[Answer]:
        """Send a message to many nodes; yield what comes back, count bytes, report failures.

        Args:
            tally: The round's.
            action: What they are asked to do.
            nodes: By their number in Flower, the frames that each is sent.
        """
        call = Call(self._run, tally.round, max(1, tally.attempt))  # names are asked for before the first attempt
        messages = [
            Message(to_request(action, call, frames), node, action.value, ttl=self._deadline, group_id=str(tally.round))
            for node, frames in nodes.items()
        ]
        tally.downlink += sum(len(frame) for frames in nodes.values() for frame in frames.values())
        tally.recent.clear()
        tally.refusing.clear()
        for source, message in stream_replies(self._grid, messages, self._deadline):
            if message.has_error():
                sentence, reason = from_error(message.error)
                tally.fail(sentence)
                if message.error.code == LedgerLost.code:
                    tally.sitting_out.add(source)
                if message.error.code == Spoiled.code:
                    tally.refusing.add(source)
                self._observer.failed(tally.round, source, reason)
                continue
            answer = None
            with Refusals(tally, self._observer, source):
                answer = Answer(source, from_reply(action, message.content))
            if answer is not None:
                tally.uplink += sum(map(len, answer.frames.values()))
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
