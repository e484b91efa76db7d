"""The pair encrypt / decrypt, and the key between them.

Law: ``decrypt(sum of encrypt(x_k)) == sum of x_k`` modulo t, for at most K summands (proved in
`protocol/parameters.py`).

The secret key of a round is a ternary polynomial expanded from a seed by ChaCha20, so every client derives the same one
and none is ever sent. SEAL keeps a key in NTT form; SEAL itself transforms ours, as if it were a plaintext.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
import tenseal.sealapi as seal

from protocol.bits import Words
from protocol.ciphertext import Seal, blocks, restore, truncate
from protocol.lanes import Slots
from protocol.pairwise import keystream
from protocol.parameters import DEGREE, Parameters
from protocol.wire import Aggregate


class RoundCipher:
    """Encrypts updates and decrypts sums under the key of one round. A context manager: leaving it drops the key.

    Args:
        parameters: The plan's parameters.
        seed: 32 bytes from `CohortSecret.bfv_seed`.
    """

    def __init__(self, parameters: Parameters, seed: bytes) -> None:
        self._parameters = parameters
        self._seal = Seal(parameters)
        self._evaluator = seal.Evaluator(self._seal.context)
        key = self._seal.load(seal.Plaintext(), self._seal.plaintext(_ternary(seed, parameters.plain_modulus)))
        self._evaluator.transform_to_ntt_inplace(key, list(self._seal.context.first_parms_id()))
        words = self._seal.plaintext_words(key)
        self._key = self._seal.load(seal.SecretKey(), self._seal.plaintext(words, self._seal.parms_id))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._key
        self._seal.close()

    def encrypt(self, slots: Slots) -> tuple[Words, tuple[bytes, ...]]:
        """u64[slots] below t -> the truncated first halves of the used coefficients, u64[slots], and the seeds."""
        encryptor = seal.Encryptor(self._seal.context, self._key)
        first, seeds = blocks(slots), []
        for row in first:  # each row of the plaintext gives way to its ciphertext's first half
            plain = self._seal.load(seal.Plaintext(), self._seal.plaintext(row))
            row[:], seed = self._seal.seeded(encryptor.encrypt_symmetric(plain))
            seeds.append(seed)
        return truncate(first.reshape(-1)[: slots.size], self._parameters.drop_up), tuple(seeds)

    def decrypt(self, aggregate: Aggregate) -> Slots:
        """The slots of a sum, u64[slots] below t.

        Raises:
            MalformedMessage: A residue is out of range.
        """
        decryptor = seal.Decryptor(self._seal.context, self._key)
        rows = blocks(restore(aggregate.first, self._parameters.drop_down))
        slots = []
        for row, second in zip(rows, aggregate.second, strict=True):
            plain = seal.Plaintext()
            decryptor.decrypt(self._sum(row, second), plain)
            slots.append(self._seal.plaintext_words(plain))
        return np.concatenate(slots)[: aggregate.first.size]

    def _sum(self, first: Words, second: Sequence[bytes] | Words) -> object:
        """The summed ciphertext of one block, from its second half or from the clients' seeds."""
        if isinstance(second, np.ndarray):
            return self._seal.ciphertext(first, second)
        total = self._seal.ciphertext(first, second[0])
        for seed in second[1:]:
            self._evaluator.add_inplace(total, self._seal.ciphertext(np.zeros(DEGREE, np.uint64), seed))
        return total


def _ternary(seed: bytes, modulus: int) -> Words:
    """A uniform ternary polynomial, as coefficients 0, 1 and t - 1: u64[N]."""
    digits = keystream(seed, DEGREE, 3)
    return np.where(digits == 2, np.uint64(modulus - 1), digits)
