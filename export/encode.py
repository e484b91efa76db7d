"""The pair encode / decode: sparse weights inside an ONNX file, rebuilt by its own graph.

Law: ``decode(encode(m).model)`` has every initializer of m, bit for bit, and else the graph of m; the one exception is
a -0.0 in a tensor coded by position, which returns as 0.0 and is counted in ``Encoding.negative_zeros``. (Pruning by a
product with a mask, or a batch norm folded in, turns about half of all pruned weights into -0.0; no sum of products
tells the two zeros apart, except by the sign of an output that is itself zero.) ``encode`` holds itself to the law
before it returns: ONNX Runtime rebuilds every tensor and the bits are compared.

The coded file is plain ONNX: any runtime loads it without code of ours, and ONNX Runtime folds the nodes away when a
session starts, so that it then runs the very graph of the dense file. Each tensor takes the smallest of five forms, by
bytes in the file, names and nodes included::

    dense      the initializer as it was
    constant   one value everywhere: ConstantOfShape
    gaps8      g: uint8[m], v: T[m]    ConstantOfShape[CumSum(g)] = v, by ScatterElements
    gaps16     g: uint16[m], v: T[m]   the same
    bitmap     b: uint8[n / 8], v: T[1 + m]    v[bits * CumSum(bits)], by Gather, with v[0] = 0 and bits = b & 2^i

g[0] is the first position, g[i] the distance to the one before. A distance beyond the type's largest is cut by fillers:
that largest distance with the value 0, on a position that is zero anyway, so that positions strictly increase. A bit is
cheaper than a gap above a density of about 1/8. (Bits decoded by ``NonZero`` would not be folded.)

Every value that coding adds to the graph has a name that starts with a tilde, and nothing else has.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple, cast

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.helper import make_empty_tensor_value_info, make_graph, make_model, make_node

from export.graph import parse
from protocol.errors import ExportError

MINIMUM_OPSET: Final = 18
"""The first operator set with ``BitwiseAnd``."""

_MARK: Final = "~"
_ONNX: Final = frozenset({"", "ai.onnx"})
_INDEX: Final = onnx.TensorProto.INT32
"""Of positions: no tensor of one file has 2^31 elements."""

_AXIS: Final = numpy_helper.from_array(np.array(0), _MARK + "axis")
_POWERS: Final = numpy_helper.from_array(2 ** np.arange(8, dtype=np.uint8), _MARK + "powers")

_DTYPES: Final = frozenset(onnx.TensorProto.DataType.Value(name) for name in ("FLOAT", "FLOAT16", "INT8", "UINT8"))
"""What networks keep weights in. Shapes, axes and bounds are of other types, and small."""

_WEIGHT_INPUTS: Final[Mapping[str, tuple[int, ...]]] = {
    **dict.fromkeys(("Add", "MatMul", "Mul", "Sub"), (0, 1)),
    **dict.fromkeys(("DequantizeLinear", "Gather", "Transpose"), (0,)),
    **dict.fromkeys(("Conv", "ConvTranspose"), (1, 2)),
    "BatchNormalization": (1, 2, 3, 4),
    "Gemm": (0, 1, 2),
    "PRelu": (1,),
}
"""Inputs that may come from a folded node. Scales, zero points, bounds and all else not listed stay initializers."""


class Form(StrEnum):
    """How a tensor stands in the file; the module says what each means."""

    DENSE = "dense"
    CONSTANT = "constant"
    GAPS8 = "gaps8"
    GAPS16 = "gaps16"
    BITMAP = "bitmap"


class TensorSize(NamedTuple):
    """Bytes that a tensor takes in the dense and in the coded file, nodes and names included."""

    dense_bytes: int
    coded_bytes: int
    form: Form


@dataclass(frozen=True)
class Encoding:
    """A coded file.

    Attributes:
        model: The serialised ``ModelProto``.
        tensors: What became of each initializer, by name, in the file's order. A constant that several tensors share,
            such as a shape, counts towards the first of them.
        negative_zeros: How many -0.0 became 0.0.
    """

    model: bytes
    tensors: Mapping[str, TensorSize]
    negative_zeros: int


def encode(onnx_bytes: bytes) -> Encoding:
    """Code the weights of an ONNX file.

    Weights are the initializers of the main graph that stand only where an operator reads weights. Those of nested
    graphs, those that a caller may override and those of other types are left as they are, as are all names, metadata
    and the rest of the graph.

    Args:
        onnx_bytes: A self-contained file that passes the full check of ``onnx.checker``, of operator set 18 or later.

    Returns:
        The coded file, which passes that check as well, and what was done to each tensor.

    Raises:
        ExportError: The file is not valid ONNX, is too old, keeps weights in another file or is coded already; or, a
            mistake of ours, the coded file is not valid or does not decode to the same weights.
    """
    dense = _load(onnx_bytes)
    if any(name.startswith(_MARK) for name in _names(dense.graph)):
        raise ExportError(f"the file has values named {_MARK}…, as a coded file does; give the dense file")
    weights = _weights(dense.graph)
    initializers: dict[str, onnx.TensorProto] = {}
    nodes: list[onnx.NodeProto] = []
    tensors: dict[str, TensorSize] = {}
    for place, tensor in enumerate(dense.graph.initializer):
        plain = _Piece(Form.DENSE, (tensor,))
        pieces = [plain, *(_codings(tensor, f"{_MARK}{place}") if tensor.name in weights else ())]
        sizes = [piece.size(initializers) for piece in pieces]
        best = pieces[sizes.index(min(sizes))]
        tensors[tensor.name] = TensorSize(sizes[0], min(sizes), best.form)
        initializers |= {constant.name: constant for constant in best.initializers}
        nodes += best.nodes
    model = _rebuilt(dense, [*nodes, *dense.graph.node], initializers.values())
    return Encoding(model, MappingProxyType(tensors), negative_zeros=_compare(dense, _load(decode(model))))


def decode(onnx_bytes: bytes) -> bytes:
    """Turn a coded file back into the dense one; ONNX Runtime rebuilds the weights by the file's own nodes.

    Args:
        onnx_bytes: The ``model`` of an :class:`Encoding`. A file that holds nothing coded comes back as it is.

    Returns:
        The serialised ``ModelProto``, the coded weights behind the other initializers.

    Raises:
        ExportError: The file is not valid ONNX, or its coded weights cannot be rebuilt.
    """
    coded = _load(onnx_bytes)
    graph = coded.graph
    added = [tensor for tensor in graph.initializer if tensor.name.startswith(_MARK)]
    if not added:
        return onnx_bytes
    decoding: list[onnx.NodeProto] = []
    others: list[onnx.NodeProto] = []
    for node in graph.node:
        ours = node.input and all(name.startswith(_MARK) for name in node.input)
        (decoding if ours else others).append(node)
    names = [name for node in decoding for name in node.output if not name.startswith(_MARK)]
    outputs = [make_empty_tensor_value_info(name) for name in names]
    opsets = [entry for entry in coded.opset_import if entry.domain in _ONNX]
    alone = make_model(
        make_graph(decoding, "weights", [], outputs, added), opset_imports=opsets, ir_version=coded.ir_version
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(alone.SerializeToString(), options, providers=["CPUExecutionProvider"])
        arrays = session.run(names, {})
    except Exception as error:  # the errors of ONNX Runtime share no class below this one
        raise ExportError(f"the coded weights cannot be rebuilt: {error}. Export the checkpoint again.") from error
    kept = [tensor for tensor in graph.initializer if not tensor.name.startswith(_MARK)]
    rebuilt = [numpy_helper.from_array(array, name) for name, array in zip(names, arrays, strict=True)]
    return _rebuilt(coded, others, [*kept, *rebuilt])


def gaps(positions: NDArray[np.int64], largest: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The gap stream of strictly increasing positions, i64[p], in steps of at most ``largest``.

    Law: with ``steps, stops = gaps(positions, largest)``, ``cumsum(steps)`` strictly increases and
    ``cumsum(steps)[stops] == positions``.

    Returns:
        Steps, i64[m] with m >= p: the first position, then distances. And bool[m]: false where a step is a filler.
    """
    distances = np.diff(positions, prepend=0)
    fillers = np.maximum(distances - 1, 0) // largest
    ends = np.cumsum(fillers + 1) - 1
    steps = np.full(len(positions) + int(fillers.sum()), largest, np.int64)
    steps[ends] = distances - largest * fillers
    stops = np.zeros(len(steps), np.bool_)
    stops[ends] = True
    return steps, stops


