"""One large cohort through the aggregator's own code: contributions, consents, the masks taken out, the aggregate.

Every contribution is a client's own: masked for itself, encrypted and signed. The masks of pairs are left out, since
they cancel; the masks of each client's own come back by shares. Only what the aggregator computes is timed, by the wall
clock, from a frame that has arrived to the aggregate that is sent. The opened sum is compared with the clear integers,
by ``==``.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from time import perf_counter, process_time
from typing import Any, Final

import numpy as np

from aggregator.admission import ContributionAdmission
from aggregator.recovery import Recovery
from aggregator.summation import CohortSum, MaskedSum, dealt_to
from benchmarks.pruneseal import Federation, contribution, federate
from benchmarks.stopwatch import Stopwatch
from edge_client.consenting import consent
from edge_client.dealing import take
from edge_client.sums import open_sum
from protocol.release import Release
from protocol.sharing import threshold
from protocol.wire import encode_aggregate

CLIENTS: Final = 100
VALUES: Final = 1_000_000
LIMIT: Final = 0.02
"""Microseconds of the aggregator's time that one value of one client may take."""

_BITS: Final = 16
READ, ADD, KEEP, RELEASE, CLOSE = "read", "add", "keep", "release", "close"


class Throughput:
    """A cohort, and what it sends the aggregator.

    Args:
        clients: How many.
        values: Values of each.
    """

    def __init__(self, clients: int, values: int) -> None:
        self._federation = f = federate(clients, _BITS, values)
        integers = [f.integers(node) for node in range(len(f.pending))]
        turns = [integers[node % len(integers)] for node in range(clients)]
        self._expected = np.sum(turns, axis=0)
        self._frames = [contribution(f, node, own, (), Stopwatch()) for node, own in enumerate(turns)]
        self._consents = list(_consents(f))

    def run(self) -> dict[str, float]:
        """Once through: seconds by the step, in total, and of all cores."""
        f, seconds = self._federation, dict.fromkeys((READ, ADD, KEEP, RELEASE, CLOSE), 0.0)
        start, cpu = perf_counter(), process_time()

        @contextlib.contextmanager
        def lap(step: str) -> Iterator[None]:
            begun = perf_counter()
            yield
            seconds[step] += perf_counter() - begun

        admission = ContributionAdmission(f.cohort, f.call.attempt, f.plan, f.kits[0].roster)
        with contextlib.closing(CohortSum(f.cohort, f.plan)) as total:
            for node, frame in enumerate(self._frames):
                with lap(READ):
                    admitted = admission.admit(node, frame)
                with lap(ADD):
                    total.add(admitted)
            with lap(KEEP):
                kept = MaskedSum.from_bytes(
                    total.masked(f.call.attempt, f.invited, f.dealt).to_bytes(), f.kits[0].roster
                )
        with lap(RELEASE):
            recovery = Recovery(kept, f.plan, f.kits[0].roster)
            for node, frame in enumerate(self._consents):
                recovery.admit(node, frame)
            masks = recovery.masks()
        with lap(CLOSE):
            (closed,) = kept.aggregates(masks, f.plan, recovery.vouchers, recovery.sealed)
            aggregate = encode_aggregate(closed, f.plan.parameters)
        seconds |= {"all": perf_counter() - start, "cpu": process_time() - cpu}
        opened = open_sum(aggregate, f.call.run, f.call.round, f.kits[-1], f.plan, f.layout)
        assert np.array_equal(opened.values, self._expected), "the decrypted sum differs from the clear one"
        return seconds


def _consents(f: Federation) -> Iterator[bytes]:
    """The consents of as many clients as it takes; the first brings the terms."""
    for node in range(threshold(len(f.invited), f.plan.colluders)):
        mine = dealt_to(node, f.cohort, f.invited, f.dealt)
        shares = tuple(take(mine, f.cohort.members, f.call, f.kits[node]))
        asked = Release(
            f.call.run, f.call.round, f.call.attempt, len(f.kits), f.digest, terms=node == 0, sets=(f.invited,)
        )
        waiting = replace(f.pending[0], secrets=f.secrets[node], shares=shares)
        yield consent(asked, f.cohort, f.call, f.kits[node], f.plan, waiting)


def measure(clients: int, values: int, repeats: int) -> dict[str, Any]:
    """The medians of some runs, after one that does not count."""
    cohort = Throughput(clients, values)
    runs: Sequence[dict[str, float]] = [cohort.run() for _ in range(repeats + 1)][1:]
    per_value = {step: median(run[step] for run in runs) / values / clients * 1e6 for step in runs[0]}
    return {
        "clients": clients,
        "values": values,
        "bits": _BITS,
        "repeats": repeats,
        "us_per_value_and_client": per_value,
        "least": min(run["all"] for run in runs) / values / clients * 1e6,
        "limit": LIMIT,
        "load": os.getloadavg()[0],
    }
