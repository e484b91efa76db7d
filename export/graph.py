"""What each node of an ONNX graph means for channels: which it computes, which it ties, and where nothing is known.

A channel is one index of axis 1: of an image f32[n, c, h, w] or of rows f32[n, c]. Every node is one of three:

* a ``Layer`` computes its output's channels from its input's by weights: Conv, Gemm, MatMul;
* a ``Tie`` works within channels, so that channel c of each source is channels c·f … c·f + f - 1 of its target:
  elementwise operators, batch norm, pooling, flatten and depthwise shapes alike;
* ``Blocked`` is everything else, with the reason.

Law: a node is a ``Layer`` or a ``Tie`` only where attributes, constants and static shapes prove it.

Source: the ONNX operators' specification, operator sets 13 to 20.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final, cast

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from protocol.errors import ExportError

Array = NDArray[Any]
Values = NDArray[np.float64]
"""f64[c], one per channel: the value that a channel has everywhere and for every input; NaN where it has none."""

_ELEMENTWISE: Final = frozenset({
    "Abs", "Add", "Clip", "Div", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Max",
    "Min", "Mish", "Mul", "Neg", "PRelu", "Relu", "Selu", "Sigmoid", "Sign", "Softplus", "Softsign", "Sub", "Tanh",
    "ThresholdedRelu",
})  # fmt: skip
"""Finite wherever their inputs are (Div by a constant only), so that a channel nobody reads may hold any value."""

_POOLS: Final = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})
_REDUCTIONS: Final = frozenset({"ReduceMax", "ReduceMean", "ReduceMin"})
_RESHAPES: Final = frozenset({"Flatten", "Reshape"})
_KNOWN: Final = _ELEMENTWISE | _POOLS | _REDUCTIONS | _RESHAPES | {"BatchNormalization"}
_BATCH_NORM_INPUTS: Final = 5


@dataclass(frozen=True)
class Layer:
    """Channels out of channels, by weights.

    Attributes:
        node: Its place in the graph's nodes.
        source: The tensor that it reads, of groups * columns channels.
        target: The tensor that it writes, of groups * rows channels.
        weight: f32[groups, rows, columns, kernel].
        bias: f32[groups * rows].
        padded: Its input is padded with zeros, so that a constant channel is not constant at the border.
    """

    node: int
    source: str
    target: str
    weight: Array
    bias: Array
    padded: bool


@dataclass(frozen=True)
class Tie:
    """Channel c of every source is channels c * factor … of the target.

    Attributes:
        node: Its place in the graph's nodes.
        sources: The tensors that it reads, with the same number of channels.
        target: The tensor that it writes.
        factor: Channels of the target to one of a source.
        axes: For the place of each constant input that has a value per channel, the axis of the channels in it.
        uniform: A channel with one value everywhere gives such a channel; else only zero does, and only in a pool.
        evaluate: That value is the node's function of the sources' values; else it is the source's own.
        ignores: bool[c], the channels that do not depend on the sources: batch norm with a scale of zero.
    """

    node: int
    sources: tuple[str, ...]
    target: str
    factor: int = 1
    axes: Mapping[int, int] = field(default_factory=dict)
    uniform: bool = True
    evaluate: bool = False
    ignores: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Blocked:
    """A node about whose channels nothing is known, and why."""

    node: int
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    reason: str


Meaning = Layer | Tie | Blocked


class Unproved(Exception):
    """A node is not what its operator suggests; the text says why."""


@dataclass(frozen=True)
class Graph:
    """An ONNX model, read.

    Attributes:
        model: The model itself.
        arrays: The constants by name.
        shapes: Of every tensor whose rank is known; a dynamic axis is its name, an unknown one None.
    """

    model: onnx.ModelProto
    arrays: Mapping[str, Array]
    shapes: Mapping[str, tuple[int | str | None, ...]]

    @classmethod
    def read(cls, model: onnx.ModelProto) -> "Graph":
        """Find the constants and infer the shapes.

        Raises:
            ExportError: A constant has more or fewer values than its shape says.
        """
        inputs = {value.name for value in model.graph.input}
        try:
            arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name not in inputs}
        except (ValueError, TypeError) as error:
            raise ExportError(f"a constant of the ONNX file cannot be read: {error}. Export it again.") from error
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        shapes = {
            value.name: tuple(_axis(axis) for axis in value.type.tensor_type.shape.dim)
            for value in (*inferred.input, *inferred.value_info, *inferred.output)
            if value.type.tensor_type.HasField("shape")
        }
        return cls(model, arrays, shapes)

    def channels(self, name: str) -> int | None:
        """How many channels a tensor has; None where that is not known, or it has none."""
        shape = self.shapes.get(name, ())
        return shape[1] if len(shape) > 1 and isinstance(shape[1], int) and shape[1] > 0 else None

    def meanings(self, frozen: Collection[str] = ()) -> list[Meaning]:
        """What each node means, in the graph's order.

        Args:
            frozen: Weights, by name, that must stay as they are.
        """
        return [self._meaning(place, frozen) for place in range(len(self.model.graph.node))]

    def evaluate(self, tie: Tie, values: list[Values]) -> Values:
        """The target's constant channels, from those of the sources: the node's own function."""
        node = self.model.graph.node[tie.node]
        shape = (1, len(values[0]), *[1] * (len(self.shapes[tie.target]) - 2))
        feeds = {
            name: np.nan_to_num(value).astype(np.float32).reshape(shape)
            for name, value in zip(tie.sources, values, strict=True)
        }
        constants = {name: self.arrays[name] for name in node.input if name in self.arrays}
        alone = onnx.helper.make_graph(
            [node],
            "one",
            [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in feeds],
            [onnx.helper.make_tensor_value_info(tie.target, onnx.TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        model = onnx.helper.make_model(alone, opset_imports=self.model.opset_import)
        with np.errstate(all="ignore"):
            (output,) = cast("list[Array]", ReferenceEvaluator(model).run(None, feeds))
        result = output.astype(np.float64).reshape(-1)
        known = np.isfinite(values).all(axis=0)
        known = known if tie.ignores is None else known | tie.ignores
        return np.where(known & np.isfinite(result), result, np.nan)

    def widths(self) -> dict[str, int]:
        """The channels of every computed tensor that has some, in the graph's order."""
        tensors = [
            *(value.name for value in self.model.graph.input),
            *(n for v in self.model.graph.node for n in v.output),
        ]
        return {name: width for name in tensors if (width := self.channels(name)) is not None}

    def has_subgraphs(self) -> bool:
        """Whether a node holds a graph of its own, which may read any tensor of this one."""
        kinds = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
        return any(attribute.type in kinds for node in self.model.graph.node for attribute in node.attribute)

    def names(self) -> dict[str, str]:
        """What to call each layer, by its output: its weight's name without ``.weight``, if no other layer has it."""
        nodes = [node for node in self.model.graph.node if is_layer(node)]
        uses = Counter(node.input[1] for node in nodes)
        return {
            node.output[0]: node.input[1].removesuffix(".weight")
            if uses[node.input[1]] == 1 and node.input[1] in self.arrays
            else node.output[0]
            for node in nodes
        }

    def _meaning(self, place: int, frozen: Collection[str]) -> Meaning:
        node = self.model.graph.node[place]
        sources = tuple(dict.fromkeys(name for name in node.input if name and name not in self.arrays))
        targets = tuple(name for name in node.output if name)
        try:
            return self._proved(place, node, sources, targets, frozen)
        except Unproved as error:
            return Blocked(place, sources, targets, str(error))

    def _proved(
        self,
        place: int,
        node: onnx.NodeProto,
        sources: tuple[str, ...],
        targets: tuple[str, ...],
        frozen: Collection[str],
    ) -> Layer | Tie:
        if node.domain not in {"", "ai.onnx"}:
            raise Unproved(f"{node.domain}.{node.op_type} is not an operator of ONNX")
        if len(targets) != 1:
            raise Unproved(f"{node.op_type} with {len(targets)} outputs")
        if not sources or None in [self.channels(name) for name in (*sources, *targets)]:
            raise Unproved(f"{node.op_type} on tensors whose channels are not known")
        return self._layer(place, node, frozen) if is_layer(node) else self._tie(place, node, sources)

    def _layer(self, place: int, node: onnx.NodeProto, frozen: Collection[str]) -> Layer:
        options = attributes(node)
        source, name, *rest = node.input
        weight = self.arrays.get(name)
        if name in frozen:
            raise Unproved(f"the weights {name!r} are shared, and two smaller copies would be larger than one")
        if weight is None or weight.dtype != np.float32 or not np.isfinite(weight).all():
            raise Unproved(f"{node.op_type} whose weights are not finite float32 constants")
        if node.op_type == "Conv":
            groups = int(options.get("group", 1))
            if len(weight) % groups:
                raise Unproved(f"Conv with {len(weight)} outputs in {groups} groups")
            weight = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
            padded = _padded(options)
        else:
            if weight.ndim != 2 or len(self.shapes[source]) != 2:
                raise Unproved(f"{node.op_type} on other than rows of channels")
            if options.get("alpha", 1) != 1 or options.get("beta", 1) != 1 or options.get("transA", 0):
                raise Unproved("Gemm that scales or transposes its input")
            weight = (weight if options.get("transB", 0) else weight.T)[None, :, :, None]
            padded = False
        groups, rows, columns, _ = weight.shape
        bias = np.zeros(groups * rows, np.float32)
        if rest and rest[0]:
            given = self.arrays.get(rest[0])
            if given is None or given.dtype != np.float32 or not np.isfinite(given).all():
                raise Unproved(f"{node.op_type} whose bias is not a finite float32 constant")
            if given.size not in {1, len(bias)} or given.shape[-1:] not in {(), (given.size,)}:
                raise Unproved(f"{node.op_type} whose bias is not one value per channel")
            bias = np.broadcast_to(given, (1, len(bias)))[0]
        if self.channels(source) != groups * columns or self.channels(node.output[0]) != len(bias):
            raise Unproved(f"{node.op_type} on tensors whose channels are not known")
        return Layer(place, source, node.output[0], weight, bias, padded)

    def _tie(self, place: int, node: onnx.NodeProto, sources: tuple[str, ...]) -> Tie:
        options, target = attributes(node), node.output[0]
        shapes, shape = [self.shapes[name] for name in sources], self.shapes[target]
        if node.op_type not in _KNOWN or (node.op_type == "Div" and node.input[1] not in self.arrays):
            raise Unproved(f"{node.op_type} is not an operator that can be followed")
        if node.op_type in _RESHAPES:
            return Tie(place, sources, target, self._flattened(node, shapes[0], shape))
        if len({sizes[1] for sizes in shapes} | {shape[1]}) != 1:
            raise Unproved(f"{node.op_type} between different channel counts")
        if node.op_type in _POOLS:
            counts_pads = bool(options.get("count_include_pad", 0)) and (
                _padded(options) or options.get("ceil_mode", 0)
            )
            return Tie(place, sources, target, uniform=not counts_pads)
        if node.op_type in _REDUCTIONS:
            reduced = self.arrays.get(node.input[1]) if len(node.input) > 1 else options.get("axes")
            if reduced is None or len(reduced) == 0 or min(int(axis) % len(shapes[0]) for axis in reduced) < 2:
                raise Unproved(f"{node.op_type} over the batch or the channels")
            return Tie(place, sources, target)
        constants = {p: self.arrays[name] for p, name in enumerate(node.input) if name in self.arrays}
        if any(array.dtype != np.float32 or not np.isfinite(array).all() for array in constants.values()):
            raise Unproved(f"{node.op_type} with constants that are not finite float32")
        if node.op_type == "BatchNormalization":
            if len(constants) != _BATCH_NORM_INPUTS - 1 or options.get("training_mode", 0):
                raise Unproved("BatchNormalization whose statistics are not constants")
            return Tie(place, sources, target, 1, dict.fromkeys(constants, 0), evaluate=True, ignores=constants[1] == 0)
        if any(len(sizes) != len(shape) for sizes in shapes):
            raise Unproved(f"{node.op_type} between tensors of different ranks")
        axes = {p: array.ndim - len(shape) + 1 for p, array in constants.items()}
        if any(array.ndim == len(shape) and array.shape[0] != 1 for array in constants.values()):
            raise Unproved(f"{node.op_type} with a constant that has a batch")
        axes = {p: axis for p, axis in axes.items() if axis >= 0 and constants[p].shape[axis] == shape[1] != 1}
        uniform = all(array.size == (array.shape[axes[p]] if p in axes else 1) for p, array in constants.items())
        return Tie(place, sources, target, 1, axes, uniform, evaluate=True)

    def _flattened(
        self, node: onnx.NodeProto, before: tuple[int | str | None, ...], after: tuple[int | str | None, ...]
    ) -> int:
        """How many channels of the target one of the source becomes, where the batch is kept."""
        inner, outer = [*before[1:]], [*after[1:]]
        sizes = [size for size in (*inner, *outer) if isinstance(size, int)]
        if node.op_type == "Flatten" and attributes(node).get("axis", 1) != 1:
            raise Unproved("Flatten over the batch")
        if len(sizes) != len(inner) + len(outer) or prod(sizes[: len(inner)]) != prod(sizes[len(inner) :]):
            raise Unproved(f"{node.op_type} that mixes the batch with the rest, or whose shape is not known")
        if node.op_type == "Reshape":
            wanted = self.arrays.get(node.input[1])
            if wanted is None or wanted[0] > 0 or (wanted[0] == 0 and attributes(node).get("allowzero", 0)):
                raise Unproved("Reshape to a shape that is not constant, or fixes the batch")
        channels, rest = divmod(sizes[len(inner)], sizes[0])
        if rest or channels == 0:
            raise Unproved(f"{node.op_type} that splits channels")
        return channels


