"""What all messages share: how one begins, which kinds there are, and how it is signed.

All integers are little-endian. `protocol/README.md` has the tables of offsets.
"""

import struct
from typing import Any, Final

from protocol import VERSION
from protocol.errors import MalformedMessage, VersionRefused

MAGIC: Final = b"PRSL"
SIGNATURE_BYTES: Final = 64
RUN_BYTES: Final = 16
LARGEST: Final = 1 << 30
"""No message of this protocol is longer, in bytes; a longer one is refused before it is looked at."""

ATTENDANCE, CONTRIBUTION, AGGREGATE, RELEASE, CONSENT = 1, 2, 3, 4, 5
PREFIX = struct.Struct("<4sBBH")


def prefix(kind: int) -> bytes:
    """What every message begins with."""
    return PREFIX.pack(MAGIC, VERSION, kind, 0)


def kind_of(data: bytes) -> int:
    """The kind of a message.

    Raises:
        VersionRefused: It is a message of another protocol version.
        MalformedMessage: It is no message.
    """
    if len(data) < PREFIX.size or len(data) > LARGEST:
        raise MalformedMessage(f"{len(data)} bytes are not a message")
    magic, version, kind, reserved = PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise MalformedMessage("not a PruneSeal message")
    if version != VERSION:
        raise VersionRefused(version)
    if reserved != 0 or not ATTENDANCE <= kind <= CONSENT:
        raise MalformedMessage("not a PruneSeal message")
    return int(kind)


def open_frame(data: bytes, kind: int, head: struct.Struct) -> tuple[tuple[Any, ...], bytes]:
    """Check the prefix and unpack the head; what follows it."""
    if kind_of(data) != kind:
        raise MalformedMessage("a message of another kind was expected")
    if len(data) < PREFIX.size + head.size:
        raise MalformedMessage("the message ends within its head")
    return head.unpack_from(data, PREFIX.size), data[PREFIX.size + head.size :]


def signed(body: bytes, signature: bytes) -> bytes:
    """A body and the Ed25519 signature over all of it."""
    return body + signature
