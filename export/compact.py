"""The channels and neurons that no output depends on, taken out of an ONNX graph.

Law: ``compact`` changes no output beyond float rounding, whatever the input and the batch, and ``compact`` of what it
made changes nothing at all. What cannot be proved is left as it is and named in ``untouched``.

One step reads the graph twice. Forwards it finds the channels that are constant: all their weights are zero but those
on other constants; the value follows through bias, batch norm, activation, pooling, flatten and addition. Backwards it
finds the channels that are read: some output depends on them through weights that are not zero. A constant is read by
no layer, because the layer's bias takes it over. The exception is a constant other than zero that meets zero padding:
it is no bias at the border, so all such channels of a tensor are merged into one. A channel stays if it is read in any
of the tensors that share its place (both sides of a residual addition, say), and each tensor keeps one channel at
least. An operand of which every channel is constant becomes a constant of the graph, and the branch before it goes.
Each step removes a node, a channel or a weight; they follow one another until one finds nothing.

The model's input and output, and whatever touches an operator that is not understood, keep all their channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import onnx
from numpy.typing import NDArray

from export.graph import Array, Blocked, Graph, Layer, Meaning, Tie, Values, is_layer, parse
from export.rewrite import Edits, pruned, replaced, stored
from protocol.errors import ExportError

Mask = NDArray[np.bool_]
"""bool[c], one per channel of a tensor."""


@dataclass(frozen=True)
class Compaction:
    """A compact model and what became smaller.

    Attributes:
        model: The ONNX file's content.
        removed: Output channels before and after, of every layer that lost some; 0 after: the layer is gone.
        parameters_before: Elements of the float constants.
        parameters_after: The same in ``model``.
        untouched: The nodes about which nothing could be proved, and why.
    """

    model: bytes
    removed: Mapping[str, tuple[int, int]]
    parameters_before: int
    parameters_after: int
    untouched: tuple[str, ...]


def compact(onnx_bytes: bytes, round_to: int = 1) -> Compaction:
    """Remove the channels and neurons whose value is constant or that nothing reads.

    Args:
        onnx_bytes: What ``convert`` returned, or another self-contained file of the usual layers.
        round_to: Keep as many dead channels, all zero, as make each layer's count a multiple of this, or all that there
            were where the multiple is no smaller. ONNX Runtime's convolutions are fastest on multiples of 16.

    Returns:
        The compact model, with the same inputs, outputs and metadata, and what was removed.

    Raises:
        ExportError: The bytes are not a valid self-contained model, its shapes cannot be inferred, or ``round_to`` is
            less than 1.
    """
    if round_to < 1:
        raise ExportError(f"channel counts cannot be multiples of {round_to}; give 1 or more")
    original = graph = Graph.read(parse(onnx_bytes))
    data = onnx_bytes
    while (step := _step(graph, round_to)).model is not None:
        data = cast("bytes", step.model.SerializeToString(deterministic=True))
        graph = Graph.read(step.model)
    try:
        onnx.checker.check_model(data, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"compaction broke the graph: {error}. Export without it and report this.") from error
    names, before, after = original.names(), _widths(original), _widths(graph)
    return Compaction(
        model=data,
        removed={names[k]: (width, after.get(k, 0)) for k, width in before.items() if after.get(k, 0) != width},
        parameters_before=_parameters(original),
        parameters_after=_parameters(graph),
        untouched=_untouched(graph, step.meanings),
    )


@dataclass(frozen=True)
class _Step:
    """What one step knows of each node, and the smaller model if there is one."""

    meanings: Sequence[Meaning]
    model: onnx.ModelProto | None


def _step(graph: Graph, round_to: int) -> _Step:
    """Remove what can be removed at once."""
    frozen: set[str] = set()
    while True:
        meanings = graph.meanings(frozen)
        if graph.has_subgraphs():
            return _Step(meanings, None)
        if (model := _without_zero_additions(graph, meanings)) is not None:
            return _Step(meanings, pruned(model))
        values = _constants(graph, meanings)
        if edits := _constant_operands(graph, meanings, values):
            return _Step(meanings, pruned(replaced(graph, edits)))
        merged = _merged(meanings, values)
        read = _read(graph, merged, values)
        kept = _kept(graph, merged, read, round_to)
        for meaning in merged:
            if isinstance(meaning, Layer):
                edits |= stored(graph, _smaller(meaning, values, read, kept))
            elif isinstance(meaning, Tie):
                edits |= _tie_edits(graph, meaning, kept[meaning.target])
        if not (grown := _grown(graph, edits)):
            break
        frozen |= grown
    model = pruned(replaced(graph, edits))
    same = not edits and len(model.graph.node) == len(graph.model.graph.node)
    return _Step(meanings, None if same else model)


def _constants(graph: Graph, meanings: Sequence[Meaning]) -> dict[str, Values]:
    """The constant channels of every tensor, from the input on."""
    values = {name: np.full(size, np.nan) for name, size in graph.widths().items()}
    for meaning in meanings:
        if isinstance(meaning, Layer):
            groups, rows, _, _ = meaning.weight.shape
            varies = (_uses(meaning) & np.isnan(_absorbed(meaning, values))).any(axis=2).reshape(groups * rows)
            values[meaning.target] = np.where(varies, np.nan, _bias(meaning, values))
        elif isinstance(meaning, Tie):
            values[meaning.target] = _tied_values(graph, meaning, [values[name] for name in meaning.sources])
    return values


def _tied_values(graph: Graph, tie: Tie, sources: list[Values]) -> Values:
    """What a node that works within channels makes of constant ones."""
    if not tie.evaluate:
        value = sources[0].repeat(tie.factor)
        return value if tie.uniform else np.where(value == 0, value, np.nan)
    if not tie.uniform or (np.isnan(sources).any(axis=0).all() and tie.ignores is None):
        return np.full(len(sources[0]), np.nan)
    return graph.evaluate(tie, sources)


def _uses(layer: Layer) -> Mask:
    """bool[groups, rows, columns]: the weights, a whole kernel at a time, that are not zero."""
    return cast("Mask", (layer.weight != 0).any(axis=3))


def _absorbed(layer: Layer, values: Mapping[str, Values]) -> Values:
    """f64[groups, 1, columns]: the constants of its input that the layer's bias can take over, NaN elsewhere."""
    value = values[layer.source]
    value = np.where(value == 0, value, np.nan) if layer.padded else value
    return value.reshape(layer.weight.shape[0], 1, -1)