def is_layer(node: onnx.NodeProto) -> bool:
    """Whether the node's operator is one that multiplies by weights."""
    return node.domain in {"", "ai.onnx"} and node.op_type in {"Conv", "Gemm", "MatMul"}


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The node's attributes by name, as Python values."""
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def parse(onnx_bytes: bytes) -> onnx.ModelProto:
    """Read a self-contained ONNX file.

    Raises:
        ExportError: The bytes are not a valid model, or its weights are in another file.
    """
    try:
        onnx.checker.check_model(onnx_bytes, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise ExportError(f"not a valid ONNX file: {error}. Export the checkpoint again.") from error
    model = parsed(onnx_bytes, "the model")
    if keeps_weights_elsewhere(model):
        raise ExportError("the ONNX file keeps its weights in another file; save it as one file first")
    return model


def keeps_weights_elsewhere(message: Any) -> bool:
    """Whether a tensor anywhere in an ONNX message names another file for its data."""
    if isinstance(message, onnx.TensorProto):
        return bool(message.data_location == onnx.TensorProto.EXTERNAL)
    return any(
        keeps_weights_elsewhere(child)
        for field, value in message.ListFields()
        if field.message_type is not None
        for child in ([value] if hasattr(value, "ListFields") else value)
    )


def _padded(options: Mapping[str, Any]) -> bool:
    """Whether a convolution or a pool with these attributes sees beyond the border of its input."""
    return any(options.get("pads", ())) or options.get("auto_pad", b"NOTSET").startswith(b"SAME")


def _axis(axis: onnx.TensorShapeProto.Dimension) -> int | str | None:
    kind = axis.WhichOneof("value")
    return None if kind is None else getattr(axis, kind)


def parsed(data: bytes, where: object) -> onnx.ModelProto:
    """The model that these bytes are.

    Raises:
        ExportError: They are none. ONNX's checker reads some that Python's protobuf does not: with a name that is no
            UTF-8, for one.
    """
    try:
        return onnx.load_model_from_string(data)
    except DecodeError as error:
        raise ExportError(f"{where} is not a valid ONNX file: {error}. Export the checkpoint again.") from error