@dataclass(frozen=True)
class _Piece:
    """What one tensor puts into the file: constants, and the nodes that make the tensor of them."""

    form: Form
    initializers: tuple[onnx.TensorProto, ...]
    nodes: tuple[onnx.NodeProto, ...] = ()

    def size(self, known: Mapping[str, onnx.TensorProto]) -> int:
        """Bytes that this piece adds to a graph which holds the ``known`` initializers."""
        new = [tensor for tensor in self.initializers if tensor.name not in known]
        return int(onnx.GraphProto(initializer=new, node=self.nodes).ByteSize())


def _codings(tensor: onnx.TensorProto, tag: str) -> Iterator[_Piece]:
    """The forms that ``tensor`` can take besides the dense one; ``tag`` begins the names of its own values."""
    array = numpy_helper.to_array(tensor)
    if array.size == 0:
        return
    bits, kept = _bits(array), _nonzero(array)
    same = bool((bits == bits[0]).all())
    if same or not kept.any():
        shape = _dimensions(array.shape)
        value = numpy_helper.from_array(array.reshape(-1)[:1] if same else np.zeros(1, array.dtype))
        yield _Piece(Form.CONSTANT, (shape,), (make_node("ConstantOfShape", [shape.name], [tensor.name], value=value),))
        return
    yield _by_gaps(tensor.name, tag, array, kept, Form.GAPS8)
    yield _by_gaps(tensor.name, tag, array, kept, Form.GAPS16)
    yield _by_bitmap(tensor.name, tag, array, kept)


