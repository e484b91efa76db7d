"""The pairs encode / decode of the messages that carry a round.

Laws: ``decode(encode(m)) == m``; and every byte string that decodes re-encodes to itself, so a signature covers exactly
one meaning. A decoder never repairs: any other length, magic, version, kind or padding is a `MalformedMessage`.

* `Attendance`: a client has derived the model and trained. Signed. The list of them *is* the announced cohort.
* `Contribution`: masked, encrypted, signed; only the residues in use and one seed per ciphertext.
* `Release` and `Consent`, which open a sum: `protocol/release.py`.
* `Aggregate`: what the aggregator has added up. With the sealed terms that it carries, the state of the run.

All integers are little-endian. `protocol/README.md` has the tables of offsets.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from protocol import VERSION
from protocol.bits import Words, pack_bits, packed_length, unpack_bits
from protocol.errors import MalformedMessage, PeerMismatch, VersionRefused
from protocol.openings import Memory, decode_memory, encode_memory
from protocol.parameters import COEFFICIENT_BITS, DEGREE, SEED_BYTES, Parameters
from protocol.roster import Roster
from protocol.sharing import COMMITMENT_BYTES, SECRET_BYTES

MAGIC: Final = b"PRSL"
SIGNATURE_BYTES: Final = 64
RUN_BYTES: Final = 16
LARGEST: Final = 1 << 30
"""No message of this protocol is longer, in bytes; a longer one is refused before it is looked at."""

ATTENDANCE, CONTRIBUTION, AGGREGATE, RELEASE, CONSENT = 1, 2, 3, 4, 5
PREFIX = struct.Struct("<4sBBH")
_ATTENDANCE = struct.Struct("<16s6I32s16s32s32s32s32s32s32sI")
_CONTRIBUTION = struct.Struct("<16s5I32s16s32s32s")
RELEASE_HEAD = struct.Struct("<16s3I32s2I")
CONSENT_HEAD = struct.Struct("<16s4I32s32sI")
"""The heads of the two messages of `protocol/release.py`."""
_AGGREGATE = struct.Struct("<16s8I2Q32s16s32s32s32s")
_ATTENDANCE_FIELDS = (
    "run", "round", "attempt", "node", "samples", "values", "votes", "plan", "key", "model", "support", "invited",
    "exchange", "seed", "dealt", "memory_bytes",
)  # fmt: skip
_CONTRIBUTION_FIELDS = (
    "run", "round", "attempt", "node", "values", "votes", "plan", "key", "cohort", "support",
)  # fmt: skip
_AGGREGATE_FIELDS = (
    "run", "round", "attempt", "clients", "members", "values", "votes", "sealed_bytes", "by_seeds", "weight",
    "total", "plan", "key", "cohort", "support", "voucher",
)  # fmt: skip
SHARE_BYTES: Final = SECRET_BYTES + SECRET_BYTES + 16 + 2 * COMMITMENT_BYTES
"""What an invited node is dealt by another: two sealed shares, and a commitment to each."""

ATTENDANCE_BYTES: Final = PREFIX.size + _ATTENDANCE.size + SIGNATURE_BYTES
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
        values: n, how many values it will send.
        votes: How many votes it will send.
        plan: Digest of the plan, 32 bytes.
        key: Public name of the round's BFV key, 16 bytes.
        model: Keyed digest of the model that the client derived, 32 bytes.
        support: Digest of the sealed terms, 32 bytes.
        invited: Digest of the numbers of the nodes that were invited, 32 bytes.
        exchange: A new X25519 public key for the pairwise masks, 32 bytes; it makes every cohort, so each mask, new.
        seed: The commitment to the seed of the self-mask, 32 bytes.
        dealt: Digest of the shares that go with the attendance, 32 bytes.
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
    memory: Memory


@dataclass(frozen=True, eq=False)
class Contribution:
    """One client's masked and encrypted update.

    Attributes:
        run, round, node, values, votes, plan, key, support: As in its attendance.
        attempt: The number of the `contribute` message that this answers.
        cohort: Digest of the announced cohort, 32 bytes.
        held: For each member of the cohort, whether its shares for this node can be used.
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
    held: tuple[bool, ...]
    seeds: tuple[bytes, ...]
    first: Words


@dataclass(frozen=True, eq=False)
class Aggregate:
    """The encrypted sum of a cohort, and the sealed terms under which it was made.

    Attributes:
        clients: K, how many contributions the sum holds.
        members: How many members the announced cohort has.
        weight: What those K count for in the mean, together.
        total: What all members would count for.
        voucher: From the members' consent: vouches for clients, members, weight and total.
        first: The truncated first halves of the summed coefficients in use, u64[slots].
        second: For each ciphertext the clients' seeds, or the summed second half, whichever is shorter.
        sealed: The sealed terms.
    """

    run: bytes
    round: int
    attempt: int
    clients: int
    members: int
    weight: int
    total: int
    values: int
    votes: int
    plan: bytes
    key: bytes
    cohort: bytes
    support: bytes
    voucher: bytes
    first: Words
    second: "tuple[tuple[bytes, ...], ...] | Words"
    sealed: bytes


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
    if reserved != 0 or kind not in _HEADS:
        raise MalformedMessage("not a PruneSeal message")
    return int(kind)


