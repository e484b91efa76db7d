"""The masks of a contribution: one of each pair of members, which cancels in their sum, and one of the member's own.

Law: ``sum_k (x_k + mask_k) == sum_k x_k + sum_k self_k`` modulo t over exactly the announced cohort, where ``self_k``
is the mask of k's own. Of whoever is missing, the other halves of its pairs are left as well, as :func:`mask` of the
others for those pairs alone. The sum over any other set, and any multiple of one member's slots, is uniformly random
to everybody who knows neither the seed of one member in it nor the key of a pair that is left open.

Two members share an X25519 secret (RFC 7748), of keys that are made for one attempt and thrown away with it.
HKDF-SHA256 (RFC 5869), salted with the digest of the announced cohort, turns it into the key of one ChaCha20 stream
(RFC 8439); the seed of a member's own mask likewise. The client of the lower number adds the stream of a pair, the
other one subtracts it (Bonawitz et al., CCS 2017, section 4). Seeds and keys come back, where they must, by
`protocol/sharing.py`.
"""

import struct
from collections.abc import Iterable, Mapping

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocol import DOMAIN
from protocol.lanes import Slots

_AT_ONCE = 1 << 15  # words that stay in the processor's cache
_BEFORE_REDUCTION = 15  # t is below 2^60, so sixteen summands fit a word of 64 bits


def pair_key(secret: bytes, cohort: bytes, nodes: tuple[int, int]) -> bytes:
    """The 32-byte stream key of two nodes for one announced cohort, the same at both ends.

    Args:
        secret: The X25519 shared secret of the two nodes.
        cohort: The digest of the announced cohort.
        nodes: The numbers of the two nodes, in any order.
    """
    info = DOMAIN + b"blinding" + struct.pack("<II", *sorted(nodes))
    return HKDF(SHA256(), 32, salt=cohort, info=info).derive(secret)


def self_key(seed: bytes, cohort: bytes, node: int) -> bytes:
    """The 32-byte stream key of a node's own mask for one announced cohort.

    Args:
        seed: 32 bytes, made for one attempt.
        cohort: The digest of the announced cohort.
        node: The number of the node.
    """
    return HKDF(SHA256(), 32, salt=cohort, info=DOMAIN + b"self" + struct.pack("<I", node)).derive(seed)


def keystream(key: bytes, count: int, modulus: int) -> Slots:
    """``count`` independent uniform values below ``modulus``: u64[count]. A fresh key each time.

    Words of the stream at or above the largest multiple of the modulus are passed over, so the values carry no bias.
    """
    encryptor = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    t, limit = np.uint64(modulus), np.uint64((1 << 64) // modulus * modulus - 1)
    values, zeros, filled = np.empty(count, np.uint64), bytes(8 * min(count, _AT_ONCE)), 0
    while filled < count:
        words = np.frombuffer(encryptor.update(zeros[: 8 * (count - filled)]), "<u8")
        if words.max() > limit:
            words = words[words <= limit]
        part = values[filled : filled + words.size]
        np.floor_divide(words, t, out=part)  # by one divisor this is faster than a remainder
        np.subtract(words, np.multiply(part, t, out=part), out=part)
        filled += words.size
    return values


def streams(size: int, keys: Iterable[tuple[bytes, bool]], modulus: int) -> Slots:
    """What key streams add up to, u64[size] below t.

    Args:
        size: How many slots.
        keys: Of each stream its key, and whether it is subtracted.
        modulus: t.
    """
    t, total = np.uint64(modulus), np.zeros(size, np.uint64)
    for number, (key, subtracted) in enumerate(keys, start=1):
        stream = keystream(key, size, modulus)
        total += np.subtract(t, stream, out=stream) if subtracted else stream
        if number % _BEFORE_REDUCTION == 0:
            total %= t
    total %= t
    return total


def mask(size: int, node: int, own: bytes, keys: Mapping[int, bytes], modulus: int) -> Slots:
    """What hides one client's slots: the mask of its own, and those of its pairs, u64[size] below t.

    Args:
        size: How many slots.
        node: The client's number.
        own: The key of its own mask.
        keys: For other members of the cohort, the number and the key of the pair.
        modulus: t.
    """
    pairs = ((key, node > peer) for peer, key in keys.items())
    return streams(size, [(own, False), *pairs], modulus)
