"""From a network to its `Structure`, read once by `torch.fx`, which runs its ``forward`` on symbols.

What is not understood is never guessed at: channels that touch it stay, and ``unproved`` says why. The layers whose
outputs leave the network are its heads; their neurons are the classes and are never filters.
"""

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import fx, nn
from torch.nn import functional

from edge_client.filters.structure import DROPOUTS, FLAT, LAYERS, NORMS, Space, Step, Structure, Value

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


def trace(model: nn.Module) -> Structure:
    """Read a network; one that cannot be read at all has filters, but nothing is known of what hangs on them.

    Without a trace, the layers with as many outputs as the last registered one are taken for heads.
    """
    modules = dict(model.named_modules())
    layers = {name: module for name, module in modules.items() if _is_layer(module)}
    owners = _owners(model)
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
    reader = _Reader(modules, owners, graph)
    heads = _heads(graph, modules)
    filters = [name for name in layers if name not in heads | shared and name in reader.called]
    return Structure(tuple(filters), tuple(reader.unproved), reader.steps)


class _Reader:
    """Walks through a traced graph once."""

    def __init__(self, modules: Mapping[str, nn.Module], owners: Mapping[int, int], graph: fx.Graph) -> None:
        self.steps: list[Step] = []
        self.unproved: list[str] = []
        self._modules = modules
        calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
        raw = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
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
        self._order = {node: place for place, node in enumerate(graph.nodes)}
        self._values: dict[fx.Node, Value] = {}
        for node in graph.nodes:
            self._values[node] = self._read(node)

    def _read(self, node: fx.Node) -> Value:
        sources = [self._values[each] for each in node.all_input_nodes]
        if node.op in {"placeholder", "get_attr"} or _is_batch_size(node):
            return Value()
        target = self._understood(node, sources)
        if target is None:
            known = [source.space.root() for source in sources if source.space is not None]
            for space in known:
                space.whole = True
            if known and node.op != "output":
                self.unproved.append(f"{node.name}: {_called(node, self._modules)}")
            return Value()
        return target

    def _understood(self, node: fx.Node, sources: Sequence[Value]) -> Value | None:
        """The value of a node, or None where nothing can be said; the step is noted."""
        if node.op == "call_module":
            return self._module(str(node.target), sources)
        if _is_flatten(node):
            return self._flatten(sources[0])
        if node.target in _ADDITIONS:
            plain = len(sources) == len(node.args) == 2 and not node.kwargs
            return self._addition(sources) if plain and self._unchanged(node) else None
        pool = node.target in _POOL_FUNCTIONS and (sources[0].rank or 0) > FLAT
        if len(sources) == 1 and (pool or node.target in _POINTWISE_FUNCTIONS):
            return None if node.kwargs.get("return_indices") else self._same(sources, sources[0])
        return None

    def _unchanged(self, node: fx.Node) -> bool:
        """Whether an addition may be in place: nobody looks later at what would have changed.

        ``x += y`` leaves the same trace as ``x = x + y``. What might be the same memory is followed through all that
        works element by element.
        """
        root: Any = node.args[0]
        while self._within(root) and root.all_input_nodes:
            root = root.all_input_nodes[0]
        same = [root]
        for each in same:
            same += [user for user in each.users if self._within(user) and user not in same]
        return all(user is node or self._order[user] < self._order[node] for each in same for user in each.users)

    def _within(self, node: fx.Node) -> bool:
        """Whether what a node makes may lie in the memory of what it reads."""
        if node.op == "call_module":
            return type(self._modules[str(node.target)]) in {*_POINTWISE, *DROPOUTS, nn.Flatten}
        shapes = {"view", "reshape", *_FLATTENS}
        return node.op != "placeholder" and (node.target in _POINTWISE_FUNCTIONS or node.target in shapes)

    def _module(self, name: str, sources: Sequence[Value]) -> Value | None:
        module: Any = self._modules[name]
        if name not in self._plain or len(sources) != 1:
            return None
        (source,) = sources
        if _is_layer(module):
            return self._layer(name, module, source)
        kind = type(module)
        if kind in NORMS and source.space is not None and source.rank is not None:
            features, width = module.num_features, source.space.width
            if features == width or (source.spread and features % width == 0):
                return self._same(sources, source, name, module)
        if kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            return self._flatten(source)
        pool = kind in _POOLS and (source.rank or 0) > FLAT and not getattr(module, "return_indices", False)
        if pool or kind in _POINTWISE:
            return self._same(sources, source, *((name, module) if kind in DROPOUTS else ()))
        return None

    def _layer(self, name: str, module: Any, source: Value) -> Value | None:
        """A layer begins new channels. A linear layer reads the last axis, a convolution the second."""
        linear = isinstance(module, nn.Linear)
        if source.space is not None:
            inputs, width = module.weight.shape[1], source.space.width
            fits = inputs == width or (source.spread and inputs % width == 0)
            if not fits or (linear and source.axis == 1) or (not linear and source.rank != module.weight.dim()):
                return None
        rank = (FLAT if source.rank == FLAT else None) if linear else module.weight.dim()
        target = Value(Space(module.weight.shape[0]), rank)
        self.steps.append(Step((source,), target, name, module))
        return target

    def _same(self, sources: Sequence[Value], like: Value, name: str = "", module: nn.Module | None = None) -> Value:
        target = Value(like.space, like.rank, like.spread)
        if like.space is not None:
            self.steps.append(Step(tuple(sources), target, name, module))
        return target

    def _addition(self, sources: Sequence[Value]) -> Value | None:
        left, right = sources
        if left.space is None or right.space is None or left.rank is None:
            return None
        if (left.rank, left.spread, left.space.width) != (right.rank, right.spread, right.space.width):
            return None
        one, other = left.space.root(), right.space.root()
        if one is not other:
            other.whole, one.same = one.whole or other.whole, other
        return self._same(sources, left)

    def _flatten(self, source: Value) -> Value | None:
        if source.space is None:
            return Value(rank=FLAT)
        if source.rank is None:
            return None
        target = Value(source.space, FLAT, source.spread or source.rank > FLAT)
        self.steps.append(Step((source,), target))
        return target


def _owners(model: nn.Module) -> Counter[int]:
    """In how many places each parameter stands, by identity."""
    modules = model.named_modules(remove_duplicate=False)
    return Counter(id(p) for _, module in modules for p in module._parameters.values() if p is not None)


def _is_layer(module: nn.Module) -> bool:
    """Whether it is a plain layer: no subclass, no parametrisation, no groups."""
    return type(module) in LAYERS and "weight" in module._parameters and getattr(module, "groups", 1) == 1


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
        if node.op == "call_module" and isinstance(modules[str(node.target)], LAYERS):
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