def open_frame(data: bytes, kind: int, head: struct.Struct) -> tuple[tuple[Any, ...], bytes]:
    """Check the prefix and unpack the head; what follows it."""
    if kind_of(data) != kind:
        raise MalformedMessage("a message of another kind was expected")
    if len(data) < PREFIX.size + head.size:
        raise MalformedMessage("the message ends within its head")
    return head.unpack_from(data, PREFIX.size), data[PREFIX.size + head.size :]


def encode_attendance(a: Attendance) -> bytes:
    """Everything but the signature, which :func:`signed` appends."""
    memory = encode_memory(a.memory)
    head = _ATTENDANCE.pack(
        a.run, a.round, a.attempt, a.node, a.samples, a.values, a.votes, a.plan, a.key, a.model, a.support,
        a.invited, a.exchange, a.seed, a.dealt, len(memory),
    )  # fmt: skip
    return prefix(ATTENDANCE) + head + memory


def encode_contribution(c: Contribution, parameters: Parameters) -> bytes:
    """Everything but the signature, which :func:`signed` appends."""
    head = _CONTRIBUTION.pack(c.run, c.round, c.attempt, c.node, c.values, c.votes, c.plan, c.key, c.cohort, c.support)
    held = pack_bits(np.array(c.held, np.uint64), 1)
    residues = pack_bits(c.first, parameters.width_up)
    return b"".join([prefix(CONTRIBUTION), head, held, *c.seeds, residues])


def signed(body: bytes, signature: bytes) -> bytes:
    """A body and the Ed25519 signature over all of it."""
    return body + signature


def attendances(data: bytes) -> Iterator[bytes]:
    """The signed attendances that stand end to end in these bytes; none is looked at but for its length.

    Raises:
        MalformedMessage: The last one ends too early.
    """
    at = 0
    while at < len(data):
        memory = _ATTENDANCE.unpack_from(data, at + PREFIX.size)[-1] if at + ATTENDANCE_BYTES <= len(data) else 0
        end = at + ATTENDANCE_BYTES + memory
        if end > len(data):
            raise MalformedMessage("a cohort is not a whole number of attendances")
        yield data[at:end]
        at = end


def decode_attendance(data: bytes, roster: Roster) -> Attendance:
    """Read a signed attendance.

    Raises:
        MalformedMessage: It does not parse.
        SignatureRefused: It is not signed by the node that it names.
    """
    fields, rest = open_frame(data, ATTENDANCE, _ATTENDANCE)
    if len(rest) != fields[-1] + SIGNATURE_BYTES:
        raise MalformedMessage(f"an attendance is {ATTENDANCE_BYTES + fields[-1]} bytes long, not {len(data)}")
    named = dict(zip(_ATTENDANCE_FIELDS[:-1], fields[:-1], strict=True))
    attendance = Attendance(**named, memory=decode_memory(rest[:-SIGNATURE_BYTES]))
    if attendance.samples < 1 or attendance.values < 1 or attendance.votes not in (0, attendance.values):
        raise MalformedMessage("an attendance needs samples and values, and a vote for none or every value")
    roster.verify(attendance.node, data[-SIGNATURE_BYTES:], data[:-SIGNATURE_BYTES])
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(attendance.exchange))
    except ValueError:  # of small order: with it no secret can be shared
        raise MalformedMessage("an attendance's exchange key is none") from None
    return attendance


def contribution_length(values: int, votes: int, members: int, parameters: Parameters) -> int:
    """The exact length of a signed contribution in bytes."""
    packed = packed_length(parameters.slots(values, votes), parameters.width_up)
    seeds = parameters.blocks(values, votes) * SEED_BYTES
    return PREFIX.size + _CONTRIBUTION.size + packed_length(members, 1) + seeds + packed + SIGNATURE_BYTES


def decode_contribution(
    data: bytes, attendance: Attendance, members: int, parameters: Parameters, roster: Roster
) -> Contribution:
    """Read the signed contribution that ``attendance`` announced.

    The sizes are the attendance's and the cohort's, not the message's, so nothing is allocated on the peer's word.

    Raises:
        MalformedMessage: It does not parse.
        PeerMismatch: It announces other sizes than the attendance did, or names another node.
        SignatureRefused: It is not signed by that node.
    """
    fields, _ = open_frame(data, CONTRIBUTION, _CONTRIBUTION)
    run, round_, attempt, node, values, votes, plan, key, cohort, support = fields
    for name, ours, theirs in (
        ("node", attendance.node, node),
        ("values", attendance.values, values),
        ("votes", attendance.votes, votes),
    ):
        if ours != theirs:
            raise PeerMismatch(name, ours, theirs)
    length = contribution_length(attendance.values, attendance.votes, members, parameters)
    if len(data) != length:
        raise MalformedMessage(f"the contribution is {len(data)} bytes long; {length} were announced")
    roster.verify(attendance.node, data[-SIGNATURE_BYTES:], data[:-SIGNATURE_BYTES])
    start = PREFIX.size + _CONTRIBUTION.size
    seeds = parameters.blocks(attendance.values, attendance.votes)
    slots = parameters.slots(attendance.values, attendance.votes)
    held = start + packed_length(members, 1)
    packed = held + seeds * SEED_BYTES
    return Contribution(
        run=run, round=round_, attempt=attempt, node=node, values=values, votes=votes,
        plan=plan, key=key, cohort=cohort, support=support,
        held=tuple(bool(bit) for bit in unpack_bits(data[start:held], members, 1)),
        seeds=tuple(data[held + i * SEED_BYTES : held + (i + 1) * SEED_BYTES] for i in range(seeds)),
        first=unpack_bits(data[packed:-SIGNATURE_BYTES], slots, parameters.width_up),
    )  # fmt: skip


