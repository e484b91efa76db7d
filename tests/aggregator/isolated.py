"""An aggregator on its own: a process that imports the aggregator, runs a whole run and then waits to be looked into.

``python -m tests.aggregator.isolated <socket> <plan> <roster> <state> <names>``. It asks its clients, who live in the
parent process, through the socket, one at a time; at the end it says what it has imported, and waits.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from aggregator.app import log_and_status, server_app
from aggregator.settings import AggregatorSettings
from protocol.call import Action
from protocol.messages import from_request, to_reply


class PipeGrid(Grid):
    """A grid whose nodes are at the other end of a pipe."""

    def __init__(self, parent: "Connection[object, object]", names: Sequence[str]) -> None:
        self._parent, self._names = parent, names
        self._replies: dict[str, Message] = {}
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return range(1, 1 + len(self._names))

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=i, name=name) for i, name in enumerate(self._names, start=1)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            kind, node = Action(message.metadata.message_type), message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = f"{kind} {message.metadata.group_id} {node}"
            ids.append(message.metadata.message_id)
            self._replies[ids[-1]] = self._ask(message, kind, node)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def _ask(self, message: Message, kind: Action, node: int) -> Message:
        self._parent.send((kind, node - 1, *from_request(kind, message.content)))
        reply: Any = self._parent.recv()
        return Message(to_reply(kind, reply), reply_to=message)


def main(address: str, plan: str, roster: str, state: str, names: str) -> None:
    """A whole run."""
    with Client(address) as parent:
        app = server_app(lambda: AggregatorSettings(Path(roster), Path(state)), log_and_status)
        app(PipeGrid(parent, names.split(",")), Context(1, 1, {}, RecordDict(), json.loads(plan)))
        parent.send(sorted(sys.modules))
        parent.recv()


if __name__ == "__main__":
    main(*sys.argv[1:])
