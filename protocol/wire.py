"""The pairs encode / decode of the two messages that carry values.

Laws: ``decode(encode(m)) == m``; and every byte string that decodes re-encodes to itself, so a signature covers exactly
one meaning. A decoder never repairs: any other length, magic, version, kind or padding is a `MalformedMessage`.

* `Contribution`: masked, encrypted, signed; only the residues in use and one seed per ciphertext.
* `Aggregate`: what the aggregator has added up. With the sealed terms that it carries, the state of the run; where the
  cohort was divided, one for each group stand end to end.

The others have files of their own: `attendance.py`, and `release.py` for `Release` and `Consent`, which open a sum.
All integers are little-endian. `protocol/README.md` has the tables of offsets.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from protocol.attendance import Attendance
from protocol.bits import Words, pack_bits, packed_length, unpack_bits
from protocol.errors import MalformedMessage, PeerMismatch
from protocol.frame import AGGREGATE, CONTRIBUTION, PREFIX, SIGNATURE_BYTES, open_frame, prefix
from protocol.openings import MOST_SETS
from protocol.parameters import COEFFICIENT_BITS, DEGREE, SEED_BYTES, Parameters
from protocol.roster import Roster

CONTRIBUTION_HEAD = struct.Struct("<16s5I32s16s32s32s")
AGGREGATE_HEAD = struct.Struct("<16s9I2Q32s16s32s32s32s")
CONTRIBUTION_FIELDS = (
    "run", "round", "attempt", "node", "values", "votes", "plan", "key", "cohort", "support",
)  # fmt: skip
AGGREGATE_FIELDS = (
    "run", "round", "attempt", "clients", "members", "group", "values", "votes", "length", "by_seeds", "weight",
    "total", "plan", "key", "cohort", "support", "voucher",
)  # fmt: skip


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
    """The encrypted sum of a cohort, or of one of its groups, and the sealed terms under which it was made.

    Attributes:
        clients: K, how many contributions the sum holds.
        members: How many members the announced cohort has.
        group: The place of the group among those of the cohort; 0 where it is not divided.
        weight: What those K count for in the mean, together.
        total: What all members would count for.
        voucher: From the members' consent: vouches for clients, members, group, weight and total.
        first: The truncated first halves of the summed coefficients in use, u64[slots].
        second: For each ciphertext the clients' seeds, or the summed second half, whichever is shorter.
        sealed: The sealed terms.
    """

    run: bytes
    round: int
    attempt: int
    clients: int
    members: int
    group: int
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


def encode_contribution(c: Contribution, parameters: Parameters) -> bytes:
    """Everything but the signature, which :func:`signed` appends."""
    head = CONTRIBUTION_HEAD.pack(
        c.run, c.round, c.attempt, c.node, c.values, c.votes, c.plan, c.key, c.cohort, c.support
    )
    held = pack_bits(np.array(c.held, np.uint64), 1)
    residues = pack_bits(c.first, parameters.width_up)
    return b"".join([prefix(CONTRIBUTION), head, held, *c.seeds, residues])


def contribution_length(values: int, votes: int, members: int, parameters: Parameters) -> int:
    """The exact length of a signed contribution in bytes."""
    packed = packed_length(parameters.slots(values, votes), parameters.width_up)
    seeds = parameters.blocks(values, votes) * SEED_BYTES
    return PREFIX.size + CONTRIBUTION_HEAD.size + packed_length(members, 1) + seeds + packed + SIGNATURE_BYTES


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
    fields, _ = open_frame(data, CONTRIBUTION, CONTRIBUTION_HEAD)
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
    body = memoryview(data)[:-SIGNATURE_BYTES]  # slices of it copy nothing
    roster.verify(attendance.node, data[-SIGNATURE_BYTES:], body)
    start = PREFIX.size + CONTRIBUTION_HEAD.size
    seeds = parameters.blocks(attendance.values, attendance.votes)
    slots = parameters.slots(attendance.values, attendance.votes)
    held = start + packed_length(members, 1)
    packed = held + seeds * SEED_BYTES
    return Contribution(
        run=run, round=round_, attempt=attempt, node=node, values=values, votes=votes,
        plan=plan, key=key, cohort=cohort, support=support,
        held=tuple(bool(bit) for bit in unpack_bits(data[start:held], members, 1)),
        seeds=tuple(data[held + i * SEED_BYTES : held + (i + 1) * SEED_BYTES] for i in range(seeds)),
        first=unpack_bits(body[packed:], slots, parameters.width_up),
    )  # fmt: skip


def encode_aggregate(a: Aggregate, parameters: Parameters) -> bytes:
    """The aggregate as one message. It is not signed: nobody but the cohort's secret vouches for a sum."""
    seeds = isinstance(a.second, tuple)
    if isinstance(a.second, tuple):
        second = b"".join(seed for block in a.second for seed in block)
    else:
        second = pack_bits(a.second.ravel(), COEFFICIENT_BITS)
    body = b"".join([pack_bits(a.first, parameters.width_down), second, a.sealed])
    head = AGGREGATE_HEAD.pack(
        a.run, a.round, a.attempt, a.clients, a.members, a.group, a.values, a.votes, len(body), seeds, a.weight,
        a.total, a.plan, a.key, a.cohort, a.support, a.voucher,
    )  # fmt: skip
    return prefix(AGGREGATE) + head + body


def aggregates(data: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The aggregates that stand end to end in these bytes, each with the fields of its head; nothing else is read.

    Raises:
        MalformedMessage: The last one ends too early, or there are more than any cohort has groups.
    """
    at, count = 0, 0
    while at < len(data):
        head, _ = open_frame(data[at : at + PREFIX.size + AGGREGATE_HEAD.size], AGGREGATE, AGGREGATE_HEAD)
        fields = dict(zip(AGGREGATE_FIELDS, head, strict=True))
        end = at + PREFIX.size + AGGREGATE_HEAD.size + fields["length"]
        if end > len(data) or count == MOST_SETS:
            raise MalformedMessage("the aggregates end too early, or are too many")
        yield data[at:end], fields
        at, count = end, count + 1


def decode_aggregate(data: bytes, parameters: Parameters) -> Aggregate:
    """Read an aggregate.

    Raises:
        MalformedMessage: It does not parse.
    """
    fields, rest = open_frame(data, AGGREGATE, AGGREGATE_HEAD)
    head = dict(zip(AGGREGATE_FIELDS, fields, strict=True))
    length, seeds = head.pop("length"), head.pop("by_seeds")
    clients, values, votes = head["clients"], head["values"], head["votes"]
    counts = 0 < clients <= head["members"] <= parameters.grid.clients and 0 < head["weight"] <= head["total"]
    if not counts or votes not in (0, values) or seeds not in (0, 1):
        raise MalformedMessage("the aggregate's counts do not fit the plan")
    slots, blocks = parameters.slots(values, votes), parameters.blocks(values, votes)
    packed = packed_length(slots, parameters.width_down)
    tail = packed + blocks * (clients * SEED_BYTES if seeds else packed_length(DEGREE, COEFFICIENT_BITS))
    if not tail <= length == len(rest):
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
