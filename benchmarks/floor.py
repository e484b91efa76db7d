"""Flower's own floor: an app that moves as many bytes in three messages per round as PruneSeal, and does nothing else.

The server writes how long each round took to the file ``FLOOR_TIMES``. ``FLOOR_DOWN`` and ``FLOOR_UP`` are the bytes of
an aggregate and of a contribution; the other four messages of a round are a kilobyte each.
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from protocol.messages import from_record, to_record

SMALL: Final = 1000
ROUNDS: Final = 6
_POLL_SECONDS: Final = 0.1

server = ServerApp()
client = ClientApp()


@server.main()
def main(grid: Grid, _context: Context) -> None:
    """Time the rounds; each is three messages to every node."""
    nodes, times = int(os.environ["FLOOR_NODES"]), []
    while len(list(grid.get_node_ids())) < nodes:
        time.sleep(_POLL_SECONDS)
    down = int(os.environ["FLOOR_DOWN"])
    for _ in range(ROUNDS):
        start = time.monotonic()
        for kind, size in (("train", down), ("train.second", SMALL), ("train.third", SMALL)):
            _ask(grid, kind, os.urandom(size))
        times.append(time.monotonic() - start)
    Path(os.environ["FLOOR_TIMES"]).write_text(json.dumps(times))


def _ask(grid: Grid, kind: str, payload: bytes) -> None:
    messages = [
        Message(RecordDict({"payload": to_record({"payload": payload})}), dst_node_id=node, message_type=kind)
        for node in grid.get_node_ids()
    ]
    waiting: Sequence[str] = list(grid.push_messages(messages))
    while waiting:
        answered = {reply.metadata.reply_to_message_id for reply in grid.pull_messages(waiting)}
        waiting = [one for one in waiting if one not in answered]
        time.sleep(_POLL_SECONDS if waiting else 0)


@client.train()
@client.train("third")
def first(message: Message, _: Context) -> Message:
    """Answer with a kilobyte."""
    return _answer(message, SMALL)


@client.train("second")
def second(message: Message, _: Context) -> Message:
    """Answer with as many bytes as a contribution has."""
    return _answer(message, int(os.environ["FLOOR_UP"]))


def _answer(message: Message, size: int) -> Message:
    assert from_record(message.content.array_records["payload"])["payload"]
    return Message(RecordDict({"payload": to_record({"payload": os.urandom(size)})}), reply_to=message)
