"""Writing what was found out back into an ONNX graph: other constants, and nothing that no output needs.

Law: ``replaced`` with no edits, and ``pruned`` of a graph without dead nodes, compute what they were given.
"""

from collections.abc import Collection
from itertools import chain, count

import numpy as np
import onnx
from onnx import numpy_helper

from export.graph import Array, Graph, Layer, attributes

Edits = dict[tuple[int, int], Array]
"""New constants, by the place of the node in the graph and of the input in the node."""


def stored(graph: Graph, layer: Layer) -> Edits:
    """The layer's weight and bias as its node holds them, where they differ from what the graph has."""
    node = graph.model.graph.node[layer.node]
    old, new = graph.arrays[node.input[1]], layer.weight
    if node.op_type == "Conv":
        new = new.reshape(-1, new.shape[2], *old.shape[2:])
    else:
        new = new[0, :, :, 0] if attributes(node).get("transB", 0) else new[0, :, :, 0].T
    edits: Edits = {} if np.array_equal(new, old) else {(layer.node, 1): np.ascontiguousarray(new)}
    if len(node.input) > 2 and node.input[2]:
        old = np.broadcast_to(graph.arrays[node.input[2]], (1, graph.widths()[layer.target]))[0]
        return edits if np.array_equal(layer.bias, old) else edits | {(layer.node, 2): layer.bias}
    return edits | {(layer.node, 2): layer.bias} if layer.bias.any() else edits


def replaced(graph: Graph, edits: Edits) -> onnx.ModelProto:
    """A copy of the model with other constants; uses of one constant that are still equal still share it."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    model.graph.ClearField("value_info")
    outputs = {value.name for value in model.graph.output} & graph.arrays.keys()
    taken = {*graph.arrays, *(name for node in model.graph.node for name in (*node.input, *node.output))}
    variants: dict[str, list[tuple[str, Array]]] = {name: [(name, graph.arrays[name])] for name in outputs}
    for place, node in enumerate(model.graph.node):
        if (place, len(node.input)) in edits:
            node.input.append("")
        for index, name in enumerate(node.input):
            array = edits.get((place, index), graph.arrays.get(name))
            if array is None:
                continue
            if node.op_type == "Conv" and index == 1 and len(array) != len(graph.arrays[name]):
                _regroup(node, len(graph.arrays[name]), len(array))
            if node.op_type == "MatMul" and index == 2:
                node.op_type = "Gemm"
            base = name or f"{node.output[0]}.bias"
            known = variants.setdefault(base, [])
            label = next((label for label, other in known if other is array or np.array_equal(other, array)), None)
            if label is None:
                label = base if base in graph.arrays and not known else _unused(base, taken)
                known.append((label, array))
                taken.add(label)
            node.input[index] = label
    tensors = {label: array for known in variants.values() for label, array in known}
    unchanged = {t.name for t in model.graph.initializer if tensors.get(t.name) is graph.arrays.get(t.name)}
    for place in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[place].name not in unchanged:
            del model.graph.initializer[place]
    model.graph.initializer.extend(
        numpy_helper.from_array(array, label) for label, array in tensors.items() if label not in unchanged
    )
    return model


def pruned(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, changed in place, without the nodes and constants that no output needs.

    A graph whose nodes hold graphs of their own does not come here (``Graph.has_subgraphs``). onnx_ir's
    ``RemoveUnusedNodesPass`` removes the same nodes and constants, and looks into such graphs, but the model has to
    become onnx_ir's and back: it comes back 124 to 131 bytes longer for two networks of 21 and 77 kB, and nodes change
    that were not dead (unused optional outputs go). For 100 MB of weights it takes 110 ms, this 0.1 ms.
    """
    graph = model.graph
    needed = {value.name for value in graph.output}
    for place in reversed(range(len(graph.node))):
        if needed.isdisjoint(graph.node[place].output):
            del graph.node[place]
        else:
            needed |= {*graph.node[place].input}
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name not in needed:
            del graph.initializer[place]
    return model


def _regroup(node: onnx.NodeProto, before: int, after: int) -> None:
    """Scale the groups of a depthwise convolution with its outputs; one group stays one."""
    for attribute in node.attribute:
        if attribute.name == "group" and attribute.i > 1:
            attribute.i = attribute.i * after // before


def _unused(name: str, taken: Collection[str]) -> str:
    return next(new for new in chain([name], (f"{name}.{k}" for k in count(1))) if new not in taken)
