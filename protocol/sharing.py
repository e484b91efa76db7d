"""The pair split / join: a secret in shares, of which so many give it back and fewer say nothing about it.

Law: ``join`` of any ``threshold`` shares of ``split(secret, threshold, nodes)``, or more, is the secret; the shares of
any ``threshold - 1`` nodes are uniform, whatever the secret (Shamir, Communications of the ACM 22, 1979).

The secret is the value at zero of a random polynomial modulo 2^255 - 19, a node's share its value at the node's number
plus one. Numbers below that prime, in 32 bytes, are what X25519 takes for a private key.
"""

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from protocol.errors import MalformedMessage

SECRET_BYTES: Final = 32
COMMITMENT_BYTES: Final = 16
_PRIME: Final = (1 << 255) - 19


def threshold(invited: int, colluders: int) -> int:
    """How many shares give a secret back where so many hold one: more than half of the invited and the colluders.

    Two sets of so many of the invited share more than ``colluders``, so one that is honest.
    """
    return (invited + colluders) // 2 + 1


def draw_secret() -> bytes:
    """A new secret, uniform below 2^255 - 19, from the system's generator."""
    return secrets.randbelow(_PRIME).to_bytes(SECRET_BYTES, "little")


def split(secret: bytes, threshold: int, nodes: Iterable[int]) -> dict[int, bytes]:
    """The share of each node, 32 bytes each.

    Args:
        secret: 32 bytes, from :func:`draw_secret`.
        threshold: How many shares are to give it back; 1 or more.
        nodes: The numbers of those that get one.
    """
    polynomial = [_number(secret), *(secrets.randbelow(_PRIME) for _ in range(threshold - 1))]
    shares = {}
    for node in nodes:
        value = 0
        for coefficient in reversed(polynomial):  # Horner
            value = (value * (node + 1) + coefficient) % _PRIME
        shares[node] = value.to_bytes(SECRET_BYTES, "little")
    return shares


def join(shares: Mapping[int, bytes]) -> bytes:
    """The secret, from shares of as many nodes as the threshold asks for, or more.

    Raises:
        MalformedMessage: A share is not 32 bytes of a number below 2^255 - 19.
    """
    nodes = tuple(sorted(shares))
    total = sum(weight * _number(shares[node]) for node, weight in zip(nodes, _at_zero(nodes), strict=True))
    return (total % _PRIME).to_bytes(SECRET_BYTES, "little")


def commit(secret: bytes, size: int = SECRET_BYTES) -> bytes:
    """What names a secret or a share without showing it: both are uniform, so no guess can be tried."""
    return hashlib.blake2b(secret, digest_size=size, person=b"pruneseal commit").digest()


def dealt_digest(dealt: bytes) -> bytes:
    """What names the shares that a node has dealt, 32 bytes."""
    return hashlib.blake2b(dealt, digest_size=32, person=b"pruneseal dealt").digest()


@lru_cache(maxsize=8)
def _at_zero(nodes: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's coefficients, by which values at these nodes' places add up to the value at zero."""
    weights = []
    for node in nodes:
        above, below = 1, 1
        for other in nodes:
            if other != node:
                above = above * (other + 1) % _PRIME
                below = below * (other - node) % _PRIME
        weights.append(above * pow(below, -1, _PRIME) % _PRIME)
    return tuple(weights)


def _number(data: bytes) -> int:
    value = int.from_bytes(data, "little")
    if len(data) != SECRET_BYTES or value >= _PRIME:
        raise MalformedMessage("a share is not 32 bytes of a number below 2^255 - 19")
    return value
