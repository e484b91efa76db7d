"""SEAL objects around residues: everything about a ciphertext that needs no key.

No byte from the network reaches a parser of TenSEAL or SEAL. A message carries residues and a seed; this module checks
that they are in range, writes every header itself and only then lets SEAL load the object. ``Summer`` is all that the
aggregator does with ciphertexts. Law: adding here, then decrypting, adds the plaintexts modulo t.

SEAL's objects are read and written through an anonymous file in memory, since ``tenseal.sealapi`` takes paths only; key
bytes therefore never touch a disk.
"""

import os
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import tenseal.sealapi as seal
import zstandard

from protocol.bits import Words
from protocol.errors import ConfigError, MalformedMessage
from protocol.parameters import DEGREE, MODULUS, SEED_BYTES, Parameters

_HEADER = struct.Struct("<HB2sBHQ")  # magic, header size, version, compression, reserved, total size
_MAGIC, _HEADER_SIZE = 0xA15E, 16
_PLAIN_DATA = 72  # offset of a plaintext's or key's words in its body: parms_id, count, scale, array header, count
_CIPHER_DATA = 97  # offset of a ciphertext's words in its body
_SEED_SIZE = _HEADER_SIZE + 1 + SEED_BYTES  # generator header, generator type, seed
_BLAKE2XB = b"\x01"
_STAND_IN = np.ones(DEGREE, np.uint64)  # not zeros: SEAL refuses a sum whose second half is nothing


