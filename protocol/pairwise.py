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
from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocol import DOMAIN
from protocol.lanes import Slots

_SPARE = 64
_BEFORE_REDUCTION = 8  # t is below 2^60, so nine summands fit a word of 64 bits


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
    limit = np.uint64((1 << 64) // modulus * modulus - 1)
    accepted = _below(encryptor.update(bytes(8 * (count + _SPARE))), limit)
    while accepted.size < count:
        more = _below(encryptor.update(bytes(8 * (count - accepted.size + _SPARE))), limit)
        accepted = np.concatenate([accepted, more])
    return accepted[:count] % np.uint64(modulus)


def _below(stream: bytes, limit: np.uint64) -> Slots:
    """The words of a stream that are at most ``limit``, u64[<= len(stream) / 8]."""
    words = np.frombuffer(stream, "<u8")
    return words if words.max() <= limit else words[words <= limit]


def mask(size: int, node: int, own: bytes, keys: Mapping[int, bytes], modulus: int) -> Slots:
    """What hides one client's slots: the mask of its own, and those of its pairs, u64[size] below t.

    Args:
        size: How many slots.
        node: The client's number.
        own: The key of its own mask.
        keys: For other members of the cohort, the number and the key of the pair.
        modulus: t.
    """
    t = np.uint64(modulus)
    total = keystream(own, size, modulus)
    for number, (peer, key) in enumerate(keys.items(), start=2):
        stream = keystream(key, size, modulus)
        if node > peer:
            np.subtract(t, stream, out=stream)
        total += stream
        if number % _BEFORE_REDUCTION == 0:
            total %= t
    total %= t
    return total
