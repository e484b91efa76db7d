"""The pairs encode / decode of the three messages that carry a round.

Laws: ``decode(encode(m)) == m``; and every byte string that decodes re-encodes to itself, so a signature covers exactly
one meaning. A decoder never repairs: any other length, magic, version, kind or padding is a `MalformedMessage`.

* `Attendance`: a client has derived the model and trained. Signed. The list of them *is* the announced cohort.
* `Contribution`: blinded, encrypted, signed; only the residues in use and one seed per ciphertext.
* `Aggregate`: what the aggregator has added up. With the sealed terms that it carries, the state of the run.

All integers are little-endian. `protocol/README.md` has the tables of offsets.
"""

import struct
from dataclasses import dataclass
from typing import Any, Final

from protocol import VERSION
from protocol.bits import Words, pack_bits, packed_length, unpack_bits
from protocol.errors import MalformedMessage, PeerMismatch, VersionRefused
from protocol.parameters import COEFFICIENT_BITS, DEGREE, SEED_BYTES, Parameters
from protocol.roster import Roster

MAGIC: Final = b"PRSL"
SIGNATURE_BYTES: Final = 64
RUN_BYTES: Final = 16
NONCE_BYTES: Final = 16
LARGEST: Final = 1 << 30
"""No message of this protocol is longer, in bytes; a longer one is refused before it is looked at."""

ATTENDANCE, CONTRIBUTION, AGGREGATE = 1, 2, 3
_PREFIX = struct.Struct("<4sBBH")
_ATTENDANCE = struct.Struct("<16s6I32s16s32s32s16s")
_CONTRIBUTION = struct.Struct("<16s6I32s16s32s32s")
_AGGREGATE = struct.Struct("<16s7I32s16s32s32s")
_ATTENDANCE_FIELDS = [
    "run",
    "round",
    "attempt",
    "node",
    "samples",
    "values",
    "votes",
    "plan",
    "key",
    "model",
    "support",
    "nonce",
]
_CONTRIBUTION_FIELDS = [
    "run",
    "round",
    "attempt",
    "node",
    "values",
    "votes",
    "sealed_bytes",
    "plan",
    "key",
    "cohort",
    "support",
]
_AGGREGATE_FIELDS = [
    "run",
    "round",
    "attempt",
    "clients",
    "values",
    "votes",
    "sealed_bytes",
    "by_seeds",
    "plan",
    "key",
    "cohort",
    "support",
]
ATTENDANCE_BYTES: Final = _PREFIX.size + _ATTENDANCE.size + SIGNATURE_BYTES