class Seal:
    """A SEAL context for one set of parameters, and the byte formats that belong to it. One per thread.

    Raises:
        ConfigError: SEAL refuses the parameters, or the system has no files in memory.
    """

    def __init__(self, parameters: Parameters) -> None:
        if not hasattr(os, "memfd_create"):
            raise ConfigError("PruneSeal needs Linux (memfd_create) to hand keys to SEAL without writing them to disk")
        self.parameters = parameters
        self.context = _context(parameters.plain_modulus)
        self.parms_id = struct.pack("<4Q", *self.context.first_parms_id())
        self._inflate = zstandard.ZstdDecompressor()
        self._file = os.memfd_create("pruneseal", os.MFD_CLOEXEC)
        self._path = f"/proc/self/fd/{self._file}"
        seal.Plaintext("1").save(self._path)
        self._version = self._take()[3:5]
        self._heads = [self._cipher_head(seeded=seeded) for seeded in (False, True)]
        self._generator = self._header(_SEED_SIZE) + _BLAKE2XB

    def close(self) -> None:
        """Free the file in memory."""
        os.close(self._file)

    def load(self, item: Any, body: bytes) -> Any:
        """Let SEAL read a body that *we* wrote into an object of its own; the file forgets it."""
        try:
            os.pwritev(self._file, [self._header(_HEADER_SIZE + len(body)), body], 0)
            item.load(self.context, self._path)
        finally:
            os.ftruncate(self._file, 0)
        return item

    def save(self, item: Any, limit: int) -> bytes:
        """The inflated body of an object that SEAL made; ``limit`` is its exact largest size in bytes."""
        item.save(self._path)
        data = self._take()
        if data[5] == 0:
            return data[_HEADER_SIZE:]
        return self._inflate.decompress(data[_HEADER_SIZE:], max_output_size=limit)

    def plaintext(self, words: Words, parms_id: bytes = bytes(32)) -> bytes:
        """The body of a plaintext; with the context's ``parms_id`` and N words, that of a secret key."""
        return parms_id + struct.pack("<Qd", words.size, 1.0) + self._array(words.size) + words.astype("<u8").tobytes()

    def plaintext_words(self, item: Any) -> Words:
        """The coefficients of a plaintext or the words of a key, u64[N]; SEAL leaves leading zeros out."""
        words = np.zeros(DEGREE, np.uint64)
        data = np.frombuffer(self.save(item, _PLAIN_DATA + 8 * DEGREE), "<u8", offset=_PLAIN_DATA)
        words[: data.size] = data
        return words

    def ciphertext(self, first: Words, second: Words | bytes) -> Any:
        """A SEAL ciphertext from its first half, u64[N], and its second half or the seed of it.

        Raises:
            MalformedMessage: A residue is not below q, or the seed is not 64 bytes long.
        """
        if isinstance(second, bytes):
            if first.shape != (DEGREE,) or len(second) != SEED_BYTES:
                raise MalformedMessage("a seeded ciphertext is N residues and a 64-byte seed")
        else:
            if first.shape != (DEGREE,) or second.shape != (DEGREE,):
                raise MalformedMessage("a ciphertext is twice N residues")
            _require_heads(second, 0)
        _require_heads(first, 0)
        return self.assemble(seal.Ciphertext(), first, second)

    def assemble(self, item: Any, first: Words, second: Words | bytes) -> Any:
        """Let SEAL read a ciphertext into an object of its own, as :meth:`ciphertext` does once all is checked.

        A ciphertext is no secret and the next one takes its place, so the file need not forget it.
        """
        seeded = isinstance(second, bytes)
        rest = self._generator + second if isinstance(second, bytes) else np.ascontiguousarray(second, "<u8").data
        os.pwritev(self._file, [self._heads[seeded], np.ascontiguousarray(first, "<u8").data, rest], 0)
        item.load(self.context, self._path)
        return item

    def _cipher_head(self, *, seeded: bool) -> bytes:
        """What stands before the words of a ciphertext."""
        meta = self.parms_id + struct.pack("<BQQQdQ", 0, 2, DEGREE, 1, 1.0, 1)
        words, tail = (DEGREE, _SEED_SIZE) if seeded else (2 * DEGREE, 0)
        return self._header(_HEADER_SIZE + _CIPHER_DATA + 8 * words + tail) + meta + self._array(words)

    def halves(self, item: Any) -> tuple[Words, Words]:
        """Both halves of a ciphertext, u64[N] each."""
        words = np.frombuffer(self.save(item, _CIPHER_DATA + 16 * DEGREE), "<u8", 2 * DEGREE, _CIPHER_DATA)
        return words[:DEGREE].astype(np.uint64), words[DEGREE:].astype(np.uint64)

    def seeded(self, item: Any) -> tuple[Words, bytes]:
        """The first half, u64[N], and the seed of a ciphertext that SEAL has just encrypted symmetrically."""
        body = self.save(item, _CIPHER_DATA + 8 * DEGREE + _SEED_SIZE)
        first = np.frombuffer(body, "<u8", DEGREE, _CIPHER_DATA)
        return first, body[_CIPHER_DATA + 8 * DEGREE + _SEED_SIZE - SEED_BYTES :]

    def _take(self) -> bytes:
        """What SEAL has written; the file is empty again."""
        data = os.pread(self._file, os.fstat(self._file).st_size, 0)
        os.ftruncate(self._file, 0)
        return data

    def _header(self, total: int) -> bytes:
        return _HEADER.pack(_MAGIC, _HEADER_SIZE, self._version, 0, 0, total)

    def _array(self, count: int) -> bytes:
        """What stands before ``count`` words."""
        return self._header(_HEADER_SIZE + 8 + 8 * count) + struct.pack("<Q", count)


@lru_cache(maxsize=8)
def _context(plain_modulus: int) -> Any:
    """SEAL's context, which is never changed; building one takes longer than encrypting 100,000 values.

    Raises:
        ConfigError: SEAL refuses the parameters.
    """
    scheme = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
    scheme.set_poly_modulus_degree(DEGREE)
    scheme.set_coeff_modulus([seal.Modulus(MODULUS)])
    scheme.set_plain_modulus(plain_modulus)
    context = seal.SEALContext(scheme, True, seal.SEC_LEVEL_TYPE.TC128)
    if not context.parameters_set():
        raise ConfigError(f"SEAL refuses the parameters: {context.parameters_error_message()}")
    return context