def _bias(layer: Layer, values: Mapping[str, Values]) -> Values:
    """f64[groups * rows]: the bias with the constants that it takes over."""
    constants = np.nan_to_num(_absorbed(layer, values))
    if not constants.any():
        return layer.bias.astype(np.float64)
    absorbed: Values = (layer.weight.sum(axis=3, dtype=np.float64) * constants).sum(axis=2).reshape(-1)
    return layer.bias + absorbed


def _constant_operands(graph: Graph, meanings: Sequence[Meaning], values: Mapping[str, Values]) -> Edits:
    """Constants for the operands of which every channel is constant, where the other operand alone gives the shape."""
    edits: Edits = {}
    for meaning in meanings:
        if not isinstance(meaning, Tie) or len(meaning.sources) < 2:
            continue
        shape = graph.shapes[meaning.target]
        constant = {name for name in meaning.sources if np.isfinite(values[name]).all()}
        if None in shape or shape not in {graph.shapes[name] for name in meaning.sources if name not in constant}:
            continue
        for place, name in enumerate(graph.model.graph.node[meaning.node].input):
            if name in constant:
                edits[meaning.node, place] = values[name].astype(np.float32).reshape(-1, *[1] * (len(shape) - 2))
    return edits


def _without_zero_additions(graph: Graph, meanings: Sequence[Meaning]) -> onnx.ModelProto | None:
    """The model without additions of zero to a tensor that already has the sum's shape; None if there are none."""
    outputs = {value.name for value in graph.model.graph.output}
    same: dict[str, str] = {}
    for meaning in meanings:
        if isinstance(meaning, Tie) and len(meaning.sources) == 1 and meaning.target not in outputs:
            node, (source,), shape = graph.model.graph.node[meaning.node], meaning.sources, graph.shapes[meaning.target]
            constants = [graph.arrays[name] for name in node.input if name in graph.arrays]
            zero = node.op_type == "Add" and len(constants) == 1 and not constants[0].any()
            if zero and graph.shapes[source] == shape and None not in shape:
                same[meaning.target] = same.get(source, source)
    if not same:
        return None
    model = replaced(graph, {})
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = same.get(name, name)
    return model


