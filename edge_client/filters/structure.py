"""Which filters a network has, what dies with them, and which channels could be taken out of it.

A *filter* is one output channel of a convolution or one neuron of a linear layer: a row of its weights and its bias. A
channel is *dead* in a tensor if training cannot make it anything but zero: all of its filter is off the mask, or it is
the image of dead channels under what keeps zero at zero (activations, pools, dropout, flatten, addition, and a batch
norm whose scale, shift and statistics of that channel are off the mask).

Laws: `Structure.closed` takes away only what a dead channel makes useless (the columns that read it, the batch norm's
channel behind it), so the function that the network computes in training stays the same; and the channels that
`Structure.cuts` leaves out are zero in every tensor that shares their place, so a network without them trains alike.

`edge_client/filters/trace.py` reads a structure from a network.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from torch import nn

from protocol.layout import Layout, Mask, unflatten

LAYERS: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUTS: Final = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_NORM_TENSORS: Final = ("weight", "bias", "running_mean", "running_var")
FLAT: Final = 2
"""The rank of a batch of vectors."""


@dataclass(frozen=True, eq=False)
class Cut:
    """What stays of one module.

    Attributes:
        rows: bool[out], its output channels.
        columns: bool[in], its input channels, one per feature for a linear layer; None where it reads none by weight.
        axis: Where the channels of its output stand.
    """

    rows: Mask
    columns: Mask | None = None
    axis: int = 1


@dataclass(eq=False)
class Space:
    """Tensors that must keep the same channels. ``whole``: something that is not understood sees them all."""

    width: int
    whole: bool = False
    same: "Space | None" = None

    def root(self) -> "Space":
        """The space that stands for all that were joined."""
        return self if self.same is None else self.same.root()


@dataclass(frozen=True, eq=False)
class Value:
    """One tensor of the network.

    Attributes:
        space: Its channels, or None where nothing is known of them.
        rank: Its axes with the batch; None where unknown, and then the channels stand on the last.
        spread: Whether a flatten has made several features of each channel.
    """

    space: Space | None = None
    rank: int | None = None
    spread: bool = False

    @property
    def axis(self) -> int:
        """Where the channels stand."""
        return -1 if self.rank is None or self.rank == FLAT else 1


@dataclass(frozen=True, eq=False)
class Step:
    """One node that is understood: what it reads, what it makes and, for a module, its name."""

    sources: tuple[Value, ...]
    target: Value
    name: str = ""
    module: nn.Module | None = None


@dataclass(eq=False)
class Structure:
    """What is known of a network.

    Attributes:
        filters: The layers whose outputs are filters that may die, by name, in the order of the modules.
        unproved: What is not understood; filters there are masked, and stay in the network that is trained.
        steps: The nodes that are understood, in the order of computation.
    """

    filters: tuple[str, ...] = ()
    unproved: tuple[str, ...] = ()
    steps: list[Step] = field(default_factory=list)

    def closed(self, mask: Mask, layout: Layout) -> Mask:
        """The mask, bool[P], without what its dead filters make useless."""
        closed = mask.copy()
        self._dead(unflatten(closed, layout), layout, close=True)
        return closed

    def cuts(self, mask: Mask, layout: Layout) -> dict[str, Cut]:
        """What stays of each module that loses channels, by name, under a mask, bool[P]. Every tensor keeps one."""
        dead = self._dead(unflatten(mask.copy(), layout), layout, close=False)
        kept: dict[Space, Mask] = {}
        for value, gone in dead.items():
            if value.space is not None:
                space = value.space.root()
                kept[space] = kept.get(space, np.zeros(space.width, np.bool_)) | ~gone | space.whole
        for channels in kept.values():
            channels[0] |= not channels.any()
        found = {step.name: _cut(step, kept) for step in self.steps if step.module is not None}
        return {
            name: cut
            for name, cut in found.items()
            if not (cut.rows.all() and (cut.columns is None or cut.columns.all()))
        }

    def _dead(self, cuts: Mapping[str, Mask], layout: Layout, *, close: bool) -> dict[Value, Mask]:
        """The dead channels of every tensor, in the order of computation; with ``close``, masks change on the way."""
        trainable = {spec.name for spec in layout.tensors if spec.trainable}
        dead: dict[Value, Mask] = {}
        for step in self.steps:
            source = dead.get(step.sources[0])
            if isinstance(step.module, LAYERS):
                weight, bias = cuts.get(f"{step.name}.weight"), cuts.get(f"{step.name}.bias")
                if close and source is not None and weight is not None and f"{step.name}.weight" in trainable:
                    weight[:, _features(source, weight.shape[1])] = False
                dead[step.target] = _without(step, weight, bias)
            elif isinstance(step.module, NORMS):
                dead[step.target] = _norm(step, source, cuts, close=close)
            elif all(each in dead for each in step.sources):
                dead[step.target] = np.logical_and.reduce([dead[each] for each in step.sources])
        return dead


def _features(channels: Mask, count: int) -> Mask:
    """bool[channels] -> bool[count]: what flatten makes of it."""
    return np.repeat(channels, count // channels.size)


def _without(step: Step, weight: Mask | None, bias: Mask | None) -> Mask:
    """The filters of which nothing is on the mask, bool[out]."""
    module: Any = step.module
    rows = module.weight.shape[0]
    if weight is None or (bias is None and module.bias is not None):
        return np.zeros(rows, np.bool_)
    kept = weight.reshape(rows, -1) if bias is None else np.column_stack([weight.reshape(rows, -1), bias])
    return np.asarray(~kept.any(axis=1))


def _norm(step: Step, source: Mask | None, cuts: Mapping[str, Mask], *, close: bool) -> Mask:
    """The channels whose input is dead and of whose scale, shift and statistics nothing is on the mask."""
    module: Any = step.module
    features = module.num_features
    width = step.target.space.width if step.target.space is not None else features
    if source is None:
        return np.zeros(width, np.bool_)
    gone = _features(source, features)
    own = [cuts.get(f"{step.name}.{name}") for name in _NORM_TENSORS if getattr(module, name) is not None]
    for tensor in own:
        if tensor is None:
            return np.zeros(width, np.bool_)
        if close:
            tensor[gone] = False
        gone = gone & ~tensor
    return np.asarray(gone.reshape(width, -1).all(axis=1))


def _cut(step: Step, kept: Mapping[Space, Mask]) -> Cut:
    """What stays of a step's module."""
    module: Any = step.module
    space = step.target.space
    rows = kept[space.root()] if space is not None else np.ones(1, np.bool_)
    if isinstance(module, NORMS):
        return Cut(_features(rows, module.num_features))
    if isinstance(module, DROPOUTS):
        return Cut(rows, axis=step.target.axis)
    source, inputs = step.sources[0].space, module.weight.shape[1]
    columns = np.ones(inputs, np.bool_) if source is None else _features(kept[source.root()], inputs)
    return Cut(rows, columns)
