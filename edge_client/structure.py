"""Which filters a network has, what dies with them, and which channels could be taken out of it.

A *filter* is one output channel of a convolution or one neuron of a linear layer: a row of its weights and its bias. A
channel is *dead* in a tensor if training cannot make it anything but zero: all of its filter is off the mask, or it is
the image of dead channels under what keeps zero at zero (activations, pools, dropout, flatten, addition, and a batch
norm whose scale, shift and statistics of that channel are off the mask).

Laws: `Structure.closed` takes away only what a dead channel makes useless (the columns that read it, the batch norm's
channel behind it), so the function that the network computes in training stays the same; and the channels that
`Structure.cuts` leaves out are zero in every tensor that shares their place, so a network without them trains alike.

The network is read once, by `torch.fx`, which runs its ``forward`` on symbols. What is not understood is never guessed
at: channels that touch it stay, and ``unproved`` says why. The layers whose outputs leave the network are its heads;
their neurons are the classes and are never filters.
"""

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional

from protocol.layout import Layout, Mask, unflatten

_LAYERS: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_DROPOUTS: Final = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_POINTWISE: Final = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh, nn.Dropout
)  # fmt: skip
_POOLS: Final = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
_POINTWISE_FUNCTIONS: Final = frozenset(
    {torch.relu, torch.tanh, functional.relu, functional.leaky_relu, functional.elu, functional.gelu, functional.silu,
     functional.tanh, "relu", "relu_", "tanh", "contiguous"}
)  # fmt: skip
_POOL_FUNCTIONS: Final = frozenset(
    {functional.max_pool1d, functional.max_pool2d, functional.avg_pool1d, functional.avg_pool2d,
     functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d}
)  # fmt: skip
_ADDITIONS: Final = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})
_FLATTENS: Final = frozenset({torch.flatten, "flatten"})
_NORM_TENSORS: Final = ("weight", "bias", "running_mean", "running_var")
_FLAT: Final = 2  # the rank of a batch of vectors


@dataclass(frozen=True, eq=False)
class Cut:
    """What stays of one module.

    Attributes:
        rows: bool[out], its output channels.
        columns: bool[in], its input channels, one a feature for a linear layer; None where it reads none by weight.
        axis: Where the channels of its output stand.
    """

    rows: Mask
    columns: Mask | None = None
    axis: int = 1


@dataclass(eq=False)
class _Space:
    """Tensors that must keep the same channels. ``whole``: something that is not understood sees them all."""

    width: int
    whole: bool = False
    same: "_Space | None" = None

    def root(self) -> "_Space":
        return self if self.same is None else self.same.root()


@dataclass(frozen=True, eq=False)
class _Value:
    """One tensor of the network.

    Attributes:
        space: Its channels, or None where nothing is known of them.
        rank: Its axes with the batch; None where unknown, and then the channels stand on the last.
        spread: Whether a flatten has made several features of each channel.
    """

    space: _Space | None = None
    rank: int | None = None
    spread: bool = False

    @property
    def axis(self) -> int:
        return -1 if self.rank is None or self.rank == _FLAT else 1


@dataclass(frozen=True, eq=False)
class _Step:
    """One node that is understood: what it reads, what it makes and, for a module, its name."""

    sources: tuple[_Value, ...]
    target: _Value
    name: str = ""
    module: nn.Module | None = None


@dataclass(eq=False)
class Structure:
    """What is known of a network.

    Attributes:
        filters: The layers whose outputs are filters that may die, by name, in the order of the modules.
        unproved: What is not understood; filters there are masked, and stay in the network that is trained.
    """

    filters: tuple[str, ...] = ()
    unproved: tuple[str, ...] = ()
    _steps: list[_Step] = field(default_factory=list)

    def closed(self, mask: Mask, layout: Layout) -> Mask:
        """The mask, bool[P], without what its dead filters make useless."""
        closed = mask.copy()
        self._dead(unflatten(closed, layout), layout, close=True)
        return closed

    def cuts(self, mask: Mask, layout: Layout) -> dict[str, Cut]:
        """What stays of each module that loses channels, by name, under a mask, bool[P]. Every tensor keeps one."""
        dead = self._dead(unflatten(mask.copy(), layout), layout, close=False)
        kept: dict[_Space, Mask] = {}
        for value, gone in dead.items():
            if value.space is not None:
                space = value.space.root()
                kept[space] = kept.get(space, np.zeros(space.width, np.bool_)) | ~gone | space.whole
        for channels in kept.values():
            channels[0] |= not channels.any()
        found = {step.name: _cut(step, kept) for step in self._steps if step.module is not None}
        return {
            name: cut
            for name, cut in found.items()
            if not (cut.rows.all() and (cut.columns is None or cut.columns.all()))
        }

    def _dead(self, cuts: Mapping[str, Mask], layout: Layout, *, close: bool) -> dict[_Value, Mask]:
        """The dead channels of every tensor, in the order of computation; with ``close``, masks change on the way."""
        trainable = {spec.name for spec in layout.tensors if spec.trainable}
        dead: dict[_Value, Mask] = {}
        for step in self._steps:
            source = dead.get(step.sources[0])
            if isinstance(step.module, _LAYERS):
                weight, bias = cuts.get(f"{step.name}.weight"), cuts.get(f"{step.name}.bias")
                if close and source is not None and weight is not None and f"{step.name}.weight" in trainable:
                    weight[:, _features(source, weight.shape[1])] = False
                dead[step.target] = _without(step, weight, bias)
            elif isinstance(step.module, _NORMS):
                dead[step.target] = _norm(step, source, cuts, close=close)
            elif all(each in dead for each in step.sources):
                dead[step.target] = np.logical_and.reduce([dead[each] for each in step.sources])
        return dead


