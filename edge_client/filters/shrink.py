"""The pair shrink / restore: a network and the physically smaller one that trains in its place.

Law: for a mask, bool[P], and the same rows, seed and settings, training ``shrink(model).model`` and restoring it leaves
``model`` as masked training of the whole network would, up to the rounding of sums of fewer terms: weights, batch-norm
statistics and integer buffers. Dropout draws for all channels of the whole network, so it drops the same ones.

Channels are taken out only where `edge_client/filters/structure.py` proves that they are zero in training; a network
that cannot be traced is copied as it is.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from edge_client.filters.structure import DROPOUTS, Cut
from edge_client.filters.trace import trace
from protocol.layout import Layout, Mask, TensorSpec, unflatten


@dataclass(frozen=True, eq=False)
class Shrunk:
    """A smaller network.

    Attributes:
        model: A copy of the network without its dead channels.
        layout: The layout of the same tensors in it.
        mask: The mask of that layout.
    """

    model: nn.Module
    layout: Layout
    mask: Mask
    _places: Mapping[str, Tensor]
    _whole: Mapping[str, Mask]

    def restore(self, model: nn.Module) -> None:
        """Write the smaller network's tensors back into the whole one, which is zero where mask and network end."""
        own = model.state_dict()
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                if name not in self._places:
                    own[name].copy_(tensor)
                    continue
                if name in self._whole:
                    own[name].mul_(torch.from_numpy(self._whole[name].astype(np.float32)))
                flat = own[name].ravel()
                flat[self._places[name]] = tensor.ravel()
                own[name].copy_(flat.view_as(own[name]))


def shrink(model: nn.Module, layout: Layout, mask: Mask) -> Shrunk:
    """Copy a network without the channels that are dead under a mask, bool[P].

    Args:
        model: What the method wears, at the global state.
        layout: The layout of the tensors that travel.
        mask: The surviving positions.
    """
    cuts = trace(model).cuts(mask, layout)
    small = deepcopy(model)
    places: dict[str, Tensor] = {}
    for name, cut in cuts.items():
        module = small.get_submodule(name)
        if isinstance(module, DROPOUTS):
            small.set_submodule(name, _WideDropout(module, cut))
        else:
            places |= {f"{name}.{own}": place for own, place in _narrow(module, cut).items()}
    masks = unflatten(mask, layout)
    shapes = {name: tuple(tensor.shape) for name, tensor in small.state_dict().items()}
    small_layout = Layout(tuple(TensorSpec(spec.name, shapes[spec.name], spec.trainable) for spec in layout.tensors))
    pieces = [masks[s.name].ravel()[places[s.name].numpy() if s.name in places else ...] for s in layout.tensors]
    return Shrunk(small, small_layout, np.concatenate(pieces), places, masks)


def _narrow(module: nn.Module, cut: Cut) -> dict[str, Tensor]:
    """Cut a layer or a batch norm; where each of its new tensors' values stood in the old ones, i64[n]."""
    places = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.dim() == 0:
            continue  # a count of batches
        place = torch.arange(tensor.numel()).view_as(tensor)[torch.from_numpy(cut.rows)]
        if name == "weight" and cut.columns is not None:
            place = place[:, torch.from_numpy(cut.columns)]
        places[name] = place.ravel()
        tensor.data = tensor.data.ravel()[place]
    for name, kept in (("out", cut.rows), ("in", cut.columns), ("num", cut.rows)):
        for attribute in (f"{name}_features", f"{name}_channels"):
            if hasattr(module, attribute) and kept is not None:
                setattr(module, attribute, int(kept.sum()))
    return places


class _WideDropout(nn.Module):
    """A dropout that draws for the channels that are gone as well, f32[n, c, ...] to the same shape."""

    kept: Tensor

    def __init__(self, whole: nn.Module, cut: Cut) -> None:
        super().__init__()
        self.whole, self.axis, self.width = whole, cut.axis, cut.rows.size
        self.register_buffer("kept", torch.from_numpy(np.flatnonzero(cut.rows)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The input times what the whole network would draw for these channels."""
        if not self.training:
            return x
        features = x.shape[self.axis] // len(self.kept)
        shape = list(x.shape)
        shape[self.axis] = self.width * features
        kept = (self.kept[:, None] * features + torch.arange(features)).ravel()
        noise: Tensor = self.whole(x.new_ones(shape))
        return x * noise.index_select(self.axis, kept)
