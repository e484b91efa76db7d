"""The pairs encode / decode of the third message of a round and its answer: whose sums are opened, and who consents.

Laws: as in `protocol/wire.py`.
"""

import struct
from dataclasses import dataclass
from typing import Final

from protocol.errors import MalformedMessage
from protocol.frame import CONSENT, PREFIX, RELEASE, SIGNATURE_BYTES, open_frame, prefix
from protocol.openings import Nodes, encode_sets, sets_at
from protocol.roster import Roster
from protocol.sharing import SECRET_BYTES

RELEASE_HEAD = struct.Struct("<16s3I32sI")
RELEASE_FIELDS = ("run", "round", "attempt", "members", "cohort", "terms")
CONSENT_HEAD = struct.Struct("<16s5I32sI")
CONSENT_FIELDS = ("run", "round", "attempt", "node", "members", "sets", "cohort", "sealed_bytes")
VOUCHER_BYTES: Final = 32


@dataclass(frozen=True)
class Release:
    """Whose contributions are in the sum, or in each of several, and are to be opened.

    Attributes:
        run, round, attempt: The attempt's.
        members: How many members the announced cohort has.
        cohort: Its digest, 32 bytes.
        terms: Whether this node is to send the sealed terms as well.
        sets: Of each sum, the numbers of the nodes whose contributions are in it; sums in the order of their groups.
    """

    run: bytes
    round: int
    attempt: int
    members: int
    cohort: bytes
    terms: bool
    sets: tuple[Nodes, ...]

    @property
    def nodes(self) -> Nodes:
        """Whose contributions are in some sum."""
        return Nodes().union(*self.sets)


@dataclass(frozen=True)
class Consent:
    """A client's consent to a release: for each member, a share of what its mask in the sum is made from.

    Attributes:
        run, round, attempt, members, cohort: As in the release.
        node: The client's number.
        vouchers: For each sum, what its aggregate needs for clients to believe whose sum it is, 32 bytes.
        shares: For each member of the cohort, in its order, 32 bytes of a share; zeros for one that was dealt none, and
            for one of a group whose sum is not opened.
        sealed: The sealed terms, or nothing.
    """

    run: bytes
    round: int
    attempt: int
    node: int
    members: int
    cohort: bytes
    vouchers: tuple[bytes, ...]
    shares: tuple[bytes, ...]
    sealed: bytes


def encode_release(r: Release) -> bytes:
    """The release as one message. It is not signed: what it asks for is checked, whoever asks."""
    head = RELEASE_HEAD.pack(r.run, r.round, r.attempt, r.members, r.cohort, r.terms)
    return prefix(RELEASE) + head + encode_sets(r.sets)


def decode_release(data: bytes) -> Release:
    """Read a release.

    Raises:
        MalformedMessage: It does not parse.
    """
    fields, rest = open_frame(data, RELEASE, RELEASE_HEAD)
    run, round_, attempt, members, cohort, terms = fields
    sets, end = sets_at(rest, 0)
    if end != len(rest) or terms not in (0, 1):
        raise MalformedMessage("the release does not end where it says")
    made = Release(run, round_, attempt, members, cohort, bool(terms), sets)
    if not sets or not all(sets) or not sum(map(len, sets)) == len(made.nodes) <= members:
        raise MalformedMessage("the release names no members, or more than there are, or one of them twice")
    return made


def encode_consent(c: Consent) -> bytes:
    """Everything but the signature, which :func:`signed` appends."""
    head = CONSENT_HEAD.pack(c.run, c.round, c.attempt, c.node, c.members, len(c.vouchers), c.cohort, len(c.sealed))
    return b"".join([prefix(CONSENT), head, *c.vouchers, *c.shares, c.sealed])


def consent_length(members: int, sealed: int, sets: int = 1) -> int:
    """The exact length of a signed consent in bytes."""
    body = sets * VOUCHER_BYTES + members * SECRET_BYTES + sealed
    return PREFIX.size + CONSENT_HEAD.size + body + SIGNATURE_BYTES


def decode_consent(data: bytes, roster: Roster) -> Consent:
    """Read a signed consent.

    Raises:
        MalformedMessage: It does not parse.
        SignatureRefused: It is not signed by the node that it names.
    """
    fields, rest = open_frame(data, CONSENT, CONSENT_HEAD)
    run, round_, attempt, node, members, sets, cohort, sealed = fields
    vouchers = sets * VOUCHER_BYTES
    shares = vouchers + members * SECRET_BYTES
    if len(rest) != shares + sealed + SIGNATURE_BYTES:
        raise MalformedMessage(f"the consent is {len(data)} bytes long; another length was announced")
    roster.verify(node, data[-SIGNATURE_BYTES:], data[:-SIGNATURE_BYTES])
    return Consent(
        run=run, round=round_, attempt=attempt, node=node, members=members, cohort=cohort,
        vouchers=tuple(rest[i : i + VOUCHER_BYTES] for i in range(0, vouchers, VOUCHER_BYTES)),
        shares=tuple(rest[i : i + SECRET_BYTES] for i in range(vouchers, shares, SECRET_BYTES)),
        sealed=rest[shares:-SIGNATURE_BYTES],
    )  # fmt: skip
