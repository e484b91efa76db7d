"""The tag: a few slots by which a client knows that nobody has added to what it decrypts.

Law: ``sum_k tag(x_k, 1) == tag(sum_k x_k, K)`` modulo t, for the integers x_k of K clients. Whatever else is put in the
place of the sum, the tags or K, as any function of them but without the key, fails but with probability 2^-128.

The tag of x, i64[n], is T_j = sum_i r[i + j] x[i] + K s[j] modulo t: r of `Parameters.tag_bits` bits and s below t,
both uniform, expanded from the key by ChaCha20. The argument:

* T is independent of r, for K s is uniform (K < R, and R is prime, so K is a unit modulo t = R^f). So even what depends
  on sum and tags, as with somebody who adds BFV ciphertexts up or multiplies them, is chosen independently of r.
* A change d of the sum has entries |d[i]| <= 2 (Q + K - 1) < R, so each is zero or a unit. Let d[i] be the last that is
  not zero. Then the j-th sum holds r[i + j] times a unit, and no sum before it holds r[i + j]: a Toeplitz matrix
  (Krawczyk, Crypto 1994; Carter and Wegman 1979). So each sum takes the one value that the changed tag asks for with
  probability 2^-tag_bits at most, given those before it.
* Where d is zero, nothing but the true tags will do.

Slots add up modulo t, so the tags of a sum show nothing of its summands beyond the sum itself. The key must never see
two different vectors of one client: it is derived for one cohort of one attempt (`edge_client.round.tag_key`).
"""

from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from protocol.grid import Integers
from protocol.lanes import Slots
from protocol.pairwise import keystream
from protocol.parameters import Parameters

TAG_KEY_BYTES: Final = 64
_WORD, _HALF_BITS, _EXACT_BITS = 4, 16, 53
_CHUNK: Final = 1 << 13  # stays in the processor's cache, and BLAS wakes no threads for so few


def tag(x: Integers, clients: int, key: bytes, parameters: Parameters) -> Slots:
    """The tag of one client's integers, or of the sum of several clients': u64[p.tags] below t.

    In float64, which BLAS multiplies fastest: the sums of a chunk of integers times half a word of r are exact.

    Args:
        x: i64[n], all that a client gives to the sum or all that a sum holds; each at most Q + K - 1 in magnitude.
        clients: How many clients' it is.
        key: 64 bytes.
        parameters: The plan's parameters.

    Raises:
        ValueError: An integer is beyond the reach of a sum.
    """
    t, reach, count = parameters.plain_modulus, parameters.grid.reach, parameters.tags
    if x.size and not -reach <= x.min() <= x.max() <= reach:
        raise ValueError(f"an integer is larger than {reach} in magnitude")
    stream = Cipher(algorithms.ChaCha20(key[:32], bytes(16)), mode=None).encryptor()
    tags, shift = [clients * int(s) for s in keystream(key[32:], count, t)], np.uint32(8 * _WORD - parameters.tag_bits)
    chunk = min(_CHUNK, (1 << (_EXACT_BITS - _HALF_BITS)) // reach)
    zeros, factors = bytes(_WORD * chunk), np.frombuffer(stream.update(bytes(_WORD * (count - 1))), "<u4") >> shift
    for start in range(0, x.size, chunk):
        part = x[start : start + chunk].astype(np.float64)
        words = np.frombuffer(stream.update(zeros[: _WORD * part.size]), "<u4")
        factors = np.concatenate([factors[factors.size - count + 1 :], words >> shift])
        halves = factors.view("<u2").reshape(-1, 2)
        low, high = (np.correlate(halves[:, half].astype(np.float64), part, "valid") for half in (0, 1))
        tags = [each + int(a) + (int(b) << _HALF_BITS) for each, a, b in zip(tags, low, high, strict=True)]
    return np.array([each % t for each in tags], np.uint64)
