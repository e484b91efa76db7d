"""What the two ends of a round say, inside Flower's records: pairs that undo one another.

* ``from_record(to_record(blobs)) == blobs`` for blobs that are not empty; an empty one is left out.
* ``from_request(action, to_request(action, call, frames)) == (call, frames)`` for frames that are not empty.
* ``from_reply(action, to_reply(action, frames)) == frames`` for frames that are not empty.
* ``from_error(to_error(error, reference))[0] == error.public``

Every payload travels as an `Array` of our own serialisation type. Flower's built-in aggregation refuses to average such
an array, and our reader refuses any other, so neither end can mistake plaintext for ciphertext. This is the one file of
the protocol that knows Flower; both ends use it.

Nothing else travels from a client: what it measures is in its contributions (`protocol/figures.py`). A peer's words are
bounded where they come in: texts are cleaned.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, RecordDict

from protocol import VERSION
from protocol.call import Action, Call
from protocol.errors import MalformedMessage, PruneSealError, VersionRefused
from protocol.text import LONGEST_NAME, cleaned

STYPE: Final = f"pruneseal.v{VERSION}"
_ANY_VERSION: Final = re.compile(r"pruneseal\.v([0-9]{1,3})")
_CALL, _FRAMES, _REFERENCE = "call", "frames", " [ref "


# --- frames --------------------------------------------------------------------------------------


def to_record(blobs: Mapping[str, bytes]) -> ArrayRecord:
    """Wrap named byte strings for Flower, all but the empty ones."""
    return ArrayRecord(
        {name: Array(dtype="bytes", shape=(len(blob),), stype=STYPE, data=blob) for name, blob in blobs.items() if blob}
    )


def from_record(record: ArrayRecord) -> dict[str, bytes]:
    """Unwrap what :func:`to_record` made.

    Raises:
        VersionRefused: An array is a frame of another protocol version.
        MalformedMessage: An array is not one of ours: plaintext instead of our frame, for example.
    """
    for name, array in record.items():
        if array.stype != STYPE and (other := _ANY_VERSION.fullmatch(array.stype)):
            raise VersionRefused(int(other[1]))
        if array.stype != STYPE or array.dtype != "bytes" or tuple(array.shape) != (len(array.data),):
            told, stype, dtype = (cleaned(text, LONGEST_NAME) for text in (name, array.stype, array.dtype))
            raise MalformedMessage(f"the array {told!r} is {stype!r} of {dtype!r}, not a {STYPE} frame")
    return {name: array.data for name, array in record.items()}


def _frames(content: RecordDict, known: Sequence[str]) -> dict[str, bytes]:
    """The frames of a message; none where it holds no record of them.

    Raises:
        MalformedMessage: There is one that its kind of message does not carry, or something else than a frame.
    """
    records = content.array_records
    frames = from_record(records[_FRAMES]) if _FRAMES in records else {}
    if unknown := set(frames) - set(known):
        raise MalformedMessage(f"the message carries an unknown frame {cleaned(min(unknown), LONGEST_NAME)!r}")
    return frames


# --- a request -----------------------------------------------------------------------------------


def to_request(action: Action, call: Call, frames: Mapping[str, bytes]) -> RecordDict:
    """What a node is sent.

    Args:
        action: What it is asked to do.
        call: Of which round.
        frames: By name, of those that the action knows; empty ones are left out.
    """
    head = ConfigRecord({"run": call.run, "round": call.round, "attempt": call.attempt})
    return RecordDict({_FRAMES: to_record({name: frames.get(name, b"") for name in action.request}), _CALL: head})


def from_request(action: Action, content: RecordDict) -> tuple[Call, dict[str, bytes]]:
    """What :func:`to_request` was given.

    Raises:
        MalformedMessage: It names no round, or carries something else than our frames.
    """
    return call_of(content), _frames(content, action.request)


def call_of(content: RecordDict) -> Call:
    """Which round a request is of, whatever it carries.

    Raises:
        MalformedMessage: It does not say.
    """
    head = content.config_records.get(_CALL) or ConfigRecord()
    run, round_, attempt = head.get("run"), head.get("round"), head.get("attempt")
    if not isinstance(run, bytes) or not isinstance(round_, int) or not isinstance(attempt, int):
        raise MalformedMessage("the message names no run, round and attempt")
    return Call(run, round_, attempt)


# --- its reply -----------------------------------------------------------------------------------


def to_reply(action: Action, frames: Mapping[str, bytes]) -> RecordDict:
    """What a node answers.

    Args:
        action: What it was asked to do.
        frames: Those that the action asks for, by name.
    """
    return RecordDict({_FRAMES: to_record({name: frames[name] for name in action.reply})})


def from_reply(action: Action, content: RecordDict) -> dict[str, bytes]:
    """The frames of a reply.

    Raises:
        MalformedMessage: It does not hold all of our frames, or something else.
    """
    frames = _frames(content, action.reply)
    if missing := [name for name in action.reply if name not in frames]:
        raise MalformedMessage(f"the reply holds no {missing[0]}")
    return frames


# --- its refusal ---------------------------------------------------------------------------------


def to_error(error: PruneSealError, reference: str) -> Error:
    """What may leave a node of its error: the number and the public sentence of its class, and where to look for more.

    Args:
        error: The error.
        reference: What stands with its whole text in the node's log.
    """
    return Error(code=error.code, reason=f"{error.public}{_REFERENCE}{reference}]")


def from_error(error: Error) -> tuple[str, str]:
    """The sentence of an error, which is the same for all of its kind, and its whole reason, from us or from Flower."""
    reason = cleaned(error.reason or f"Flower error {error.code}")
    return reason.split(_REFERENCE)[0], reason