def trace(model: nn.Module) -> Structure:
    """Read a network; one that cannot be read at all has filters, but nothing is known of what hangs on them.

    Without a trace, the layers with as many outputs as the last registered one are taken for heads.
    """
    modules = dict(model.named_modules())
    layers = {name: module for name, module in modules.items() if _is_layer(module)}
    owners = Counter(id(p) for module in modules.values() for p in module._parameters.values() if p is not None)
    shared = {name for name, module in layers.items() if any(owners[id(p)] > 1 for p in module.parameters())}
    training = model.training
    try:
        graph = fx.Tracer().trace(model.train())
    except Exception as error:  # a user's forward meets symbols and may raise whatever it likes
        width = list(layers.values())[-1].weight.shape[0] if layers else 0
        filters = [name for name, layer in layers.items() if len(layer.weight) != width and name not in shared]
        reason = f"the whole network: torch.fx cannot trace it ({type(error).__name__}: {error})"
        return Structure(tuple(filters), (reason.partition("\n")[0],))
    finally:
        model.train(training)
    reader = _Reader(modules, graph)
    heads = _heads(graph, modules)
    filters = [name for name in layers if name not in heads | shared and name in reader.called]
    return Structure(tuple(filters), tuple(reader.unproved), reader.steps)


class _Reader:
    """Walks through a traced graph once."""

    def __init__(self, modules: Mapping[str, nn.Module], graph: fx.Graph) -> None:
        self.steps: list[_Step] = []
        self.unproved: list[str] = []
        self._modules = modules
        calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
        raw = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
        owners = Counter(id(p) for module in modules.values() for p in module._parameters.values() if p is not None)
        self.called = set(calls)
        self._plain = {
            name
            for name, count in calls.items()
            if count == 1
            and name not in raw
            and not modules[name]._forward_hooks
            and not modules[name]._forward_pre_hooks
            and all(owners[id(p)] == 1 for p in modules[name].parameters())
        }
        self._values: dict[fx.Node, _Value] = {}
        for node in graph.nodes:
            self._values[node] = self._read(node)

    def _read(self, node: fx.Node) -> _Value:
        sources = [self._values[each] for each in node.all_input_nodes]
        if node.op in {"placeholder", "get_attr"} or _is_batch_size(node):
            return _Value()
        target = self._understood(node, sources)
        if target is None:
            known = [source.space.root() for source in sources if source.space is not None]
            for space in known:
                space.whole = True
            if known and node.op != "output":
                self.unproved.append(f"{node.name}: {_called(node, self._modules)}")
            return _Value()
        return target

    def _understood(self, node: fx.Node, sources: Sequence[_Value]) -> _Value | None:
        """The value of a node, or None where nothing can be said; the step is noted."""
        if node.op == "call_module":
            return self._module(str(node.target), sources)
        if node.op not in {"call_function", "call_method"} or not sources:
            return None
        if node.target in _ADDITIONS and len(sources) == len(node.args) == 2 and not node.kwargs:
            return self._addition(sources)
        if _is_flatten(node):
            return self._flatten(sources[0])
        pool = node.target in _POOL_FUNCTIONS and (sources[0].rank or 0) > _FLAT
        if len(sources) == 1 and (pool or node.target in _POINTWISE_FUNCTIONS):
            return None if node.kwargs.get("return_indices") else self._same(sources, sources[0])
        return None

    def _module(self, name: str, sources: Sequence[_Value]) -> _Value | None:
        module: Any = self._modules[name]
        if name not in self._plain or len(sources) != 1:
            return None
        (source,) = sources
        if _is_layer(module):
            return self._layer(name, module, source)
        kind = type(module)
        if kind in _NORMS and source.space is not None and source.rank is not None:
            features, width = module.num_features, source.space.width
            if features == width or (source.spread and features % width == 0):
                return self._same(sources, source, name, module)
        if kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            return self._flatten(source)
        pool = kind in _POOLS and (source.rank or 0) > _FLAT and not getattr(module, "return_indices", False)
        if pool or kind in _POINTWISE:
            return self._same(sources, source, *((name, module) if kind in _DROPOUTS else ()))
        return None

    def _layer(self, name: str, module: Any, source: _Value) -> _Value | None:
        """A layer begins new channels. A linear layer reads the last axis, a convolution the second."""
        linear = isinstance(module, nn.Linear)
        if source.space is not None:
            inputs, width = module.weight.shape[1], source.space.width
            fits = inputs == width or (source.spread and inputs % width == 0)
            if not fits or (linear and source.axis == 1) or (not linear and source.rank != module.weight.dim()):
                return None
        rank = (_FLAT if source.rank == _FLAT else None) if linear else module.weight.dim()
        target = _Value(_Space(module.weight.shape[0]), rank)
        self.steps.append(_Step((source,), target, name, module))
        return target

    def _same(self, sources: Sequence[_Value], like: _Value, name: str = "", module: nn.Module | None = None) -> _Value:
        target = _Value(like.space, like.rank, like.spread)
        if like.space is not None:
            self.steps.append(_Step(tuple(sources), target, name, module))
        return target

    def _addition(self, sources: Sequence[_Value]) -> _Value | None:
        left, right = sources
        if left.space is None or right.space is None or left.rank is None:
            return None
        if (left.rank, left.spread, left.space.width) != (right.rank, right.spread, right.space.width):
            return None
        one, other = left.space.root(), right.space.root()
        if one is not other:
            other.whole, one.same = one.whole or other.whole, other
        return self._same(sources, left)

    def _flatten(self, source: _Value) -> _Value | None:
        if source.space is None:
            return _Value(rank=_FLAT)
        if source.rank is None:
            return None
        target = _Value(source.space, _FLAT, source.spread or source.rank > _FLAT)
        self.steps.append(_Step((source,), target))
        return target


