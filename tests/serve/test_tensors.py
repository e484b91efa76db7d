"""``serve.tensors``: the law, and what is no tensor."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from protocol.errors import BadRequest
from serve.tensors import DATATYPES, Tensor, from_bytes, from_json, to_bytes

TYPES = [np.dtype(dtype) for _, dtype in DATATYPES.values()]
FLOAT = Tensor("x", "FP32", np.dtype("<f4"), (-1, 2))


def tensor(dtype: np.dtype[Any]) -> Tensor:
    name = next(name for name, numpys in DATATYPES.values() if np.dtype(numpys) == dtype)
    return Tensor("x", name, dtype, (-1, 3))


@given(
    st.sampled_from(TYPES).flatmap(
        lambda dtype: arrays.arrays(
            dtype,
            st.tuples(st.integers(1, 4), st.just(3)),
            elements={"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else None,
        )
    )
)
def test_bytes_and_json_give_the_array_back(array: np.ndarray[Any, Any]) -> None:
    kind = tensor(array.dtype)
    assert np.array_equal(from_bytes(kind, array.shape, to_bytes(kind, array)), array)
    assert np.array_equal(from_json(kind, array.shape, array.tolist()), array)
    assert np.array_equal(from_json(kind, array.shape, array.reshape(-1).tolist()), array)


@pytest.mark.parametrize(
    "shape",
    [None, 3, "ab", [], [1], [1, 3], [0, 2], [-1, 2], [1, 2, 1], [1.0, 2], [True, 2], [1] * 40, [2**70, 3], {"a": 1}],
)
def test_another_shape_is_refused_and_the_right_one_named(shape: object) -> None:
    with pytest.raises(BadRequest, match=r"the shape \[-1, 2\]|must be a list of integers"):
        FLOAT.fitting(shape)


def test_a_claim_of_rows_is_held_against_the_data_not_believed() -> None:
    shape = FLOAT.fitting([2**70, 2])
    with pytest.raises(BadRequest, match="bytes, not 8"):
        from_bytes(FLOAT, shape, bytes(8))
    with pytest.raises(BadRequest, match="not "):
        from_json(FLOAT, shape, [0.0, 1.0])


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (None, "must be a list"),
        ({"a": 1}, "must be a list"),
        ([["1", "2"]], "numbers that FP32 can hold"),
        ([[None, 1.0]], "numbers that FP32 can hold"),
        ([[True, False]], "numbers that FP32 can hold"),
        ([[1.0], [1.0, 2.0]], "ragged"),
        ([1.0, 2.0, 3.0], "have the shape [3], not [1, 2]"),
        ([[1.0, 1e39]], "not a finite FP32"),
        ([[1.0, float("nan")]], "not a finite FP32"),
        ([[1.0, {}]], "numbers that FP32 can hold"),
    ],
)
def test_what_is_not_so_many_numbers_is_refused(data: object, told: str) -> None:
    with pytest.raises(BadRequest) as caught:
        from_json(FLOAT, (1, 2), data)
    assert told in str(caught.value)


@pytest.mark.parametrize(("dtype", "data"), [("u1", [300]), ("u1", [-1]), ("i1", [128]), ("<i4", [1.5]), ("<u8", [-1])])
def test_a_number_that_the_type_cannot_hold_is_refused_not_changed(dtype: str, data: list[float]) -> None:
    with pytest.raises(BadRequest, match="can hold"):
        from_json(tensor(np.dtype(dtype)), (1, 1), data)


@pytest.mark.parametrize("data", [[0, 1 << 63], [[(1 << 64) - 1, 1]]])
def test_integers_on_both_sides_of_2_to_the_63_stay_exact(data: list[Any]) -> None:
    array = from_json(tensor(np.dtype("<u8")), (1, 2), data)
    assert array.tolist() == [data[0] if isinstance(data[0], list) else data]


@pytest.mark.parametrize("data", [[0, 1 << 64], [1 << 63, -1], [1 << 63, 0.5]])
def test_among_wide_integers_nothing_else_is_taken(data: list[float]) -> None:
    with pytest.raises(BadRequest, match="can hold"):
        from_json(tensor(np.dtype("<u8")), (1, 2), data)


@pytest.mark.parametrize("length", [0, 4, 7, 9, 12])
def test_too_few_or_too_many_bytes_are_refused(length: int) -> None:
    with pytest.raises(BadRequest, match=f"takes 8 bytes, not {length}"):
        from_bytes(FLOAT, (1, 2), bytes(length))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bytes_of_no_finite_number_are_refused(value: float) -> None:
    with pytest.raises(BadRequest, match="not a finite FP32"):
        from_bytes(FLOAT, (1, 2), np.array([0, value], np.float32).tobytes())


def test_a_truth_value_is_one_bit() -> None:
    with pytest.raises(BadRequest, match="neither 0 nor 1"):
        from_bytes(tensor(np.dtype("?")), (1, 3), b"\x00\x01\x02")