def _merged(meanings: Sequence[Meaning], values: Mapping[str, Values]) -> list[Meaning]:
    """Let one constant channel stand for all those of a tensor that meet zero padding with a value other than zero."""
    readers: dict[str, list[Layer]] = {}
    for meaning in meanings:
        if isinstance(meaning, Layer) and meaning.padded and len(meaning.weight) == 1:
            readers.setdefault(meaning.source, []).append(meaning)
    merged: dict[int, Layer] = {}
    for source, layers in readers.items():
        value = values[source]
        used = np.any([_uses(layer).any(axis=(0, 1)) for layer in layers], axis=0)
        constant = np.flatnonzero(used & np.isfinite(value) & (value != 0))
        if len(constant) < 2:
            continue
        first = constant[np.abs(value[constant]).argmax()]
        others = constant[constant != first]
        for layer in layers:
            weight = layer.weight.copy()
            weight[0, :, first] += np.einsum("rck,c->rk", weight[0][:, others], value[others] / value[first])
            weight[0, :, others] = 0
            merged[layer.node] = replace(layer, weight=weight)
    return [merged.get(meaning.node, meaning) for meaning in meanings]


def _read(graph: Graph, meanings: Sequence[Meaning], values: Mapping[str, Values]) -> dict[str, Mask]:
    """The channels of every tensor on which an output depends, from the output on."""
    read = {name: np.zeros(size, np.bool_) for name, size in graph.widths().items()}
    for name in read.keys() & {value.name for value in graph.model.graph.output}:
        read[name][:] = True
    for meaning in reversed(meanings):
        if isinstance(meaning, Layer):
            rows = read[meaning.target].reshape(*meaning.weight.shape[:2], 1)
            uses = _uses(meaning) & rows & np.isnan(_absorbed(meaning, values))
            read[meaning.source] |= uses.any(axis=1).reshape(-1)
        elif isinstance(meaning, Tie):
            mask = read[meaning.target].reshape(-1, meaning.factor).any(axis=1)
            mask = mask if meaning.ignores is None else mask & ~meaning.ignores
            for name in meaning.sources:
                read[name] |= mask
        else:
            for name in read.keys() & set(meaning.sources):
                read[name][:] = True
    return read


def _kept(graph: Graph, meanings: Sequence[Meaning], read: Mapping[str, Mask], round_to: int) -> dict[str, Mask]:
    """The channels of every tensor that stay: those that are read, in all tensors that share them, and padding."""
    kept = {name: mask.copy() for name, mask in read.items()}
    links: list[tuple[str, str, int]] = []
    whole = {value.name for value in (*graph.model.graph.input, *graph.model.graph.output)}
    for meaning in meanings:
        if isinstance(meaning, Blocked):
            whole |= {*meaning.sources, *meaning.targets}
        elif isinstance(meaning, Tie):
            links += [(name, meaning.target, meaning.factor) for name in meaning.sources]
        elif _depthwise(meaning):
            links.append((meaning.source, meaning.target, meaning.weight.shape[1]))
        elif len(meaning.weight) > 1:
            whole |= {meaning.source, meaning.target}
    for name in whole & kept.keys():
        kept[name][:] = True
    _settle(kept, links)
    for mask in kept.values():
        if not mask.any():
            mask[0] = True
            _settle(kept, links)
    for meaning in meanings:
        if isinstance(meaning, Layer):
            mask = kept[meaning.target]
            missing = -int(mask.sum()) % round_to
            mask[np.flatnonzero(~mask)[:missing]] = True
            _settle(kept, links)
    return kept


