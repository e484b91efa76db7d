"""A baseline that is no method of the product: Top-K as the SparsyFed paper compares with it.

Guastella et al., ICLR 2025, arXiv:2504.05153, and its released code: dense local SGD, then, every round, the global top
of the weights' magnitudes that S leaves room for; biases and normalisation are not ranked. Zero weights have gradients,
so what a client keeps need not be in what it was given: no support can be agreed on, and under encryption every
position travels in every round. After the last round the mean is pruned to S, as SparsyFed's is here.

Importing this module lists it among the methods of this process; the product's own processes do not know it.
"""

from collections.abc import Callable

import numpy as np

from edge_client.sparsify import METHODS
from edge_client.sparsify.allocation import allocate, weights
from edge_client.sparsify.interface import NO_VOTES, GlobalState, Sparsifier
from edge_client.sparsify.topk import kept_at
from protocol.grid import Integers
from protocol.layout import Layout, Mask, Vector


class TopK(Sparsifier):
    """The clients' top weights, averaged."""

    name = "top-k"

    def submit(
        self, trained: Vector, layout: Layout, state: GlobalState, gradient: Callable[[], Vector]
    ) -> tuple[Vector, Mask]:
        """The trained model, all but its largest weights at zero."""
        return np.where(self._top(trained, layout), trained, np.float32(0)), NO_VOTES

    def survivors(self, mean: Vector, votes: Integers, clients: int, layout: Layout, state: GlobalState) -> Mask:
        """Everything until the last round, which is pruned once more."""
        return self._top(mean, layout) if state.round == self.plan.rounds else np.ones(layout.size, np.bool_)

    def _top(self, vector: Vector, layout: Layout) -> Mask:
        ranked = weights(layout)
        room = kept_at(self.plan.sparsity, int(layout.prunable.sum())) - int((layout.prunable & ~ranked).sum())
        return allocate(np.abs(vector), ranked, room, layout, "global", 0.0) | ~ranked


METHODS[TopK.name] = TopK
