"""The work that an ONNX file does: its multiply-accumulates, and the fraction of them that zeros leave.

Sparsity of the parameters is not work saved: a convolution's weight works once for every position of its output.
"""

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx

from export.graph import Graph, attributes, is_layer, parse
from protocol.errors import ExportError


@dataclass(frozen=True)
class LayerWork:
    """One layer's part.

    Attributes:
        name: Its weights' name without ``.weight``, or the name of its output.
        weights: How many weights it has; 0 where both operands are computed.
        kept: How many of them are not zero.
        dense: Multiply-accumulates with every weight.
        remaining: Multiply-accumulates with the weights that are not zero.
    """

    name: str
    weights: int
    kept: int
    dense: int
    remaining: int


@dataclass(frozen=True)
class Macs:
    """The multiply-accumulates of one sample in Conv, Gemm and MatMul; bias, batch norm and pooling do not count.

    Attributes:
        layers: Layer by layer, in the graph's order.
    """

    layers: tuple[LayerWork, ...]

    @property
    def dense(self) -> int:
        """With every weight."""
        return sum(layer.dense for layer in self.layers)

    @property
    def remaining(self) -> int:
        """With the weights that are not zero."""
        return sum(layer.remaining for layer in self.layers)


def multiply_accumulates(onnx_bytes: bytes) -> Macs:
    """The work of one sample, with all weights and with those that are not zero.

    A weight of a convolution counts once for every position of its output; a product of two tensors that are both
    computed has no weights, and counts in full.

    Args:
        onnx_bytes: A self-contained file with plain float weights, not yet coded or quantised.

    Raises:
        ExportError: The bytes are not a valid self-contained model, or a shape or the weights of a layer are not known.
    """
    graph = Graph.read(parse(onnx_bytes))
    layers: list[LayerWork] = []
    names = graph.names()
    made = set(graph.arrays)
    for node in graph.model.graph.node:
        if made.issuperset(filter(None, node.input)):
            made |= {*node.output}
        if not is_layer(node):
            continue
        left, right = node.input[0], node.input[1]
        if any(name in made and name not in graph.arrays for name in (left, right)):
            raise ExportError(
                f"the weights of {node.output[0]} are computed in the graph; count before coding or quantising them"
            )
        *_, weight = [np.ones(0), *(graph.arrays[name] for name in (left, right) if name in graph.arrays)]
        sizes = (*graph.shapes.get(node.output[0], (None, None))[1:], *_terms(graph, node))
        if not all(isinstance(size, int) for size in sizes):
            raise ExportError(f"the shape of {node.output[0]} is not known before it runs; fix all but the batch")
        work = prod(size for size in sizes if isinstance(size, int))
        kept = int(np.count_nonzero(weight))
        remaining = work * kept // weight.size if weight.size else work
        layers.append(LayerWork(names[node.output[0]], weight.size, kept, work, remaining))
    return Macs(tuple(layers))


def _terms(graph: Graph, node: onnx.NodeProto) -> tuple[int | str | None, ...]:
    """How many products one element of the node's output is the sum of."""
    left, right = (
        graph.arrays[name].shape if name in graph.arrays else graph.shapes.get(name, (None, None))
        for name in node.input[:2]
    )
    if node.op_type == "Conv":
        return right[1:]
    return (left[0] if attributes(node).get("transA", 0) else left[-1],)
