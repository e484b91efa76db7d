"""What SparsyFed and two baselines share: a Top-K over weights alone, without biases and normalisation."""

import numpy as np
from torch import nn

from edge_client.sparsify.allocation import Allocating, allocate, weights
from edge_client.sparsify.options import Option
from edge_client.sparsify.powerprop import Reparametrised, layers
from edge_client.sparsify.topk import kept_at
from protocol.errors import ConfigError
from protocol.layout import Layout, Mask, Vector
from protocol.plan import Plan


class RankedWeights(Allocating, Reparametrised):
    """A method that ranks weights, and prunes neither biases nor normalisation nor, if asked to, the first layer."""

    dense_first = Option(False, "Do not prune the first layer.")

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._dense: str | None = None

    def wear(self, model: nn.Module) -> nn.Module:
        """As any model; remembers which layer is the first."""
        if self.dense_first:
            self._dense = next((f"{name}." for name, _ in layers(model)), None)
        return super().wear(model)

    def ranked(self, layout: Layout) -> Mask:
        """The positions that are ranked, bool[P]."""
        ranked = weights(layout)
        for tensor, start in zip(layout.tensors, layout.offsets, strict=False):
            if self._dense is not None and tensor.name.startswith(self._dense):
                ranked[start : start + tensor.size] = False
        return ranked

    def top(self, scores: Vector, sparsity: float, rule: str, layout: Layout, alive: Mask) -> Mask:
        """The top weights among what is alive that a sparsity of the whole model leaves room for, and all the rest.

        Raises:
            ConfigError: Nothing is left for the weights.
        """
        ranked = self.ranked(layout)
        others = int((layout.prunable & ~ranked).sum())
        room = kept_at(sparsity, int(layout.prunable.sum())) - others
        if room < 1:
            raise ConfigError(
                f"sparsity {sparsity} leaves no weight: {self.name} does not prune {others} of the positions (biases, "
                "normalisation, a dense first layer); choose a lower one"
            )
        mask = allocate(np.abs(scores), ranked & alive, room, layout, rule, self.layer_floor)
        return mask | (alive & ~ranked)
