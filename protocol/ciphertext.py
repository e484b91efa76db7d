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
        self._version = self._get()[3:5]

    def close(self) -> None:
        """Free the file in memory."""
        os.close(self._file)

    def load(self, empty: Any, body: bytes) -> Any:
        """Let SEAL read a body that *we* wrote into an empty object of its own."""
        try:
            empty.load(self.context, self._put(self._header(_HEADER_SIZE + len(body)) + body))
        finally:
            os.ftruncate(self._file, 0)
        return empty

    def save(self, item: Any, limit: int) -> bytes:
        """The inflated body of an object that SEAL made; ``limit`` is its exact largest size in bytes."""
        item.save(self._path)
        data = self._get()
        os.ftruncate(self._file, 0)
        if data[5] == 0:
            return data[_HEADER_SIZE:]
        return self._inflate.decompress(data[_HEADER_SIZE:], max_output_size=limit)

    def plaintext(self, words: Words, parms_id: bytes = bytes(32)) -> bytes:
        """The body of a plaintext; with the context's ``parms_id`` and N words, that of a secret key."""
        return parms_id + struct.pack("<Qd", words.size, 1.0) + self._array(words)

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
        meta = self.parms_id + struct.pack("<BQQQdQ", 0, 2, DEGREE, 1, 1.0, 1)
        if isinstance(second, bytes):
            if first.shape != (DEGREE,) or len(second) != SEED_BYTES:
                raise MalformedMessage("a seeded ciphertext is N residues and a 64-byte seed")
            words, tail = first, self._header(_SEED_SIZE) + _BLAKE2XB + second
        else:
            words, tail = np.concatenate([first, second]), b""
            if words.shape != (2 * DEGREE,):
                raise MalformedMessage("a ciphertext is twice N residues")
        if int(words.max()) >= MODULUS:
            raise MalformedMessage("a residue is not below the modulus")
        return self.load(seal.Ciphertext(), meta + self._array(words) + tail)

    def halves(self, item: Any) -> tuple[Words, Words]:
        """Both halves of a ciphertext, u64[N] each."""
        words = np.frombuffer(self.save(item, _CIPHER_DATA + 16 * DEGREE), "<u8", 2 * DEGREE, _CIPHER_DATA)
        return words[:DEGREE].astype(np.uint64), words[DEGREE:].astype(np.uint64)

    def seeded(self, item: Any) -> tuple[Words, bytes]:
        """The first half, u64[N], and the seed of a ciphertext that SEAL has just encrypted symmetrically."""
        body = self.save(item, _CIPHER_DATA + 8 * DEGREE + _SEED_SIZE)
        first = np.frombuffer(body, "<u8", DEGREE, _CIPHER_DATA)
        return first, body[_CIPHER_DATA + 8 * DEGREE + _SEED_SIZE - SEED_BYTES :]

    def _put(self, data: bytes) -> str:
        os.ftruncate(self._file, len(data))
        os.pwrite(self._file, data, 0)
        return self._path

    def _get(self) -> bytes:
        return os.pread(self._file, os.fstat(self._file).st_size, 0)

    def _header(self, total: int) -> bytes:
        return _HEADER.pack(_MAGIC, _HEADER_SIZE, self._version, 0, 0, total)

    def _array(self, words: Words) -> bytes:
        return (
            self._header(_HEADER_SIZE + 8 + words.nbytes)
            + struct.pack("<Q", words.size)
            + words.astype("<u8").tobytes()
        )


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


def restore(words: Words, drop: int) -> Words:
    """Put the midpoint where the low bits were, modulo q. The error is at most 2^(drop - 1).

    Raises:
        MalformedMessage: A word is not the head of a residue below q.
    """
    if words.size and int(words.max()) > (MODULUS - 1) >> drop:
        raise MalformedMessage("a residue is not below the modulus")
    if drop == 0:
        return words
    middle = (words << np.uint64(drop)) + np.uint64(1 << (drop - 1))
    return np.where(middle >= MODULUS, middle - np.uint64(MODULUS), middle)


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

    Args:
        machine: SEAL.
        halves: Both halves of a sum to go on with, as :meth:`halves` gave them.
    """

    def __init__(self, machine: Seal, halves: tuple[Words, Words] | None = None) -> None:
        self._seal = machine
        self._evaluator = seal.Evaluator(machine.context)
        self._total: list[Any] = [machine.ciphertext(*pair) for pair in zip(*halves, strict=True)] if halves else []

    def add(self, first: Words, seeds: Sequence[bytes]) -> None:
        """Add one contribution: the used coefficients, u64[slots], restored, and one seed per block.

        Raises:
            MalformedMessage: The residues or seeds are not those of this many blocks.
        """
        rows = blocks(first)
        if len(rows) != len(seeds) or (self._total and len(rows) != len(self._total)):
            raise MalformedMessage(f"{len(rows)} ciphertexts with {len(seeds)} seeds do not fit the sum")
        loaded = [self._seal.ciphertext(row, seed) for row, seed in zip(rows, seeds, strict=True)]
        if not self._total:
            self._total = loaded
            return
        for total, item in zip(self._total, loaded, strict=True):
            self._evaluator.add_inplace(total, item)

    def unmask(self, slots: Words) -> None:
        """Take slots, u64[slots] below t, from what the sum decrypts to; as much as one more rounding of noise."""
        for total, row in zip(self._total, blocks(slots), strict=True):
            self._evaluator.sub_plain_inplace(total, self._seal.load(seal.Plaintext(), self._seal.plaintext(row)))

    def halves(self) -> tuple[Words, Words]:
        """Both halves of the sum, u64[blocks, N] each."""
        pairs = [self._seal.halves(total) for total in self._total]
        return np.stack([first for first, _ in pairs]), np.stack([second for _, second in pairs])
