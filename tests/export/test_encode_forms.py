"""``export.encode``: each tensor takes its smallest form and comes back bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from export.encode import Form, decode, encode, gaps
from tests.export.coding import adding, at, initializers, operators, same_bits, sparse


@given(st.sets(st.integers(0, 3000)), st.integers(1, 300))
def test_the_sums_of_a_gap_stream_strictly_increase_and_stop_at_every_position(where: set[int], largest: int) -> None:
    positions = np.array(sorted(where), np.int64)
    steps, stops = gaps(positions, largest)
    reached = np.cumsum(steps)
    assert (reached[stops] == positions).all()
    assert (np.diff(reached) > 0).all()
    assert (steps <= largest).all()
    assert (steps >= 0).all()
    assert steps.shape == stops.shape


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_positions_in_any_size_come_back_through_onnx_runtime(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 1500))
    weight = np.zeros(size, np.float32)
    for position in data.draw(st.sets(st.integers(0, size - 1), max_size=40)):
        weight[position] = data.draw(st.floats(width=32))
    dense = adding(weight)
    encoding = encode(dense)
    assert same_bits(initializers(decode(encoding.model))["w"], np.where(weight == 0, np.float32(0), weight)) or (
        encoding.negative_zeros == 0 and same_bits(initializers(decode(encoding.model))["w"], weight)
    )
    assert len(encoding.model) <= len(dense)


@pytest.mark.parametrize(
    ("weight", "form"),
    [
        (at(1000, 0), Form.GAPS8),
        (at(1000, 254), Form.GAPS8),
        (at(1000, 999), Form.GAPS16),
        (at(1000, 0, 999), Form.GAPS16),
        (at(1000, *range(5, 600, 11)), Form.GAPS8),
        (at(1000, 255), Form.GAPS8),
        (at(1000, *range(0, 250, 5), 500, 756, 999), Form.GAPS8),
        (at(9000, 8999), Form.GAPS16),
        (at(200_000, 65_535), Form.GAPS16),
        (at(200_000, 65_536, 199_999), Form.GAPS16),
        (at(1000, *range(0, 1000, 3)), Form.BITMAP),
        (at(8001, *range(0, 8001, 4)), Form.BITMAP),
        (at(1007, *range(1, 1007, 2)), Form.BITMAP),
        (at(1000, *range(1000)), Form.DENSE),
        (np.full(1000, 0.25, np.float32), Form.CONSTANT),
        (np.zeros((10, 10, 10), np.float32), Form.CONSTANT),
        (np.float32(0.0).reshape(()), Form.DENSE),
        (np.zeros((3, 0), np.float32), Form.DENSE),
        (at(12, 3), Form.DENSE),
    ],
)
def test_each_tensor_takes_its_smallest_form_and_comes_back(weight: np.ndarray, form: Form) -> None:
    encoding = encode(adding(weight))
    assert encoding.tensors["w"].form is form
    assert same_bits(initializers(decode(encoding.model))["w"], weight)


@pytest.mark.parametrize("density", [0.02, 0.4])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.uint8])
def test_every_type_of_weights_is_coded_and_folded(dtype: Any, density: float, tmp_path: Path) -> None:
    weight = (sparse((40, 50), density) * 40).astype(dtype)
    number = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = make_graph(
        [make_node("Transpose", ["w"], ["t"], perm=[1, 0]), make_node("Gather", ["t", "x"], ["y"])],
        "g",
        [make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [make_tensor_value_info("y", number, ["n", 40])],
        [numpy_helper.from_array(weight, "w")],
    )
    dense = make_model(graph, opset_imports=[make_opsetid("", 18)], ir_version=8).SerializeToString()
    encoding = encode(dense)
    assert encoding.tensors["w"].form is (Form.BITMAP if density > 0.1 else Form.GAPS8)
    assert same_bits(initializers(decode(encoding.model))["w"], weight)
    assert operators(encoding.model, tmp_path) == operators(dense, tmp_path) == {"Gather": 1}


def test_nan_infinity_and_subnormals_keep_every_bit() -> None:
    weight = at(800)
    weight.view(np.uint32)[[1, 9, 99, 400, 700, 701]] = [0x7FC01234, 0xFF800001, 0x7F800000, 1, 0x80000001, 0xFFFFFFFF]
    for tensor in (weight, np.tile(weight[699:702], 200)):
        encoding = encode(adding(tensor))
        assert encoding.tensors["w"].form not in {Form.DENSE, Form.CONSTANT}
        assert same_bits(initializers(decode(encoding.model))["w"], tensor)
        assert encoding.negative_zeros == 0


def test_negative_zeros_become_zeros_and_are_counted() -> None:
    weight = at(1000, 3, 300)
    weight[[4, 5, 998]] = -0.0
    encoding = encode(adding(weight))
    assert encoding.negative_zeros == 3
    assert same_bits(initializers(decode(encoding.model))["w"], at(1000, 3, 300))
    mixed = np.where(np.arange(500) % 2, np.float32(0), np.float32(-0.0))
    encoding = encode(adding(mixed))
    assert (encoding.negative_zeros, encoding.tensors["w"].form) == (250, Form.CONSTANT)


def test_a_tensor_of_negative_zeros_alone_and_one_left_dense_keep_them() -> None:
    for weight in (np.full(500, -0.0, np.float32), np.array([1, -0.0, 2], np.float32)):
        encoding = encode(adding(weight))
        assert encoding.negative_zeros == 0
        assert same_bits(initializers(decode(encoding.model))["w"], weight)
