"""The Flower `ClientApp`: two actions of a round, `train` and `contribute`, and `evaluate`.

Messages in: a `ConfigRecord` ``call`` (run, round, attempt) and, as opaque frames, the last aggregate or the announced
cohort. Messages out: one frame and a `MetricRecord`. Two guards surround every handler: no exception text leaves the
node, and nothing but our own frames does.
"""

import logging
import os
import uuid
from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from edge_client.client import Client, Reply
from edge_client.round import Call
from edge_client.settings import read_settings
from protocol.errors import MalformedMessage, PruneSealError
from protocol.messages import STYPE, from_record, to_record
from protocol.plan import plan_from_config
from protocol.wire import RUN_BYTES

_log = logging.getLogger("pruneseal.edge_client")
_Handler = Callable[[Message, Context], Message]


def guard(message: Message, context: Context, call_next: _Handler) -> Message:
    """Answer a failure with its class's public sentence and a reference; its text stays in the node's log."""
    try:
        return call_next(message, context)
    except Exception as error:  # the outermost handler of the process: whatever it is, its text must not leave
        reference = uuid.uuid4().hex[:12]
        known = error if isinstance(error, PruneSealError) else PruneSealError()
        if isinstance(error, PruneSealError):
            _log.error("%s: %s: %s [ref %s]", _where(message, context), type(error).__name__, error, reference)
        else:
            _log.exception("%s: unexpected failure [ref %s]", _where(message, context), reference)
        return Message(Error(code=known.code, reason=f"{known.public} [ref {reference}]"), reply_to=message)


def egress(message: Message, context: Context, call_next: _Handler) -> Message:
    """Refuse to send any array that is not one of our frames."""
    reply = call_next(message, context)
    if reply.has_content():
        for record in reply.content.array_records.values():
            if any(array.stype != STYPE for array in record.values()):
                raise MalformedMessage("an array would leave this node in clear")
    return reply


app = ClientApp(mods=[guard, egress])


@app.train()
def train(message: Message, context: Context) -> Message:
    """The first message of a round."""
    answer = _client(context).train(_call(message), _frame(message, "aggregate"))
    return _reply(message, "attendance", answer)


@app.train("contribute")
def contribute(message: Message, context: Context) -> Message:
    """The second message of a round; asked again of the survivors if one is lost."""
    answer = _client(context).contribute(_call(message), _frame(message, "cohort"))
    return _reply(message, "contribution", answer)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """After the last round: score the final model."""
    answer = _client(context).evaluate(_call(message), _frame(message, "aggregate"))
    return _reply(message, "model", answer)


def _client(context: Context) -> Client:
    return Client(read_settings(os.environ, context.node_config), plan_from_config(context.run_config))


def _frame(message: Message, name: str) -> bytes:
    """The frame of this name, or no bytes where there is none."""
    records = message.content.array_records
    return from_record(records[name]).get(name, b"") if name in records else b""


def _call(message: Message) -> Call:
    record = message.content.config_records.get("call") or ConfigRecord()
    run, round_, attempt = record.get("run"), record.get("round"), record.get("attempt")
    if (
        not isinstance(run, bytes)
        or len(run) != RUN_BYTES
        or not isinstance(round_, int)
        or not isinstance(attempt, int)
    ):
        raise MalformedMessage("the message names no run, round and attempt")
    if not 0 < round_ < 1 << 32 or not 0 < attempt < 1 << 32:
        raise MalformedMessage("rounds and attempts are counted from 1")
    return Call(run, round_, attempt)


def _where(message: Message, context: Context) -> str:
    """This node, by its number in Flower, and what the message says it is of: for the node's log."""
    try:
        call = _call(message) if message.has_content() else None
    except MalformedMessage:
        call = None
    return f"node {context.node_id}" + (f", round {call.round}, attempt {call.attempt}" if call else "")


def _reply(message: Message, name: str, answer: Reply) -> Message:
    content = RecordDict({name: to_record({name: answer.payload}), "metrics": MetricRecord(dict(answer.metrics))})
    return Message(content=content, reply_to=message)