def _by_gaps(name: str, tag: str, array: np.ndarray, kept: NDArray[np.bool_], form: Form) -> _Piece:
    """Gaps, and values with a zero for each filler."""
    dtype, largest = (np.uint8, 2**8 - 1) if form is Form.GAPS8 else (np.uint16, 2**16 - 1)
    steps, stops = gaps(np.flatnonzero(kept), largest)
    values = np.zeros(len(steps), array.dtype)
    values[stops] = array.reshape(-1)[kept]
    length, shape = _dimensions((array.size,)), _dimensions(array.shape)
    zero = numpy_helper.from_array(np.zeros(1, array.dtype))
    g, v, i, p, z, f = (tag + letter for letter in "gvipzf")
    constants = (numpy_helper.from_array(steps.astype(dtype), g), numpy_helper.from_array(values, v))
    nodes = (
        make_node("Cast", [g], [i], to=_INDEX),
        make_node("CumSum", [i, _AXIS.name], [p]),
        make_node("ConstantOfShape", [length.name], [z], value=zero),
        make_node("ScatterElements", [z, p, v], [f], axis=0),
        make_node("Reshape", [f, shape.name], [name]),
    )
    return _Piece(form, (_AXIS, length, shape, *constants), nodes)


def _by_bitmap(name: str, tag: str, array: np.ndarray, kept: NDArray[np.bool_]) -> _Piece:
    """One bit for each element, the lowest of a byte first, and the values behind a zero."""
    packed = np.packbits(kept, bitorder="little").reshape(-1, 1)
    values = np.concatenate([np.zeros(1, array.dtype), array.reshape(-1)[kept]])
    start, length, flat, shape = (_dimensions(size) for size in ((0,), (array.size,), (-1,), array.shape))
    b, v, a, t, c, i, r, k, f, s = (tag + letter for letter in "bvatcirkfs")
    constants = (numpy_helper.from_array(packed, b), numpy_helper.from_array(values, v))
    nodes = (
        make_node("BitwiseAnd", [b, _POWERS.name], [a]),
        make_node("Cast", [a], [t], to=onnx.TensorProto.BOOL),
        make_node("Cast", [t], [c], to=_INDEX),
        make_node("Reshape", [c, flat.name], [i]),
        make_node("CumSum", [i, _AXIS.name], [r]),
        make_node("Mul", [i, r], [k]),
        make_node("Gather", [v, k], [f]),
        make_node("Slice", [f, start.name, length.name], [s]),
        make_node("Reshape", [s, shape.name], [name]),
    )
    return _Piece(Form.BITMAP, (_AXIS, _POWERS, start, length, flat, shape, *constants), nodes)


