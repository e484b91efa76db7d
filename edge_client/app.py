"""The Flower `ClientApp`: three actions of a round, `train`, `contribute` and `release`, then `report`; and `name`.

Messages in: which round they are of and, as opaque frames, what has been invited, added up, announced or is to be
opened. Messages out: frames alone; `protocol/messages.py` says how. Two guards surround every handler: no
exception text leaves the node, and nothing but our own frames does.
"""

import logging
import os
import uuid
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from edge_client.client import Client, Reply
from edge_client.settings import read_settings
from protocol.call import Action
from protocol.errors import MalformedMessage, PruneSealError
from protocol.messages import STYPE, call_of, from_request, to_error, to_reply
from protocol.plan import plan_from_config

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
        return Message(to_error(known, reference), reply_to=message)


def egress(message: Message, context: Context, call_next: _Handler) -> Message:
    """Refuse to send anything but our frames."""
    reply = call_next(message, context)
    if reply.has_content():
        arrays = [array for record in reply.content.array_records.values() for array in record.values()]
        if any(array.stype != STYPE for array in arrays) or len(reply.content) > len(reply.content.array_records):
            raise MalformedMessage("something would leave this node in clear")
    return reply


app = ClientApp(mods=[guard, egress])


@app.train()
def train(message: Message, context: Context) -> Message:
    """The first message of a round."""
    return _reply(Action.TRAIN, message, _client(context).train(*from_request(Action.TRAIN, message.content)))


@app.train("contribute")
def contribute(message: Message, context: Context) -> Message:
    """The second message of a round."""
    answer = _client(context).contribute(*from_request(Action.CONTRIBUTE, message.content))
    return _reply(Action.CONTRIBUTE, message, answer)


@app.train("release")
def release(message: Message, context: Context) -> Message:
    """The third message of a round: asked of those whose contributions are in the sum."""
    return _reply(Action.RELEASE, message, _client(context).release(*from_request(Action.RELEASE, message.content)))


@app.query()
def report(message: Message, context: Context) -> Message:
    """After the last round: what the sum of all scores says."""
    return _reply(Action.REPORT, message, _client(context).report(*from_request(Action.REPORT, message.content)))


@app.query("name")
def name(message: Message, context: Context) -> Message:
    """Before a round, of a node that is registered under no name, as in Flower's simulation: who it is."""
    return _reply(Action.NAME, message, _client(context).name(*from_request(Action.NAME, message.content)))


def _client(context: Context) -> Client:
    return Client(read_settings(os.environ, context.node_config), plan_from_config(context.run_config))


def _where(message: Message, context: Context) -> str:
    """This node, by its number in Flower, and what the message says it is of: for the node's log."""
    try:
        call = call_of(message.content) if message.has_content() else None
    except MalformedMessage:
        call = None
    return f"node {context.node_id}" + (f", round {call.round}, attempt {call.attempt}" if call else "")


def _reply(action: Action, message: Message, answer: Reply) -> Message:
    return Message(to_reply(action, answer.frames), reply_to=message)
