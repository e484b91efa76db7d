"""SparsyFed: sparse from the first round, by powerpropagation and Top-K.

Guastella et al., ICLR 2025, arXiv:2504.05153, and the authors' released code.

One round: every client trains theta (`powerprop.py`), in the backward pass with pruned activations: a layer of density
d keeps, of the inputs saved for its weights' gradient, the share d of largest magnitude (the forward pass and the
gradient of the inputs see all of them; the threshold is of each batch, where the authors keep that of a round's first
batch for convolutions). Then it prunes: of all weights of linear and convolutional layers together, the top of |theta|
that S leaves room for stays; biases and normalisation are not ranked. The sum is the mean of what is left, and the next
support is the union of what the clients keep, from their encrypted votes. Since a zero theta has no gradient for
beta > 1, supports only shrink.

Two decisions differ from the authors' code. It trains and sends everything in round 1; here round 1 is sparse
(``start-sparsity``), and its positions follow from the initial model: magnitudes within a layer; between layers by
Erdos-Renyi-Kernel, since before training magnitudes only tell a layer's fan-in. And after the last round the mean is
pruned to S once more, for a union is denser than its parts.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import nn

from edge_client.sparsify.allocation import weights
from edge_client.sparsify.interface import GlobalState
from edge_client.sparsify.options import FRACTION, Option, above
from edge_client.sparsify.powerprop import layers
from edge_client.sparsify.ranked import RankedWeights
from protocol.grid import Integers
from protocol.layout import Layout, Mask, Vector


class SparsyFed(RankedWeights):
    """Sparse from the first round: powerpropagation, and Top-K on every client (SparsyFed, arXiv:2504.05153)."""

    name = "sparsyfed"
    powerprop = replace(
        RankedWeights.powerprop,
        default=1.25,
        help="Beta of powerpropagation, w = sign(theta) * |theta|^beta; its authors use 1.25.",
        range=above(1),
    )
    start_sparsity = Option(
        0.5, "The sparsity that round 1 begins with, or the target where that is lower; 0 as its authors do.", FRACTION
    )

    def wear(self, model: nn.Module) -> nn.Module:
        """Powerpropagation, and activations pruned in the backward pass."""
        model = super().wear(model)
        prune_activations(model)
        return model

    def shed(self, model: nn.Module) -> nn.Module:
        """The weights in place of theta, and the layers' own forward."""
        for _, layer in layers(model):
            vars(layer).pop("forward", None)
        return super().shed(model)

    def first_mask(self, vector: Vector, layout: Layout) -> Mask:
        """The largest initial magnitudes of every layer."""
        self.top(vector, self.plan.sparsity, "erk", layout, layout.prunable)  # refuses a target that leaves no weight
        start = min(self.start_sparsity, self.plan.sparsity)
        return self.top(vector, start, "erk", layout, np.ones(layout.size, np.bool_))

    def submit(
        self, trained: Vector, layout: Layout, state: GlobalState, gradient: Callable[[], Vector]
    ) -> tuple[Vector, Mask]:
        """Top-K of the trained theta, and a vote for every position that is in it."""
        kept = self.top(trained, self.plan.sparsity, self.allocation, layout, state.mask)
        kept &= (trained != 0) | ~weights(layout)
        return np.where(kept, trained, np.float32(0)), kept

    def survivors(self, mean: Vector, votes: Integers, clients: int, layout: Layout, state: GlobalState) -> Mask:
        """The union; after the last round the top of the mean."""
        union: Mask = votes > 0
        if state.round < self.plan.rounds:
            return union
        return self.top(mean, self.plan.sparsity, self.allocation, layout, union)


def prune_activations(model: nn.Module) -> None:
    """Let every linear and convolutional layer of a model save a pruned input for the gradient of its weights.

    The model must wear powerpropagation. A layer that pads its own input (another ``padding_mode`` than zeros) saves
    the padded input, whole.
    """
    for _, layer in layers(model):
        vars(layer)["forward"] = partial(_forward, layer, type(layer).forward)


def _forward(layer: Any, whole: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The layer's own forward, whose input is replaced where autograd saves it."""
    if not layer.training:
        return whole(layer, x)
    theta = layer.parametrizations.weight.original
    density = np.count_nonzero(theta.detach().numpy() != 0) / theta.numel()  # faster than torch's

    def save(tensor: torch.Tensor) -> torch.Tensor:
        return largest(tensor, density) if tensor.data_ptr() == x.data_ptr() else tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        return whole(layer, x)


def largest(tensor: torch.Tensor, density: float) -> torch.Tensor:
    """A tensor with only its share ``density`` of largest magnitudes, ties included; zero elsewhere."""
    size = tensor.numel()
    count = max(1, ceil(density * size))
    if count >= size:
        return tensor
    magnitudes = tensor.detach().abs()
    rank = size - count
    threshold = float(np.partition(magnitudes.numpy(), rank, axis=None)[rank])  # faster than torch's
    return tensor * (magnitudes >= threshold)