def _dimensions(shape: tuple[int, ...]) -> onnx.TensorProto:
    """``shape`` as a constant that all who need the same one share."""
    return numpy_helper.from_array(np.array(shape, np.int64), _MARK + ".".join(map(str, shape)))


def _bits(array: np.ndarray) -> NDArray[np.unsignedinteger[Any]]:
    """The bits of every element, u[n]: a comparison of floats would not see a sign, nor every NaN and subnormal."""
    return np.ascontiguousarray(array).reshape(-1).view(f"u{array.itemsize}")


def _nonzero(array: np.ndarray) -> NDArray[np.bool_]:
    """bool[n], false for 0 and, among floats, -0.0."""
    bits = _bits(array)
    result: NDArray[np.bool_] = (bits << 1 if array.dtype.kind == "f" else bits) != 0
    return result


def _weights(graph: onnx.GraphProto) -> set[str]:
    """Names of the initializers that some operator of ``graph`` reads as weights, and nothing reads otherwise."""
    weights: set[str] = set()
    others = {value.name for value in (*graph.input, *graph.output)}
    for node in graph.node:
        places = _WEIGHT_INPUTS.get(node.op_type, ()) if node.domain in _ONNX else ()
        for place, name in enumerate(node.input):
            (weights if place in places else others).add(name)
        for inner in _inner(node):
            others.update(_names(inner))
    return weights & {tensor.name for tensor in graph.initializer if tensor.data_type in _DTYPES} - others


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    """Every name of a value in ``graph`` and in the graphs inside it; some more than once."""
    sparse = (tensor.values for tensor in graph.sparse_initializer)
    yield from (entry.name for entry in (*graph.initializer, *sparse, *graph.input, *graph.output))
    for node in graph.node:
        yield from (*node.input, *node.output)
        for inner in _inner(node):
            yield from _names(inner)


def _inner(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that ``node`` holds, such as the body of a loop."""
    for attribute in node.attribute:
        yield from (attribute.g, *attribute.graphs)


def _load(onnx_bytes: bytes) -> onnx.ModelProto:
    """Read a self-contained file of a recent enough operator set."""
    model = parse(onnx_bytes)
    opset = max((entry.version for entry in model.opset_import if entry.domain in _ONNX), default=0)
    if opset < MINIMUM_OPSET:
        raise ExportError(f"the file has operator set {opset}, and coding needs {MINIMUM_OPSET}; export it again")
    return model


def _rebuilt(
    model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], initializers: Iterable[onnx.TensorProto]
) -> bytes:
    """The file of ``model`` with other nodes and initializers."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.ClearField("node")
    result.graph.ClearField("initializer")
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(initializers)
    return cast("bytes", result.SerializeToString(deterministic=True))


def _compare(dense: onnx.ModelProto, decoded: onnx.ModelProto) -> int:
    """Check the law of this module; returns how many -0.0 became 0.0."""
    if _rebuilt(dense, dense.graph.node, ()) != _rebuilt(decoded, decoded.graph.node, ()):
        raise ExportError("coding changed the graph; this is a mistake of PruneSeal, please report it")
    found = {tensor.name: tensor for tensor in decoded.graph.initializer}
    negative_zeros = 0
    for tensor in dense.graph.initializer:
        if found[tensor.name] == tensor:
            continue
        before, after = numpy_helper.to_array(tensor), numpy_helper.to_array(found[tensor.name])
        alike = (before.dtype, before.shape) == (after.dtype, after.shape)
        unsigned = np.where(_nonzero(before), _bits(before), 0)
        if alike and np.array_equal(_bits(after), _bits(before)):
            continue
        if not alike or not np.array_equal(_bits(after), unsigned):
            raise ExportError(
                f"{tensor.name} does not decode to the same bits; please report this mistake of PruneSeal"
            )
        negative_zeros += int(np.count_nonzero(_bits(before) != unsigned))
    return negative_zeros