def _is_layer(module: nn.Module) -> bool:
    """Whether it is a plain layer: no subclass, no parametrisation, no groups."""
    return type(module) in _LAYERS and "weight" in module._parameters and getattr(module, "groups", 1) == 1


def _is_batch_size(node: fx.Node) -> bool:
    """``x.size(0)``: a number that no channel has a part in."""
    return node.op == "call_method" and node.target == "size" and tuple(node.args[1:]) == (0,)


def _is_flatten(node: fx.Node) -> bool:
    """``flatten(x, 1)``, or ``x.view(x.size(0), -1)``."""
    rest = tuple(node.args[1:])
    if node.target in _FLATTENS:
        return (rest, dict(node.kwargs)) in (((1,), {}), ((), {"start_dim": 1}))
    if node.target not in {"view", "reshape"} or node.kwargs or len(rest) != 2 or rest[1] != -1:
        return False
    return isinstance(rest[0], fx.Node) and _is_batch_size(rest[0])


def _heads(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> set[str]:
    """The layers from which the output is reached without another layer between."""
    heads: set[str] = set()
    open_ = [node for node in graph.nodes if node.op == "output"]
    seen = set(open_)
    while open_:
        node = open_.pop()
        if node.op == "call_module" and isinstance(modules[str(node.target)], _LAYERS):
            heads.add(str(node.target))
            continue
        fresh = [each for each in node.all_input_nodes if each not in seen]
        seen |= set(fresh)
        open_ += fresh
    return heads


def _called(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__
    return str(getattr(node.target, "__name__", node.target))


def _features(channels: Mask, count: int) -> Mask:
    """bool[channels] -> bool[count]: what flatten makes of it."""
    return np.repeat(channels, count // channels.size)


def _without(step: _Step, weight: Mask | None, bias: Mask | None) -> Mask:
    """The filters of which nothing is on the mask, bool[out]."""
    module: Any = step.module
    rows = module.weight.shape[0]
    if weight is None or (bias is None and module.bias is not None):
        return np.zeros(rows, np.bool_)
    kept = weight.reshape(rows, -1) if bias is None else np.column_stack([weight.reshape(rows, -1), bias])
    return np.asarray(~kept.any(axis=1))


def _norm(step: _Step, source: Mask | None, cuts: Mapping[str, Mask], *, close: bool) -> Mask:
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


def _cut(step: _Step, kept: Mapping[_Space, Mask]) -> Cut:
    """What stays of a step's module."""
    module: Any = step.module
    space = step.target.space
    rows = kept[space.root()] if space is not None else np.ones(1, np.bool_)
    if isinstance(module, _NORMS):
        return Cut(_features(rows, module.num_features))
    if isinstance(module, _DROPOUTS):
        return Cut(rows, axis=step.target.axis)
    source, inputs = step.sources[0].space, module.weight.shape[1]
    columns = np.ones(inputs, np.bool_) if source is None else _features(kept[source.root()], inputs)
    return Cut(rows, columns)
