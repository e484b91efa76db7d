"""One encrypted sum by TenSEAL's CKKS with NVIDIA FLARE's parameters, timed step by step."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from time import process_time
from typing import Any

import numpy as np
import tenseal as ts

from benchmarks.stopwatch import ADD, ADDED, CLOSE, CONTRIBUTE, DECRYPT, ENCRYPT, FIRST, LAZY, Stopwatch
from protocol.layout import Vector


class Ckks:
    """TenSEAL's CKKS with FLARE's parameters on the same vectors, and the time of every step.

    Args:
        trained: The values of some clients, float32[n] each.
    """

    def __init__(self, trained: Sequence[Vector]) -> None:
        self.watch = Stopwatch()
        self._vector = trained[0]
        self._key = ts.context(
            ts.SCHEME_TYPE.CKKS,
            8192,
            coeff_mod_bit_sizes=[60, 40, 40],
            encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
        )
        self._key.global_scale = 2**40
        self._stored = self._key.serialize(save_secret_key=True)
        self._server = ts.context_from(self._key.serialize(save_relin_keys=False, save_galois_keys=False))
        self._frame = self._encrypt(self._vector)[0].serialize()
        self._sum = self._add_eager(self._add_eager(None)).serialize()

    def mean(self, shares: Mapping[int, float], trained: Sequence[Vector]) -> Vector:
        """The decrypted weighted mean of all these vectors, float32[n]."""
        total = self._encrypt(trained[0] * np.float32(shares[0]))[0]
        for node, vector in enumerate(trained[1:], start=1):
            total.add_(self._encrypt(vector * np.float32(shares[node]))[0])
        return np.array(total.decrypt(), np.float32)

    def repeat(self) -> None:
        """Time every step once more."""
        with self.watch.lap(FIRST):
            ts.context_from(self._stored)
        vector, seconds = self._encrypt(self._vector)
        start = process_time()
        self._frame = vector.serialize()
        self.watch.seconds[ENCRYPT].append(seconds + process_time() - start)
        eager, lazy = self._add_eager(None), self._add_eager(None)
        for _ in range(ADDED):
            with self.watch.lap(ADD):
                self._add_eager(eager)
            with self.watch.lap(LAZY):
                self._add_lazy(lazy)
        with self.watch.lap(CLOSE):
            eager.serialize()
        with self.watch.lap(DECRYPT):
            np.array(ts.ckks_vector_from(self._key, self._sum).decrypt(), np.float32)

    def row(self) -> dict[str, Any]:
        """What was measured."""
        values = self._vector.size
        times = self.watch.per_value(values)
        return {
            "uplink_bytes_per_value": len(self._frame) / values,
            "downlink_bytes_per_value": len(self._sum) / values,
            "us_per_value": {**times, CONTRIBUTE: times[ENCRYPT]},
        }

    def _encrypt(self, values: Vector) -> tuple[Any, float]:
        """A ciphertext and its CPU seconds; TenSEAL's warning about long vectors is kept from the console."""
        with contextlib.redirect_stdout(io.StringIO()):
            start = process_time()
            vector = ts.ckks_vector(self._key, values)
            return vector, process_time() - start

    def _add_eager(self, total: Any) -> Any:
        vector = ts.ckks_vector_from(self._server, self._frame)
        return vector if total is None else total.add_(vector)

    def _add_lazy(self, total: Any) -> Any:
        vector = ts.lazy_ckks_vector_from(self._frame)
        vector.link_context(self._server)
        return total.add_(vector)