def truncate(first: Words, drop: int) -> Words:
    """Leave the low ``drop`` bits of each residue out."""
    return first >> np.uint64(drop)


def _require_heads(words: Words, drop: int) -> None:
    if words.size and int(words.max()) > (MODULUS - 1) >> drop:
        raise MalformedMessage("a residue is not below the modulus")


def restore(words: Words, drop: int) -> Words:
    """Put the midpoint where the low bits were, modulo q. The error is at most 2^(drop - 1).

    Raises:
        MalformedMessage: A word is not the head of a residue below q.
    """
    _require_heads(words, drop)
    if drop == 0:
        return words
    middles: Words = words << np.uint64(drop)
    middles += np.uint64(1 << (drop - 1))
    np.minimum(middles, middles - np.uint64(MODULUS), out=middles)  # what would be negative wraps to a larger word
    return middles


def blocks(used: Words) -> Words:
    """Cut the used coefficients, u64[slots], into ciphertexts, u64[blocks, N]; unused coefficients are zero.

    A coefficient of the plaintext depends on the same coefficient of the first half and on the second half alone,
    so the coefficients that no lane uses need not travel.
    """
    cut = np.zeros(-(-used.size // DEGREE) * DEGREE, np.uint64)
    cut[: used.size] = used
    return cut.reshape(-1, DEGREE)


class Summer:
    """A running sum of ciphertexts, one per block; what the aggregator computes, without a key.

    SEAL adds a ciphertext's halves each on its own. Where the sum of the second halves is not asked for, a constant
    takes the place of each, since most of the work would be to expand their seeds.

    Args:
        machine: SEAL.
        halves: Both halves of a sum to go on with, as :meth:`halves` gave them.
        whole: Whether the second halves are added up as well.
    """

    def __init__(self, machine: Seal, halves: tuple[Words, Words] | None = None, *, whole: bool = True) -> None:
        self._seal, self._whole = machine, whole
        self._evaluator = seal.Evaluator(machine.context)
        self._total: list[Any] = [machine.ciphertext(*pair) for pair in zip(*halves, strict=True)] if halves else []

    def add(self, first: Words, seeds: Sequence[bytes]) -> None:
        """Add one contribution: the used coefficients, u64[slots], restored, and one seed per block.

        Raises:
            MalformedMessage: The residues or seeds are not those of this many blocks; nothing was added.
        """
        rows = blocks(first)
        if len(rows) != len(seeds) or (self._total and len(rows) != len(self._total)):
            raise MalformedMessage(f"{len(rows)} ciphertexts with {len(seeds)} seeds do not fit the sum")
        if any(len(seed) != SEED_BYTES for seed in seeds):
            raise MalformedMessage(f"the seed of a ciphertext is {SEED_BYTES} bytes long")
        _require_heads(first, 0)
        seconds: Sequence[bytes | Words] = seeds if self._whole else [_STAND_IN] * len(seeds)
        if not self._total:
            self._total = [self._seal.assemble(seal.Ciphertext(), *each) for each in zip(rows, seconds, strict=True)]
            return
        item = seal.Ciphertext()
        for total, row, second in zip(self._total, rows, seconds, strict=True):
            self._evaluator.add_inplace(total, self._seal.assemble(item, row, second))

    def unmask(self, slots: Words) -> None:
        """Take slots, u64[slots] below t, from what the sum decrypts to; as much as one more rounding of noise."""
        for total, row in zip(self._total, blocks(slots), strict=True):
            self._evaluator.sub_plain_inplace(total, self._seal.load(seal.Plaintext(), self._seal.plaintext(row)))

    def halves(self) -> tuple[Words, Words]:
        """Both halves of the sum, u64[blocks, N] each."""
        pairs = [self._seal.halves(total) for total in self._total]
        return np.stack([first for first, _ in pairs]), np.stack([second for _, second in pairs])
