"""SpaFL: one trainable threshold per filter travels; the weights stay at home.

"SpaFL: Communication-Efficient Federated Learning with Sparse Models and Low Computational Overhead", NeurIPS 2024,
openreview.net/forum?id=dAXuir2ets, and its authors' released code.

With mu_i the mean magnitude of the weights of filter or neuron i and tau_i its threshold, the layer computes with
w_ij * 1[mu_i > tau_i] (and its bias likewise): whole filters are on or off. The step's gradient is the identity
(straight-through), or, as ``clipped``, that of the authors' CIFAR code, which lets it through only where
|mu_i - tau_i| > 1. Weights and thresholds are trained together on the cross-entropy plus c * sum_i exp(-tau_i).
*Merge*: the plain mean of the thresholds, whatever the clients' samples. *Update*: a client that receives thresholds
moves its weights by what they have risen since it last did,

    w_ij <- w_ij - (tau_i' - tau_i) * sign(sum_j w_ij) / n_in,

so that a client that has missed rounds catches up with their sum. A layer of which one filter in a hundred or less is
left has its thresholds set back to zero. Thresholds are kept within [-5, 5].

There is no global model: every client has its own, evaluates its own and exports its own.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from edge_client.sparsify.interface import NO_VOTES, GlobalState, Sparsifier
from edge_client.sparsify.options import Option, at_least
from edge_client.sparsify.powerprop import layers
from protocol.grid import Integers
from protocol.layout import Layout, Mask, Vector

_RESET_DENSITY: Final = 0.01
_LIMIT: Final = 5.0


class _Step(torch.autograd.Function):
    """1[q > 0] with the gradient of the identity, or only where |q| > 1."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, clipped: bool) -> torch.Tensor:
        ctx.save_for_backward(q)
        ctx.clipped = clipped
        return (q > 0).to(q.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (q,) = ctx.saved_tensors
        return gradients[0] * (q.abs() > 1) if ctx.clipped else gradients[0], None


class Gate(nn.Module):
    """The parametrisation of a layer's weight: its filters are on or off.

    Attributes:
        threshold: tau, float32[filters].
        seen: The thresholds that the weights have been moved by, float32[filters].
    """

    threshold: nn.Parameter
    seen: torch.Tensor

    def __init__(self, filters: int, clipped: bool) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.zeros(filters))
        self.register_buffer("seen", torch.zeros(filters))
        self._clipped = clipped

    def mask(self, weight: torch.Tensor) -> torch.Tensor:
        """Which filters are on, float32[filters]; a dying layer's thresholds are set back first."""
        magnitude = weight.abs().flatten(1).mean(dim=1)
        with torch.no_grad():
            if (magnitude > self.threshold).float().mean() <= _RESET_DENSITY:
                self.threshold.zero_()
        return cast("torch.Tensor", _Step.apply(magnitude - self.threshold, self._clipped))  # type: ignore[no-untyped-call]

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight with the filters that are off set to zero, of the same shape."""
        return weight * _by_filter(self.mask(weight), weight)


class _GatedBias(nn.Module):
    """The parametrisation of a bias: off where its filter is."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = (layer,)  # in a tuple, or the layer would become a part of itself

    def forward(self, bias: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            kept = _mask(self._layer[0])
        return bias * kept


class SpaFL(Sparsifier):
    """One trainable threshold per filter travels, and every client ends with its own model (SpaFL, NeurIPS 2024)."""

    name = "spafl"
    has_target = False
    threshold_penalty = Option(
        0.002, "The weight of the term that drives thresholds, and so sparsity, up.", at_least(0)
    )
    threshold_estimator = Option(
        "identity",
        "The gradient of the step function: `identity`, or `clipped`, which is zero near the step.",
        choices=("identity", "clipped"),
    )

    def wear(self, model: nn.Module) -> nn.Module:
        """A threshold for every filter of a convolution and every neuron of a linear layer, the last one included."""
        for _, layer in layers(model):
            if isinstance(layer, _ConvNd) and layer.transposed:
                continue
            gate = Gate(len(layer.weight), clipped=self.threshold_estimator == "clipped")
            parametrize.register_parametrization(layer, "weight", gate)
            if layer.bias is not None:
                parametrize.register_parametrization(layer, "bias", _GatedBias(layer))
        return model

    def penalty(self, model: nn.Module) -> torch.Tensor:
        """C * sum_i exp(-tau_i)."""
        total = torch.stack([torch.exp(-gate.threshold).sum() for _, _, gate in _gated(model)]).sum()
        return self.threshold_penalty * total

    def travelling(self, model: nn.Module) -> Mapping[str, torch.Tensor]:
        """The thresholds alone."""
        return {f"{name}.parametrizations.weight.0.threshold": gate.threshold for name, _, gate in _gated(model)}

    def personal(self, model: nn.Module) -> Mapping[str, torch.Tensor]:
        """Everything else."""
        shared = self.travelling(model)
        return {name: tensor for name, tensor in model.state_dict().items() if name not in shared}

    def weight(self, samples: int) -> int:
        """All clients count alike."""
        return 1

    def absorb(self, model: nn.Module, shared: Mapping[str, torch.Tensor]) -> None:
        """Move the weights by what the thresholds have risen, then take the thresholds."""
        with torch.no_grad():
            for name, layer, gate in _gated(model):
                threshold, weight = shared[f"{name}.parametrizations.weight.0.threshold"], _weight(layer)
                rise = (threshold - gate.seen) * torch.sign(weight.flatten(1).sum(dim=1)) / weight[0].numel()
                weight.sub_(_by_filter(rise, weight))
                gate.seen.copy_(threshold)
        super().absorb(model, shared)

    def submit(
        self, trained: Vector, layout: Layout, state: GlobalState, gradient: Callable[[], Vector]
    ) -> tuple[Vector, Mask]:
        """The thresholds, within their limits."""
        return np.clip(trained, -_LIMIT, _LIMIT), NO_VOTES

    def survivors(self, mean: Vector, votes: Integers, clients: int, layout: Layout, state: GlobalState) -> Mask:
        """All thresholds, always."""
        return np.ones(layout.size, np.bool_)

    def sizes(self, model: nn.Module, layout: Layout, state: GlobalState) -> tuple[int, int]:
        """Of this client's own network: without the thresholds, and without the filters that are off."""
        thresholds = self.travelling(model)
        own = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and name not in thresholds)
        off = 0
        for _, layer, _ in _gated(model):
            filter_size = _weight(layer)[0].numel() + (layer.bias is not None)
            off += filter_size * int((_mask(layer) == 0).sum())
        return own, own - off


def _gated(model: nn.Module) -> Iterator[tuple[str, Any, Gate]]:
    """The layers that have thresholds, with their names."""
    for name, layer in layers(model):
        if parametrize.is_parametrized(layer, "weight"):
            yield name, layer, cast("Any", layer).parametrizations.weight[0]


def _weight(layer: Any) -> torch.Tensor:
    """The weight that a layer's thresholds stand before."""
    return cast("torch.Tensor", layer.parametrizations.weight.original)


def _mask(layer: Any) -> torch.Tensor:
    gate = cast("Gate", layer.parametrizations.weight[0])
    return gate.mask(_weight(layer))


def _by_filter(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """One value per filter, shaped so that it meets the weight's filters."""
    return values.view(-1, *[1] * (weight.dim() - 1))
