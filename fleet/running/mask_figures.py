"""What the operator of a local run sees of its masks, round by round: figures that only those who can open a sum have.

The aggregator must not learn which weights survive, and so gets none of this from the clients; the operator holds the
cohort secret, opens each aggregate as a client does, and adds to the round's line of `metrics.jsonl`:

* ``regrown``: positions that the new model uses and the last one did not;
* ``agreement``: of two clients' masks the positions that both keep, as a share of those that one of them keeps, pooled
  over all pairs, from the sum of the votes; null where there were none;
* ``layer_density``: the share of each trainable tensor that is left, over all clients where each has its own model;
* ``work_left``: the share of the weights' multiply-accumulates on one sample that is left.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from aggregator.records import MaskFigures
from edge_client.sparsify.interface import plain_name
from edge_client.sums import next_state, open_sum
from fleet.results.opened_run import OpenedRun
from fleet.results.personal_models import alive_by_tensor
from protocol.errors import Spoiled
from protocol.grid import Integers
from protocol.layout import Layout, Mask


class MaskWatch:
    """Opens the sums of a local run as they are completed."""

    def __init__(self, run: OpenedRun) -> None:
        self._run = run
        self._alive = run.network.method.alive(run.network.layout, run.state())

    def figures(self, round_: int, aggregate: bytes) -> MaskFigures:
        """The figures of a round, from its aggregate.

        There are none of a spoiled one, nor of the one after the last round, which holds no values.
        """
        if round_ > self._run.plan.rounds:
            return MaskFigures()
        run, network = self._run, self._run.network
        layout, method = network.layout, network.method
        try:
            total = open_sum(aggregate, run.journal.run, round_, run.opener, run.plan, layout)
        except Spoiled:
            return MaskFigures()
        state = next_state(total, round_, run.plan, layout, method)
        before, self._alive = self._alive, method.alive(layout, state)
        ranked = layout.prunable[total.terms.support.positions]
        counts = alive_by_tensor(run, state) if method.personal(network.model) else _counts(self._alive, layout)
        return MaskFigures(
            regrown=int((self._alive & ~before & layout.prunable).sum()),
            agreement=agreement(total.votes[ranked], total.clients) if total.votes.size else None,
            layer_density={name: kept / size for name, (kept, size) in counts.items()},
            work_left=work_left(counts, network.work),
        )


def agreement(votes: Integers, clients: int) -> float | None:
    """How far the masks behind a sum of votes, i64[n], agree: pooled intersection over union of all pairs of clients.

    Of a position with v votes among K clients, v (v - 1) / 2 pairs have it in both masks, and in neither
    (K - v) (K - v - 1) / 2.
    """
    both = int((votes * (votes - 1) // 2).sum())
    neither = int(((clients - votes) * (clients - votes - 1) // 2).sum())
    either = votes.size * (clients * (clients - 1) // 2) - neither
    return both / either if either else None


def work_left(counts: Mapping[str, tuple[int, int]], work: Mapping[str, int]) -> float:
    """The share of the multiply-accumulates that is left.

    Args:
        counts: The positions left, and all positions, of each tensor.
        work: The multiply-accumulates of each position, of weights alone.
    """
    dense = sum(each * counts[name][1] for name, each in work.items())
    return sum(each * counts[name][0] for name, each in work.items()) / dense


def _counts(alive: Mask, layout: Layout) -> dict[str, tuple[int, int]]:
    cuts: list[Any] = np.split(alive, layout.offsets[1:-1])
    return {
        plain_name(tensor.name): (int(cut.sum()), tensor.size)
        for tensor, cut in zip(layout.tensors, cuts, strict=True)
        if tensor.trainable
    }