def _settle(kept: Mapping[str, Mask], links: Sequence[tuple[str, str, int]]) -> None:
    """Keep every channel, in place, of which a linked tensor keeps its part."""
    changed = True
    while changed:
        changed = False
        for source, target, factor in links:
            both = kept[source] | kept[target].reshape(-1, factor).any(axis=1)
            changed |= not (np.array_equal(both, kept[source]) and np.array_equal(both.repeat(factor), kept[target]))
            kept[source][:], kept[target][:] = both, both.repeat(factor)


def _depthwise(layer: Layer) -> bool:
    """Whether each group of the layer has one input channel, so that its channels can be tied."""
    groups, _, columns, _ = layer.weight.shape
    return bool(groups > 1 and columns == 1)


def _smaller(layer: Layer, values: Mapping[str, Values], read: Mapping[str, Mask], kept: Mapping[str, Mask]) -> Layer:
    """The layer between the kept channels: zero where nothing reads it, its constant inputs in its bias."""
    rows, columns = kept[layer.target], kept[layer.source]
    groups, each, _, _ = layer.weight.shape
    live = read[layer.target].reshape(groups, each, 1) & np.isnan(_absorbed(layer, values))
    weight = np.where(live[..., None], layer.weight, np.float32(0))
    bias = np.where(read[layer.target], _bias(layer, values), 0).astype(np.float32)[rows]
    if groups == 1:
        weight = weight[:, rows][:, :, columns]
    elif _depthwise(layer):
        weight = weight[columns]
    return replace(layer, weight=weight, bias=bias)


def _tie_edits(graph: Graph, tie: Tie, kept: Mask) -> Edits:
    """The constants of a node that works within channels, for the kept ones."""
    node = graph.model.graph.node[tie.node]
    if kept.all():
        return {}
    edits: Edits = {
        (tie.node, place): graph.arrays[node.input[place]].compress(kept, axis) for place, axis in tie.axes.items()
    }
    if node.op_type == "Reshape" and (shape := graph.arrays[node.input[1]].copy())[1] > 0:
        shape[1] = kept.sum()
        edits[tie.node, 1] = shape
    return edits


def _grown(graph: Graph, edits: Edits) -> set[str]:
    """The shared weights, by name, whose new copies together are larger than the one that there was."""
    copies: dict[str, list[Array]] = {}
    for place, node in enumerate(graph.model.graph.node):
        if is_layer(node) and node.input[1] in graph.arrays:
            array = edits.get((place, 1), graph.arrays[node.input[1]])
            known = copies.setdefault(node.input[1], [])
            if not any(np.array_equal(array, other) for other in known):
                known.append(array)
    return {name for name, arrays in copies.items() if sum(a.size for a in arrays) > graph.arrays[name].size}


def _widths(graph: Graph) -> dict[str, int]:
    """The output channels of every layer, by its output."""
    widths = graph.widths()
    return {node.output[0]: widths.get(node.output[0], 0) for node in graph.model.graph.node if is_layer(node)}


def _parameters(graph: Graph) -> int:
    return sum(array.size for array in graph.arrays.values() if array.dtype.kind == "f")


def _untouched(graph: Graph, meanings: Sequence[Meaning]) -> tuple[str, ...]:
    """The nodes about which nothing could be proved, and why."""
    if graph.has_subgraphs():
        return ("the whole graph: a node of it holds a graph of its own",)
    reasons = [f"{m.targets[0]}: {m.reason}" for m in meanings if isinstance(m, Blocked) and m.sources and m.targets]
    names = graph.names()
    return (
        *reasons,
        *(
            f"{names[m.target]}: a convolution in {len(m.weight)} groups of more than one input channel"
            for m in meanings
            if isinstance(m, Layer) and len(m.weight) > 1 and not _depthwise(m)
        ),
    )
