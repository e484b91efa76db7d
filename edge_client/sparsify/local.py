"""FedSparsify-Local: the clients purge, and the majority decides.

Stripelis, Gupta, Ver Steeg and Ambite, "Federated Progressive Sparsification (Purge-Merge-Tune)+", arXiv:2204.12430.

One round t: every client tunes w_{t-1} under m_{t-1} and purges its own model to s_t: m_k = top of |w_k|, then
w_k <- m_k * w_k. *Merge*: v = sum_k m_k counts the clients that keep a position, whatever their samples;
m_t = 1[v >= floor(K / 2)], so a tie is kept, and for odd K a little less than half of the clients are enough;
w_t = m_t * sum_k n_k / n * w_k, where a client that has purged a position counts as a zero in its mean.

Here v travels encrypted, one small lane per position. How sparse the majority is depends on how far the clients agree,
so after the last round the mean is purged to S where more than that has been kept.
"""

from collections.abc import Callable

import numpy as np

from edge_client.sparsify.fedsparsify import Progressive
from edge_client.sparsify.interface import NO_VOTES, GlobalState
from edge_client.sparsify.options import Option
from protocol.grid import Integers
from protocol.layout import Layout, Mask, Vector


class FedSparsifyLocal(Progressive):
    """Every client prunes its own model, and the majority decides (FedSparsify-Local, arXiv:2204.12430)."""

    name = "fedsparsify-local"
    granularities = ("weight",)
    strict_majority = Option(False, "Keep what more than half of the clients keep, not what half of them do.")

    def submit(
        self, trained: Vector, layout: Layout, state: GlobalState, gradient: Callable[[], Vector]
    ) -> tuple[Vector, Mask]:
        """The purged model, and a vote for every position that it keeps; no votes before the first purge."""
        round_ = state.round + 1
        if self.sparsity(round_) == 0:
            return trained, NO_VOTES
        kept = self.purge(trained, round_, layout, state.mask)
        return np.where(kept, trained, np.float32(0)), kept

    def survivors(self, mean: Vector, votes: Integers, clients: int, layout: Layout, state: GlobalState) -> Mask:
        """What the majority keeps; after the last round at most what S leaves room for."""
        if self.sparsity(state.round) == 0:
            return state.mask
        quorum = clients // 2 + 1 if self.strict_majority else clients // 2
        elected: Mask = votes >= quorum
        if state.round < self.plan.rounds:
            return elected
        return self.purge(mean, state.round, layout, elected)
