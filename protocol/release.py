"""The pairs encode / decode of the third message of a round and its answer: whose sum is opened, and who consents.

Laws: as in `protocol/wire.py`.
"""

import struct
from dataclasses import dataclass
from itertools import pairwise

from protocol.errors import MalformedMessage
from protocol.frame import CONSENT, PREFIX, RELEASE, SIGNATURE_BYTES, open_frame, prefix
from protocol.openings import MOST_NODES
from protocol.roster import Roster
from protocol.sharing import SECRET_BYTES

RELEASE_HEAD = struct.Struct("<16s3I32s2I")
RELEASE_FIELDS = ("run", "round", "attempt", "members", "cohort", "terms", "nodes")
CONSENT_HEAD = struct.Struct("<16s4I32s32sI")
CONSENT_FIELDS = ("run", "round", "attempt", "node", "members", "cohort", "voucher", "sealed_bytes")


@dataclass(frozen=True)
class Release:
    """Whose contributions are in the sum, and are to be opened.

    Attributes:
        run, round, attempt: The attempt's.
        members: How many members the announced cohort has.
        cohort: Its digest, 32 bytes.
        terms: Whether this node is to send the sealed terms as well.
        nodes: The numbers of the nodes whose contributions are in the sum.
    """

    run: bytes
    round: int
    attempt: int
    members: int
    cohort: bytes
    terms: bool
    nodes: frozenset[int]


@dataclass(frozen=True)
class Consent:
    """A client's consent to a release: for each member, a share of what its mask in the sum is made from.

    Attributes:
        run, round, attempt, members, cohort: As in the release.
        node: The client's number.
        voucher: What the aggregate needs for clients to believe whose sum it is, 32 bytes.
        shares: For each member of the cohort, in its order, 32 bytes of a share; zeros for one that was dealt none.
        sealed: The sealed terms, or nothing.
    """

    run: bytes
    round: int
    attempt: int
    node: int
    members: int
    cohort: bytes
    voucher: bytes
    shares: tuple[bytes, ...]
    sealed: bytes


def encode_release(r: Release) -> bytes:
    """The release as one message. It is not signed: what it asks for is checked, whoever asks."""
    nodes = sorted(r.nodes)
    head = RELEASE_HEAD.pack(r.run, r.round, r.attempt, r.members, r.cohort, r.terms, len(nodes))
    return prefix(RELEASE) + head + struct.pack(f"<{len(nodes)}I", *nodes)


def decode_release(data: bytes) -> Release:
    """Read a release.

    Raises:
        MalformedMessage: It does not parse.
    """
    fields, rest = open_frame(data, RELEASE, RELEASE_HEAD)
    run, round_, attempt, members, cohort, terms, count = fields
    if not 0 < count <= min(members, MOST_NODES) or terms not in (0, 1) or len(rest) != 4 * count:
        raise MalformedMessage("the release names no members, or more than there are")
    nodes = struct.unpack(f"<{count}I", rest)
    if any(a >= b for a, b in pairwise(nodes)):
        raise MalformedMessage("the members of a release must stand in ascending order")
    return Release(run, round_, attempt, members, cohort, bool(terms), frozenset(nodes))


def encode_consent(c: Consent) -> bytes:
    """Everything but the signature, which :func:`signed` appends."""
    head = CONSENT_HEAD.pack(c.run, c.round, c.attempt, c.node, c.members, c.cohort, c.voucher, len(c.sealed))
    return b"".join([prefix(CONSENT), head, *c.shares, c.sealed])


def consent_length(members: int, sealed: int) -> int:
    """The exact length of a signed consent in bytes."""
    return PREFIX.size + CONSENT_HEAD.size + members * SECRET_BYTES + sealed + SIGNATURE_BYTES


def decode_consent(data: bytes, roster: Roster) -> Consent:
    """Read a signed consent.

    Raises:
        MalformedMessage: It does not parse.
        SignatureRefused: It is not signed by the node that it names.
    """
    fields, rest = open_frame(data, CONSENT, CONSENT_HEAD)
    run, round_, attempt, node, members, cohort, voucher, sealed = fields
    shares = members * SECRET_BYTES
    if len(rest) != shares + sealed + SIGNATURE_BYTES:
        raise MalformedMessage(f"the consent is {len(data)} bytes long; another length was announced")
    roster.verify(node, data[-SIGNATURE_BYTES:], data[:-SIGNATURE_BYTES])
    return Consent(
        run=run, round=round_, attempt=attempt, node=node, members=members, cohort=cohort, voucher=voucher,
        shares=tuple(rest[i : i + SECRET_BYTES] for i in range(0, shares, SECRET_BYTES)),
        sealed=rest[shares:-SIGNATURE_BYTES],
    )  # fmt: skip