@dataclass(frozen=True)
class Attendance:
    """A client's signed statement that it is ready to contribute.

    Attributes:
        run: The run's random name, 16 bytes.
        round: From 1.
        attempt: The number of the `train` message that this answers, from 1.
        node: The client's number on the roster.
        samples: Its training samples; its weight in the mean.
        values: n, how many values it will send.
        votes: How many votes it will send.
        plan: Digest of the plan, 32 bytes.
        key: Public name of the round's BFV key, 16 bytes.
        model: Keyed digest of the model that the client derived, 32 bytes.
        support: Digest of the sealed terms, 32 bytes.
        nonce: 16 fresh random bytes; they make every cohort, and so every blinding, unique.
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
    nonce: bytes


@dataclass(frozen=True, eq=False)
class Contribution:
    """One client's blinded and encrypted update.

    Attributes:
        run, round, node, values, votes, plan, key, support: As in its attendance.
        attempt: The number of the `contribute` message that this answers.
        cohort: Digest of the announced cohort, 32 bytes.
        sealed: The sealed terms, from the one member that sends them; empty from the others.
        seeds: One seed per ciphertext, 64 bytes each.
        first: The truncated first halves of the coefficients in use, u64[slots].
    """

    run: bytes
    round: int
    attempt: int
    node: int
    values: int
    votes: int
    plan: bytes
    key: bytes
    cohort: bytes
    support: bytes
    sealed: bytes
    seeds: tuple[bytes, ...]
    first: Words


@dataclass(frozen=True, eq=False)
class Aggregate:
    """The encrypted sum of a cohort, and the sealed terms under which it was made.

    Attributes:
        clients: K, how many contributions the sum holds.
        first: The truncated first halves of the summed coefficients in use, u64[slots].
        second: For each ciphertext the clients' seeds, or the summed second half, whichever is shorter.
        sealed: The sealed terms.
    """

    run: bytes
    round: int
    attempt: int
    clients: int
    values: int
    votes: int
    plan: bytes
    key: bytes
    cohort: bytes
    support: bytes
    first: Words
    second: "tuple[tuple[bytes, ...], ...] | Words"
    sealed: bytes


def _prefix(kind: int) -> bytes:
    return _PREFIX.pack(MAGIC, VERSION, kind, 0)


def kind_of(data: bytes) -> int:
    """The kind of a message.

    Raises:
        VersionRefused: It is a message of another protocol version.
        MalformedMessage: It is no message.
    """
    if len(data) < _PREFIX.size or len(data) > LARGEST:
        raise MalformedMessage(f"{len(data)} bytes are not a message")
    magic, version, kind, reserved = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise MalformedMessage("not a PruneSeal message")
    if version != VERSION:
        raise VersionRefused(version)
    if reserved != 0 or kind not in (ATTENDANCE, CONTRIBUTION, AGGREGATE):
        raise MalformedMessage("not a PruneSeal message")
    return int(kind)


def _open(data: bytes, kind: int, head: struct.Struct) -> tuple[tuple[Any, ...], bytes]:
    """Check the prefix and unpack the head; what follows it."""
    if kind_of(data) != kind:
        raise MalformedMessage("a message of another kind was expected")
    if len(data) < _PREFIX.size + head.size:
        raise MalformedMessage("the message ends within its head")
    return head.unpack_from(data, _PREFIX.size), data[_PREFIX.size + head.size :]


def encode_attendance(a: Attendance) -> bytes:
    """Everything but the signature, which :func:`signed` appends."""
    return _prefix(ATTENDANCE) + _ATTENDANCE.pack(
        a.run, a.round, a.attempt, a.node, a.samples, a.values, a.votes, a.plan, a.key, a.model, a.support, a.nonce
    )


def encode_contribution(c: Contribution, parameters: Parameters) -> bytes:
    """Everything but the signature, which :func:`signed` appends."""
    head = _CONTRIBUTION.pack(
        c.run, c.round, c.attempt, c.node, c.values, c.votes, len(c.sealed), c.plan, c.key, c.cohort, c.support
    )
    residues = pack_bits(c.first, parameters.width_up)
    return b"".join([_prefix(CONTRIBUTION), head, *c.seeds, residues, c.sealed])


def signed(body: bytes, signature: bytes) -> bytes:
    """A body and the Ed25519 signature over all of it."""
    return body + signature


def decode_attendance(data: bytes, roster: Roster) -> Attendance:
    """Read a signed attendance.

    Raises:
        MalformedMessage: It does not parse.
        SignatureRefused: It is not signed by the node that it names.
    """
    fields, rest = _open(data, ATTENDANCE, _ATTENDANCE)
    if len(rest) != SIGNATURE_BYTES:
        raise MalformedMessage(f"an attendance is {ATTENDANCE_BYTES} bytes long, not {len(data)}")
    attendance = Attendance(*fields)
    if attendance.samples < 1 or attendance.values < 1 or attendance.votes not in (0, attendance.values):
        raise MalformedMessage("an attendance needs samples and values, and a vote for none or every value")
    roster.verify(attendance.node, rest, data[:-SIGNATURE_BYTES])
    return attendance


def contribution_length(values: int, votes: int, sealed: int, parameters: Parameters) -> int:
    """The exact length of a signed contribution in bytes."""
    packed = packed_length(parameters.slots(values, votes), parameters.width_up)
    seeds = parameters.blocks(values, votes) * SEED_BYTES
    return _PREFIX.size + _CONTRIBUTION.size + seeds + packed + sealed + SIGNATURE_BYTES


def decode_contribution(data: bytes, attendance: Attendance, parameters: Parameters, roster: Roster) -> Contribution:
    """Read the signed contribution that ``attendance`` announced.

    The sizes are the attendance's, not the message's, so nothing is allocated on the peer's word.

    Raises:
        MalformedMessage: It does not parse.
        PeerMismatch: It announces other sizes than the attendance did, or names another node.
        SignatureRefused: It is not signed by that node.
    """
    fields, _ = _open(data, CONTRIBUTION, _CONTRIBUTION)
    run, round_, attempt, node, values, votes, sealed, plan, key, cohort, support = fields
    for name, ours, theirs in (
        ("node", attendance.node, node),
        ("values", attendance.values, values),
        ("votes", attendance.votes, votes),
    ):
        if ours != theirs:
            raise PeerMismatch(name, ours, theirs)
    length = contribution_length(attendance.values, attendance.votes, sealed, parameters)
    if len(data) != length:
        raise MalformedMessage(f"the contribution is {len(data)} bytes long; {length} were announced")
    roster.verify(attendance.node, data[-SIGNATURE_BYTES:], data[:-SIGNATURE_BYTES])
    start = _PREFIX.size + _CONTRIBUTION.size
    seeds = parameters.blocks(attendance.values, attendance.votes)
    slots = parameters.slots(attendance.values, attendance.votes)
    packed = start + seeds * SEED_BYTES
    tail = packed + packed_length(slots, parameters.width_up)
    return Contribution(
        run=run, round=round_, attempt=attempt, node=node, values=values, votes=votes,
        plan=plan, key=key, cohort=cohort, support=support,
        sealed=data[tail:-SIGNATURE_BYTES],
        seeds=tuple(data[start + i * SEED_BYTES : start + (i + 1) * SEED_BYTES] for i in range(seeds)),
        first=unpack_bits(data[packed:tail], slots, parameters.width_up),
    )  # fmt: skip


def encode_aggregate(a: Aggregate, parameters: Parameters) -> bytes:
    """The aggregate as one message. It is not signed: nobody but the cohort's secret vouches for a sum."""
    seeds = isinstance(a.second, tuple)
    head = _AGGREGATE.pack(
        a.run,
        a.round,
        a.attempt,
        a.clients,
        a.values,
        a.votes,
        len(a.sealed),
        seeds,
        a.plan,
        a.key,
        a.cohort,
        a.support,
    )
    if isinstance(a.second, tuple):
        second = b"".join(seed for block in a.second for seed in block)
    else:
        second = pack_bits(a.second.ravel(), COEFFICIENT_BITS)
    return b"".join([_prefix(AGGREGATE), head, pack_bits(a.first, parameters.width_down), second, a.sealed])


