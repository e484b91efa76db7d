"""``export.compact``: any small network with dead structure computes what it did."""

from itertools import count
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.parity import infer, open_session
from tests.export.compacting import checked

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


class Builder:
    """An ONNX graph that grows at its end."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw, self.random, self.fresh = draw, np.random.default_rng(draw(st.integers(0, 2**32 - 1))), count()
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.end, self.width = "input", 3

    def constant(self, array: np.ndarray) -> str:
        self.tensors.append(numpy_helper.from_array(array, f"c{next(self.fresh)}"))
        return self.tensors[-1].name

    def add(self, operator: str, *inputs: str, **options: Any) -> str:
        self.end = f"t{next(self.fresh)}"
        self.nodes.append(helper.make_node(operator, inputs, [self.end], **options))
        return self.end

    def vector(self, width: int, low: float = -1) -> np.ndarray:
        return self.random.uniform(low, 1, width).astype(np.float32)

    def sparse(self, *shape: int) -> np.ndarray:
        """Weights of which some rows, some columns and some others are zero; sometimes all of them."""
        weight = self.random.normal(size=shape).astype(np.float32)
        weight *= self.random.random(shape) < self.draw(st.sampled_from([1.0, 0.5, 0.1]))
        weight[self.random.random(shape[0]) < self.draw(st.sampled_from([0.7, 0.3, 0.0, 1.0]))] = 0
        weight[:, self.random.random(shape[1]) < self.draw(st.sampled_from([0.0, 0.3, 0.7]))] = 0
        return weight

    def conv(self, width: int, groups: int = 1) -> str:
        kernel = self.draw(st.sampled_from([3, 1]))
        pad = kernel // 2
        weight = self.constant(self.sparse(width, self.width // groups, kernel, kernel))
        bias = [self.constant(self.vector(width))] if self.draw(st.booleans()) else []
        self.width = width
        return self.add("Conv", self.end, weight, *bias, pads=[pad] * 4, kernel_shape=[kernel] * 2, group=groups)

    def image_step(self) -> None:
        start, width = self.end, self.width
        match self.draw(st.integers(0, 9)):
            case 0 | 1 | 2:
                self.conv(self.draw(st.integers(1, 8)))
            case 3:
                self.conv(width * self.draw(st.integers(1, 2)), groups=width)
            case 4:
                self.conv(width * 2, groups=2) if width % 2 == 0 else self.conv(4)
            case 5:
                self.add("Add", start, self.conv(width))
            case 6:
                self.add("Mul", start, self.add("Sigmoid", self.conv(width)))
            case 7:
                norm = [self.vector(width) * (self.random.random(width) < 0.8), *(self.vector(width) for _ in "bm")]
                names = [self.constant(array.astype(np.float32)) for array in (*norm, self.vector(width, 0.5))]
                self.add("BatchNormalization", start, *names)
            case 8:
                options = self.draw(st.sampled_from([{}, {"count_include_pad": 0}, {"count_include_pad": 1}]))
                self.add("AveragePool" if options else "MaxPool", start, kernel_shape=[3, 3], pads=[1] * 4, **options)
            case 9:
                self.add("Add", start, self.constant(self.vector(width).reshape(1, width, 1, 1)))
        if self.draw(st.booleans()):
            self.add(self.draw(st.sampled_from(["Relu", "Tanh", "HardSwish"])), self.end)

    def row_step(self, width: int) -> None:
        transposed = self.draw(st.booleans())
        weight = self.sparse(width, self.width)
        if self.draw(st.booleans()):
            matrix, bias = self.constant(weight.T.copy()), self.constant(self.vector(width))
            self.add("Add", self.add("MatMul", self.end, matrix), bias)
        else:
            matrix, bias = self.constant(weight if transposed else weight.T.copy()), self.constant(self.vector(width))
            self.add("Gemm", self.end, matrix, bias, transB=int(transposed))
        self.width = width

    def build(self) -> bytes:
        for _ in range(self.draw(st.integers(0, 5))):
            self.image_step()
        match self.draw(st.integers(0, 2)):
            case 0:
                self.add("Flatten", self.end)
                self.width *= 16
            case 1:
                self.add("Reshape", self.end, self.constant(np.array([-1, self.width * 16])))
                self.width *= 16
            case 2:
                self.add("ReduceMean", self.end, self.constant(np.array([2, -1])), keepdims=0)
        for _ in range(self.draw(st.integers(0, 2))):
            self.row_step(self.draw(st.integers(1, 8)))
            self.add(self.draw(st.sampled_from(["Relu", "Sigmoid"])), self.end)
        self.row_step(3)
        self.nodes[-1].output[0] = "logits"
        graph = helper.make_graph(
            self.nodes,
            "any",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 4, 4])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
            self.tensors,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return bytes(model.SerializeToString())


@st.composite
def files(draw: st.DrawFn) -> bytes:
    return Builder(draw).build()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=files())
def test_any_small_network_with_dead_structure_computes_what_it_did(data: bytes) -> None:
    session = open_session(data)
    result = checked(data, lambda x: infer(session, x), (3, 4, 4))
    assert result.parameters_after <= result.parameters_before + 64, "a bias is all that may be added"
