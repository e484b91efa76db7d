"""The pair deal / take: the shares of an attempt's secrets, from each invited node to each.

Law: ``take`` at a node gives the shares that ``deal`` has made for it, and None for whatever is not from the member
that it stands under, or was made for another attempt, or is not what the dealer has committed to.

A share is sealed to its receiver with ChaCha20-Poly1305 under a key of the two nodes' long-term X25519 keys and the
dealer's new one, so each key seals once. The aggregator carries the shares and can read none; by the commitments it
tells a share that its receiver has changed from one that its dealer has made wrong.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from edge_client.keys import Kit
from protocol import DOMAIN
from protocol.attendance import SHARE_BYTES, Attendance
from protocol.call import Call
from protocol.errors import MalformedMessage
from protocol.openings import Nodes
from protocol.sharing import COMMITMENT_BYTES, SECRET_BYTES, commit, draw_secret, split, threshold

_ONCE: Final = bytes(12)
"""The nonce of a key that seals once."""
_SEALED: Final = SHARE_BYTES - 2 * COMMITMENT_BYTES


@dataclass(frozen=True)
class Secrets:
    """What masks one contribution, made for one attempt and thrown away with it.

    Attributes:
        exchange: An X25519 private key, 32 bytes: of the pairs' masks.
        seed: Of the mask of its own, 32 bytes.
    """

    exchange: bytes
    seed: bytes

    @classmethod
    def draw(cls) -> Self:
        """New ones."""
        return cls(draw_secret(), draw_secret())

    @property
    def public(self) -> bytes:
        """The public half of the exchange key, 32 bytes."""
        return self._private.public_key().public_bytes_raw()

    def shared(self, public: bytes) -> bytes:
        """The X25519 secret with another member's new key, 32 bytes."""
        return self._private.exchange(X25519PublicKey.from_public_bytes(public))

    @cached_property
    def _private(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(self.exchange)


def deal(secrets: Secrets, invited: Nodes, call: Call, kit: Kit, colluders: int) -> bytes:
    """The shares of a node's secrets, for the invited by ascending number, `SHARE_BYTES` each.

    Args:
        secrets: The node's.
        invited: The numbers of those who get a share; the node itself is one of them.
        call: The `train` message that is answered.
        kit: The node's keys.
        colluders: How many clients may work with the aggregator.
    """
    nodes, least, public = sorted(invited), threshold(len(invited), colluders), secrets.public
    of_exchange, of_seed = (split(secret, least, nodes) for secret in (secrets.exchange, secrets.seed))
    dealt = []
    for node in nodes:
        cipher = ChaCha20Poly1305(_key(kit, node, public, (kit.node, node)))
        sealed = cipher.encrypt(_ONCE, of_exchange[node] + of_seed[node], _attempt(call))
        dealt += [sealed, commit(of_exchange[node], COMMITMENT_BYTES), commit(of_seed[node], COMMITMENT_BYTES)]
    return b"".join(dealt)


def take(dealt: bytes, members: Sequence[Attendance], call: Call, kit: Kit) -> Iterator[bytes | None]:
    """The shares that a node was dealt, 64 bytes of each member: of its exchange key, then of its seed.

    Args:
        dealt: What each member has dealt this node, `SHARE_BYTES` each.
        members: The members, in the same order.
        call: The message that they attend for.
        kit: The node's keys.

    Raises:
        MalformedMessage: It is not one deal per member.
    """
    if len(dealt) != SHARE_BYTES * len(members):
        raise MalformedMessage(f"{len(dealt)} bytes are not the shares of {len(members)} members")
    for i, member in enumerate(members):
        one = dealt[i * SHARE_BYTES : (i + 1) * SHARE_BYTES]
        cipher = ChaCha20Poly1305(_key(kit, member.node, member.exchange, (member.node, kit.node)))
        try:
            shares = cipher.decrypt(_ONCE, one[:_SEALED], _attempt(call))
        except InvalidTag:
            yield None
            continue
        halves = shares[:SECRET_BYTES], shares[SECRET_BYTES:]
        yield shares if one[_SEALED:] == b"".join(commit(half, COMMITMENT_BYTES) for half in halves) else None


def _key(kit: Kit, peer: int, public: bytes, way: tuple[int, int]) -> bytes:
    """The key of the one share that goes this way, from the first number to the second."""
    info = DOMAIN + b"share" + struct.pack("<II", *way)
    return HKDF(SHA256(), 32, salt=public, info=info).derive(kit.pair_secret(peer))


def _attempt(call: Call) -> bytes:
    return call.run + struct.pack("<II", call.round, call.attempt)