def announced_sizes(data: bytes) -> tuple[int, int]:
    """How many values and votes an aggregate says that it holds; nothing else of it is read.

    Raises:
        MalformedMessage: It is no aggregate.
    """
    fields = dict(zip(_AGGREGATE_FIELDS, _open(data, AGGREGATE, _AGGREGATE)[0], strict=True))
    return fields["values"], fields["votes"]


def decode_aggregate(data: bytes, parameters: Parameters) -> Aggregate:
    """Read an aggregate.

    Raises:
        MalformedMessage: It does not parse.
    """
    fields, rest = _open(data, AGGREGATE, _AGGREGATE)
    run, round_, attempt, clients, values, votes, sealed, seeds, plan, key, cohort, support = fields
    if not 0 < clients <= parameters.grid.clients or values < 1 or votes not in (0, values) or seeds not in (0, 1):
        raise MalformedMessage("the aggregate's counts do not fit the plan")
    slots, blocks = parameters.slots(values, votes), parameters.blocks(values, votes)
    head = packed_length(slots, parameters.width_down)
    tail = head + blocks * (clients * SEED_BYTES if seeds else packed_length(DEGREE, COEFFICIENT_BITS))
    if len(rest) != tail + sealed:
        raise MalformedMessage(f"the aggregate is {len(data)} bytes long; another length was announced")
    second_bytes = rest[head:tail]
    second: tuple[tuple[bytes, ...], ...] | Words
    if seeds:
        cut = [second_bytes[i : i + SEED_BYTES] for i in range(0, len(second_bytes), SEED_BYTES)]
        second = tuple(tuple(cut[i : i + clients]) for i in range(0, len(cut), clients))
    else:
        second = unpack_bits(second_bytes, blocks * DEGREE, COEFFICIENT_BITS).reshape(blocks, DEGREE)
    return Aggregate(
        run=run, round=round_, attempt=attempt, clients=clients, values=values, votes=votes,
        plan=plan, key=key, cohort=cohort, support=support,
        first=unpack_bits(rest[:head], slots, parameters.width_down), second=second, sealed=rest[tail:],
    )  # fmt: skip


def describe(data: bytes) -> dict[str, object]:
    """What anybody can see of a message without a key or a roster: its head and its length.

    Raises:
        MalformedMessage: It is not a message of this protocol version.
    """
    kind = kind_of(data)
    name, names, head = {
        ATTENDANCE: ("attendance", _ATTENDANCE_FIELDS, _ATTENDANCE),
        CONTRIBUTION: ("contribution", _CONTRIBUTION_FIELDS, _CONTRIBUTION),
        AGGREGATE: ("aggregate", _AGGREGATE_FIELDS, _AGGREGATE),
    }[kind]
    fields, _ = _open(data, kind, head)
    shown = {key: value.hex() if isinstance(value, bytes) else value for key, value in zip(names, fields, strict=True)}
    return {"kind": name, "version": VERSION, "bytes": len(data), **shown}
