"""Pairwise blinding: the pair that is its own inverse, because it cancels in the sum over a cohort.

Law: ``sum_k blind(x_k) == sum_k x_k`` modulo t over exactly the announced cohort; the sum over any other set, and any
multiple of one member's slots, is uniformly random to everybody but the two ends of the pairs left open.

Two clients share an X25519 secret (RFC 7748). HKDF-SHA256 (RFC 5869), salted with the digest of the announced cohort,
turns it into the key of one ChaCha20 stream (RFC 8439). The digest covers a fresh nonce of every member, so no blinding
is ever used twice, whatever run or round an aggregator announces. The client of the lower number adds the stream, the
other one subtracts it (Bonawitz et al., CCS 2017, section 4.1).
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


def blind(slots: Slots, node: int, keys: Mapping[int, bytes], modulus: int) -> Slots:
    """Hide one client's slots, u64[s] below t, from everybody but the sum.

    Args:
        slots: The client's packed values.
        node: The client's own number.
        keys: For every other member of the cohort, its number and the key of the pair.
        modulus: t.
    """
    t = np.uint64(modulus)
    hidden = slots.copy()
    for number, (peer, key) in enumerate(keys.items(), start=1):
        stream = keystream(key, slots.size, modulus)
        if node > peer:
            np.subtract(t, stream, out=stream)
        hidden += stream
        if number % _BEFORE_REDUCTION == 0:
            hidden %= t
    hidden %= t
    return hidden