def encode_aggregate(a: Aggregate, parameters: Parameters) -> bytes:
    """The aggregate as one message. It is not signed: nobody but the cohort's secret vouches for a sum."""
    seeds = isinstance(a.second, tuple)
    head = _AGGREGATE.pack(
        a.run,
        a.round,
        a.attempt,
        a.clients,
        a.members,
        a.values,
        a.votes,
        len(a.sealed),
        seeds,
        a.weight,
        a.total,
        a.plan,
        a.key,
        a.cohort,
        a.support,
        a.voucher,
    )
    if isinstance(a.second, tuple):
        second = b"".join(seed for block in a.second for seed in block)
    else:
        second = pack_bits(a.second.ravel(), COEFFICIENT_BITS)
    return b"".join([prefix(AGGREGATE), head, pack_bits(a.first, parameters.width_down), second, a.sealed])


def announced_sizes(data: bytes) -> tuple[int, int]:
    """How many values and votes an aggregate says that it holds; nothing else of it is read.

    Raises:
        MalformedMessage: It is no aggregate.
    """
    fields = dict(zip(_AGGREGATE_FIELDS, open_frame(data, AGGREGATE, _AGGREGATE)[0], strict=True))
    return fields["values"], fields["votes"]


def decode_aggregate(data: bytes, parameters: Parameters) -> Aggregate:
    """Read an aggregate.

    Raises:
        MalformedMessage: It does not parse.
    """
    fields, rest = open_frame(data, AGGREGATE, _AGGREGATE)
    head = dict(zip(_AGGREGATE_FIELDS, fields, strict=True))
    sealed, seeds = head.pop("sealed_bytes"), head.pop("by_seeds")
    clients, values, votes = head["clients"], head["values"], head["votes"]
    counts = 0 < clients <= head["members"] <= parameters.grid.clients and 0 < head["weight"] <= head["total"]
    if not counts or values < 1 or votes not in (0, values) or seeds not in (0, 1):
        raise MalformedMessage("the aggregate's counts do not fit the plan")
    slots, blocks = parameters.slots(values, votes), parameters.blocks(values, votes)
    packed = packed_length(slots, parameters.width_down)
    tail = packed + blocks * (clients * SEED_BYTES if seeds else packed_length(DEGREE, COEFFICIENT_BITS))
    if len(rest) != tail + sealed:
        raise MalformedMessage(f"the aggregate is {len(data)} bytes long; another length was announced")
    second_bytes = rest[packed:tail]
    second: tuple[tuple[bytes, ...], ...] | Words
    if seeds:
        cut = [second_bytes[i : i + SEED_BYTES] for i in range(0, len(second_bytes), SEED_BYTES)]
        second = tuple(tuple(cut[i : i + clients]) for i in range(0, len(cut), clients))
    else:
        second = unpack_bits(second_bytes, blocks * DEGREE, COEFFICIENT_BITS).reshape(blocks, DEGREE)
    first = unpack_bits(rest[:packed], slots, parameters.width_down)
    return Aggregate(**head, first=first, second=second, sealed=rest[tail:])


_HEADS: Final = {
    ATTENDANCE: ("attendance", _ATTENDANCE_FIELDS, _ATTENDANCE),
    CONTRIBUTION: ("contribution", _CONTRIBUTION_FIELDS, _CONTRIBUTION),
    AGGREGATE: ("aggregate", _AGGREGATE_FIELDS, _AGGREGATE),
    RELEASE: ("release", ["run", "round", "attempt", "members", "cohort", "terms", "nodes"], RELEASE_HEAD),
    CONSENT: (
        "consent",
        ["run", "round", "attempt", "node", "members", "cohort", "voucher", "sealed_bytes"],
        CONSENT_HEAD,
    ),
}


def describe(data: bytes) -> dict[str, object]:
    """What anybody can see of a message without a key or a roster: its head and its length.

    Raises:
        MalformedMessage: It is not a message of this protocol version.
    """
    kind = kind_of(data)
    name, names, head = _HEADS[kind]
    fields, _ = open_frame(data, kind, head)
    shown = {key: value.hex() if isinstance(value, bytes) else value for key, value in zip(names, fields, strict=True)}
    return {"kind": name, "version": VERSION, "bytes": len(data), **shown}
