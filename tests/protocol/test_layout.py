"""``protocol.layout``: named tensors and one vector are the same thing."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol.errors import ConfigError
from protocol.layout import Layout, TensorSpec, flatten, unflatten

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
LAYOUTS = (
    st.dictionaries(st.text(max_size=4), st.tuples(SHAPES, st.booleans()), min_size=1, max_size=5)
    .map(lambda specs: tuple(TensorSpec(name, *specs[name]) for name in sorted(specs)))
    .filter(lambda tensors: any(tensor.trainable and tensor.size for tensor in tensors))
    .map(Layout)
)
SMALL = Layout((TensorSpec("bias", (), True), TensorSpec("mean", (2,), False), TensorSpec("weight", (2, 2), True)))
TENSORS = {
    "weight": np.array([[3, 4], [5, 6]], np.float32),
    "bias": np.array(0, np.float32),
    "mean": np.array([1, 2], np.float32),
}


@pytest.mark.slow
@given(layout=LAYOUTS, data=st.data())
def test_unflatten_undoes_flatten_to_the_bit(layout: Layout, data: st.DataObject) -> None:
    tensors = {
        tensor.name: data.draw(hnp.arrays(np.float32, tensor.shape, elements=st.floats(width=32)))
        for tensor in layout.tensors
    }
    vector = flatten(tensors, layout)
    back = unflatten(vector, layout)
    assert vector.dtype == np.float32
    assert vector.shape == (layout.size,)
    assert list(back) == [tensor.name for tensor in layout.tensors]
    for name, tensor in tensors.items():
        assert back[name].shape == tensor.shape
        assert back[name].tobytes() == tensor.tobytes()


@given(layout=LAYOUTS)
def test_flatten_undoes_unflatten(layout: Layout) -> None:
    vector = np.arange(layout.size, dtype=np.float32)
    np.testing.assert_array_equal(flatten(unflatten(vector, layout), layout), vector, strict=True)


@given(layout=LAYOUTS)
def test_sizes_offsets_and_prunable_describe_the_same_vector(layout: Layout) -> None:
    assert layout.sizes.tolist() == [tensor.size for tensor in layout.tensors]
    assert layout.offsets[0] == 0
    assert layout.offsets[-1] == layout.size == layout.prunable.size
    assert np.diff(layout.offsets).tolist() == layout.sizes.tolist()
    for tensor, start, end in zip(layout.tensors, layout.offsets, layout.offsets[1:], strict=False):
        assert layout.prunable[start:end].tolist() == [tensor.trainable] * tensor.size


def test_the_vector_is_in_the_order_of_names_whatever_the_order_of_the_mapping() -> None:
    assert flatten(TENSORS, SMALL).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert SMALL.prunable.tolist() == [True, False, False, True, True, True, True]


def test_a_transposed_view_is_flattened_as_it_looks() -> None:
    tensors = {**TENSORS, "weight": TENSORS["weight"].T}
    assert flatten(tensors, SMALL).tolist() == [0, 1, 2, 3, 5, 4, 6]


def test_other_floats_become_float32() -> None:
    vector = flatten({name: tensor.astype(np.float64) + 1e-12 for name, tensor in TENSORS.items()}, SMALL)
    assert vector.dtype == np.float32
    assert vector[1:].tolist() == [1, 2, 3, 4, 5, 6]


def test_the_vector_does_not_share_memory_with_its_tensors() -> None:
    tensors = {name: tensor.copy() for name, tensor in TENSORS.items()}
    vector = flatten(tensors, SMALL)
    tensors["weight"][:] = 9
    assert vector.tolist() == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: {**t, "extra": t["bias"]}, r"one side only: \['extra'\]"),
        (lambda t: {"bias": t["bias"], "mean": t["mean"]}, r"one side only: \['weight'\]"),
        (lambda t: {**t, "weight": t["weight"].ravel()}, r"weight has shape \(4,\), but the layout says \(2, 2\)"),
        (lambda t: {**t, "bias": t["bias"].reshape(1)}, r"bias has shape \(1,\), but the layout says \(\)"),
    ],
)
def test_tensors_of_another_model_are_refused(change: Callable[[Mapping[str, Any]], Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        flatten(change(TENSORS), SMALL)


@pytest.mark.parametrize("shape", [(6,), (8,), (7, 1), (1, 7), ()])
def test_a_vector_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="7 values"):
        unflatten(np.zeros(shape, np.float32), SMALL)


@pytest.mark.parametrize("names", [["b", "a"], ["a", "a"], ["a", "B"]])
def test_names_that_are_not_sorted_and_distinct_are_refused(names: list[str]) -> None:
    with pytest.raises(ConfigError, match="sorted and distinct"):
        Layout(tuple(TensorSpec(name, (1,), trainable=True) for name in names))


@pytest.mark.parametrize(
    "tensors",
    [
        (),
        (TensorSpec("mean", (3,), trainable=False),),
        (TensorSpec("mean", (3,), trainable=False), TensorSpec("weight", (0, 4), trainable=True)),
    ],
)
def test_a_model_without_trainable_values_is_refused(tensors: tuple[TensorSpec, ...]) -> None:
    with pytest.raises(ConfigError, match="nothing to federate"):
        Layout(tensors)


def test_a_scalar_is_one_value() -> None:
    assert TensorSpec("scale", (), trainable=True).size == 1
