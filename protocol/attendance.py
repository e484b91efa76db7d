"""The pair encode / decode of an attendance: a client has derived the model and trained.

Laws: as in `protocol/wire.py`. The list of the signed attendances *is* the announced cohort.
"""

import struct
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from protocol.errors import MalformedMessage
from protocol.figures import FIGURES, Figures
from protocol.frame import ATTENDANCE, PREFIX, SIGNATURE_BYTES, open_frame, prefix
from protocol.openings import Memory, decode_memory, encode_memory
from protocol.roster import Roster
from protocol.sharing import COMMITMENT_BYTES, SECRET_BYTES

ATTENDANCE_HEAD = struct.Struct("<16s6I32s16s32s32s32s32s32s32s7qQI")
ATTENDANCE_FIELDS = (
    "run", "round", "attempt", "node", "samples", "values", "votes", "plan", "key", "model", "support", "invited",
    "exchange", "seed", "dealt", *FIGURES, "spoiled", "memory_bytes",
)  # fmt: skip
_ANY_KEY: Final = X25519PrivateKey.from_private_bytes(bytes(SECRET_BYTES))
SHARE_BYTES: Final = SECRET_BYTES + SECRET_BYTES + 16 + 2 * COMMITMENT_BYTES
"""What an invited node is dealt by another: two sealed shares, and a commitment to each."""

ATTENDANCE_BYTES: Final = PREFIX.size + ATTENDANCE_HEAD.size + SIGNATURE_BYTES
"""The length of a signed attendance of a node that remembers nothing."""


@dataclass(frozen=True)
class Attendance:
    """A client's signed statement that it is ready to contribute.

    Attributes:
        run: The run's random name, 16 bytes.
        round: From 1.
        attempt: The number of the `train` message that this answers, from 1.
        node: The client's number on the roster.
        samples: Its training samples; its weight in the mean.
        values: n, how many values it will send; none after the last round of training.
        votes: How many votes it will send.
        plan: Digest of the plan, 32 bytes.
        key: Public name of the round's BFV key, 16 bytes.
        model: Keyed digest of the model that the client derived, 32 bytes.
        support: Digest of the sealed terms, 32 bytes.
        invited: Digest of the numbers of the nodes that were invited, 32 bytes.
        exchange: A new X25519 public key for the pairwise masks, 32 bytes; it makes every cohort, so each mask, new.
        seed: The commitment to the seed of the self-mask, 32 bytes.
        dealt: Digest of the shares that go with the attendance, 32 bytes.
        figures: What the sum that the client has opened for this round says of its cohort; all zero in round 1.
        spoiled: Of the sums that the round begins with, a bit for each, that of the first lowest: set where it is not
            that of its clients.
        memory: What the node remembers of earlier sums from the same starting state.
    """

    run: bytes
    round: int
    attempt: int
    node: int
    samples: int
    values: int
    votes: int
    plan: bytes
    key: bytes
    model: bytes
    support: bytes
    invited: bytes
    exchange: bytes
    seed: bytes
    dealt: bytes
    figures: Figures
    spoiled: int
    memory: Memory


def encode_attendance(a: Attendance) -> bytes:
    """Everything but the signature, which :func:`signed` appends."""
    memory = encode_memory(a.memory)
    head = ATTENDANCE_HEAD.pack(
        a.run, a.round, a.attempt, a.node, a.samples, a.values, a.votes, a.plan, a.key, a.model, a.support,
        a.invited, a.exchange, a.seed, a.dealt, *astuple(a.figures), a.spoiled, len(memory),
    )  # fmt: skip
    return prefix(ATTENDANCE) + head + memory


def attendances(data: bytes) -> Iterator[bytes]:
    """The signed attendances that stand end to end in these bytes; none is looked at but for its length.

    Raises:
        MalformedMessage: The last one ends too early.
    """
    at = 0
    while at < len(data):
        memory = ATTENDANCE_HEAD.unpack_from(data, at + PREFIX.size)[-1] if at + ATTENDANCE_BYTES <= len(data) else 0
        end = at + ATTENDANCE_BYTES + memory
        if end > len(data):
            raise MalformedMessage("a cohort is not a whole number of attendances")
        yield data[at:end]
        at = end


def decode_attendance(data: bytes, roster: Roster) -> Attendance:
    """Read a signed attendance.

    Raises:
        MalformedMessage: It does not parse, or no secret can be shared with its key.
        SignatureRefused: It is not signed by the node that it names.
    """
    attendance = read_attendance(data)
    roster.verify(attendance.node, data[-SIGNATURE_BYTES:], data[:-SIGNATURE_BYTES])
    try:
        _ANY_KEY.exchange(X25519PublicKey.from_public_bytes(attendance.exchange))
    except ValueError:  # of small order: with whatever key, the secret would be zero
        raise MalformedMessage("an attendance's exchange key is none") from None
    return attendance


def read_attendance(data: bytes) -> Attendance:
    """Read an attendance that :func:`decode_attendance` has taken before; its signature is not checked again.

    Raises:
        MalformedMessage: It does not parse.
    """
    fields, rest = open_frame(data, ATTENDANCE, ATTENDANCE_HEAD)
    if len(rest) != fields[-1] + SIGNATURE_BYTES:
        raise MalformedMessage(f"an attendance is {ATTENDANCE_BYTES + fields[-1]} bytes long, not {len(data)}")
    named = dict(zip(ATTENDANCE_FIELDS, fields, strict=True))
    figures = Figures(**{figure: named.pop(figure) for figure in FIGURES})
    del named["memory_bytes"]
    attendance = Attendance(**named, figures=figures, memory=decode_memory(rest[:-SIGNATURE_BYTES]))
    if attendance.samples < 1 or attendance.votes not in (0, attendance.values):
        raise MalformedMessage("an attendance needs samples, and a vote for none or every value")
    return attendance
