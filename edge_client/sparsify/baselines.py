"""Two baselines of the papers: plain Top-K, and SNIP."""

from collections.abc import Callable

import numpy as np

from edge_client.sparsify.interface import NO_VOTES, GlobalState
from edge_client.sparsify.ranked import RankedWeights
from protocol.grid import Integers
from protocol.layout import Layout, Mask, Vector


class _WholeAtFirst(RankedWeights):
    """A baseline that prunes nothing before the first round."""

    def first_mask(self, vector: Vector, layout: Layout) -> Mask:
        """Everything, once it is known that the target leaves a weight."""
        self.top(vector, self.plan.sparsity, self.allocation, layout, layout.prunable)
        return super().first_mask(vector, layout)


class TopK(_WholeAtFirst):
    """SparsyFed's baseline: dense local training, then Top-K, every round (arXiv:2504.05153).

    Without powerpropagation a pruned weight has a gradient and grows back, on each client elsewhere, so no support can
    be agreed on and everything travels in every round; the sum is zero where no client has kept a weight. After the
    last round the mean is pruned to S.
    """

    name = "topk"

    def submit(
        self, trained: Vector, layout: Layout, state: GlobalState, gradient: Callable[[], Vector]
    ) -> tuple[Vector, Mask]:
        """Top-K of the trained weights."""
        kept = self.top(trained, self.plan.sparsity, self.allocation, layout, state.mask)
        return np.where(kept, trained, np.float32(0)), NO_VOTES

    def survivors(self, mean: Vector, votes: Integers, clients: int, layout: Layout, state: GlobalState) -> Mask:
        """Everything travels; after the last round the top of the mean stays."""
        if state.round < self.plan.rounds:
            return state.mask
        return self.top(mean, self.plan.sparsity, self.allocation, layout, state.mask)

    def alive(self, layout: Layout, state: GlobalState) -> Mask:
        """The weights that are not zero, and all that is not ranked."""
        alive: Mask = state.mask & ((state.vector != 0) | ~self.ranked(layout))
        return alive


class Snip(_WholeAtFirst):
    """Pruning at start by connection sensitivity, |gradient * weight| (Lee et al., ICLR 2019, arXiv:1810.02340).

    FedSparsify compares itself with it, with the mask of one batch of one learner. Here no learner's mask is shown:
    round 1 is a ballot, in which every client votes for the top of its own sensitivities, on one batch at the initial
    weights, and gives the initial weights unchanged (what it has trained is thrown away). The positions of most votes
    stay, equal ones by magnitude; from round 2 on that mask is trained.
    """

    name = "snip"

    def submit(
        self, trained: Vector, layout: Layout, state: GlobalState, gradient: Callable[[], Vector]
    ) -> tuple[Vector, Mask]:
        """In round 1 the initial weights and a vote for the most sensitive; then what was trained."""
        if state.round:
            return trained, NO_VOTES
        sensitivity = gradient() * state.vector
        return state.vector, self.top(sensitivity, self.plan.sparsity, self.allocation, layout, state.mask)

    def survivors(self, mean: Vector, votes: Integers, clients: int, layout: Layout, state: GlobalState) -> Mask:
        """After round 1 the positions of most votes; they never change again."""
        if state.round > 1:
            return state.mask
        magnitude = np.abs(mean) / (1 + np.abs(mean).max())
        return self.top((votes + magnitude).astype(np.float32), self.plan.sparsity, self.allocation, layout, state.mask)
