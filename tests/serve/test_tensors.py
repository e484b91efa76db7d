"""``serve.tensors``: the law, and what is no tensor."""

import contextlib
import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from protocol.errors import BadRequest
from serve.tensors import DATATYPES, Tensor, from_bytes, from_json, from_numbers, to_bytes

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
    for data in (array.tolist(), array.reshape(-1).tolist()):
        for indent in (None, 1):
            assert np.array_equal(from_json(kind, array.shape, json.dumps(data, indent=indent).encode()), array)
    assert np.array_equal(from_numbers(kind, array.shape, array.reshape(-1).tolist()), array)


@pytest.mark.parametrize(
    "shape",
    [
        None,
        3,
        "ab",
        [],
        [1],
        [1, 3],
        [0, 2],
        [-1, 2],
        [1, 2, 1],
        [1.0, 2],
        [True, 2],
        [1] * 40,
        [2**62, 3],
        [2**70, 2],
        {"a": 1},
    ],
)
def test_another_shape_is_refused_and_the_right_one_named(shape: object) -> None:
    with pytest.raises(BadRequest, match=r"the shape \[-1, 2\]|must be a list of integers"):
        FLOAT.fitting(shape)


def test_a_claim_of_rows_is_held_against_the_data_not_believed() -> None:
    shape = FLOAT.fitting([2**62, 2])
    with pytest.raises(BadRequest, match="bytes, not 8"):
        from_bytes(FLOAT, shape, bytes(8))
    with pytest.raises(BadRequest, match="not "):
        from_json(FLOAT, shape, b"[0.0, 1.0]")
    with pytest.raises(BadRequest, match="neither flat nor nested"):
        from_json(FLOAT, shape, b"[[0.0, 1.0]]")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"null", "must be a list"),
        (b'{"a": 1}', "must be a list"),
        (b'[["1", "2"]]', "numbers that FP32 can hold"),
        (b'["1", "2"]', "numbers that FP32 can hold"),
        (b"[[null, 1.0]]", "numbers that FP32 can hold"),
        (b"[[true, false]]", "numbers that FP32 can hold"),
        (b"[[1.0, true]]", "numbers that FP32 can hold"),
        (b"[[1.0], [1.0, 2.0]]", "neither flat nor nested"),
        (b"[[1.0, [2.0]]]", "neither flat nor nested"),
        (b"[[[1.0, 2.0]]]", "neither flat nor nested"),
        (b"[[1.0], [2.0]]", "neither flat nor nested"),
        (b"[[[]]]", "neither flat nor nested"),
        (b"[[1.0, []]]", "neither flat nor nested"),
        (b"[1.0, 2.0, 3.0]", "are 3 values, not those of the shape [1, 2]"),
        (b"[]", "are 0 values"),
        (b"[[1.0, 1e39]]", "not a finite FP32"),
        (b"[[1.0, 1e999]]", "numbers that FP32 can hold"),
        (b"[[1.0, " + b"9" * 400 + b"]]", "numbers that FP32 can hold"),
        (b"[[1.0, " + b"9" * 5000 + b"]]", "numbers that FP32 can hold"),
        (b"[[1.0, {}]]", "numbers that FP32 can hold"),
        (b'[[1.0, {"a": [1]}]]', "numbers that FP32 can hold"),
    ],
)
def test_what_is_not_so_many_numbers_is_refused(data: bytes, told: str) -> None:
    with pytest.raises(BadRequest) as caught:
        from_json(FLOAT, (1, 2), data)
    assert told in str(caught.value)


@pytest.mark.parametrize("data", [b"[[1.0], []]", b"[[], [1.0]]", b"[[], []]"])
def test_an_empty_row_is_no_row_of_one(data: bytes) -> None:
    with pytest.raises(BadRequest):
        from_json(Tensor("x", "FP32", np.dtype("<f4"), (-1, 1)), (2, 1), data)


def test_rows_of_nothing_take_no_memory_whatever_their_number() -> None:
    with pytest.raises(BadRequest, match="neither flat nor nested"):
        from_json(Tensor("x", "FP32", np.dtype("<f4"), (-1, 0)), (1 << 40, 0), b"[[]]")


@pytest.mark.parametrize(
    ("unit", "dtype", "side"),
    [
        (b"-9", "<i8", 1),
        (b"[-9]", "<i8", 1),
        (b"[1]", "?", 1),
        (b"[1]", "<f8", 1),
        (b"1", "<f8", 1),
        (b"1e9", "<f8", 1),
        (b"[-9,-9]", "<i8", 2),
        (b"true", "?", 1),
        (b'""', "<f4", 1),
        (b"[]", "<f4", 1),
        (b'{"":0}', "<f4", 1),
        (b'"' + b"a" * 999_000 + b'",' + b",".join([b'""'] * 999), "<f4", 1),
    ],
)
def test_data_take_at_most_twenty_times_their_bytes(unit: bytes, dtype: str, side: int) -> None:
    count = max(1, (1 << 20) // (len(unit) + 1))
    text = b"[" + b",".join([unit] * count) + b"]"
    numpys = np.dtype(dtype)
    one = Tensor("x", tensor(numpys).datatype, numpys, (-1, side))
    tracemalloc.start()
    try:
        with contextlib.suppress(BadRequest):
            from_json(one, (count, side), text)
        assert tracemalloc.get_traced_memory()[1] < 20 * len(text) + 65_536
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("dtype", "data"), [("u1", [300]), ("u1", [-1]), ("i1", [128]), ("<i4", [1.5]), ("<u8", [-1]), ("<u8", [2**64])]
)
def test_a_number_that_the_type_cannot_hold_is_refused_not_changed(dtype: str, data: list[float]) -> None:
    with pytest.raises(BadRequest, match="can hold"):
        from_json(tensor(np.dtype(dtype)), (1, 1), json.dumps(data).encode())


@pytest.mark.parametrize("data", [[0, 1 << 63], [[(1 << 64) - 1, 1]]])
def test_integers_on_both_sides_of_2_to_the_63_stay_exact(data: list[Any]) -> None:
    array = from_json(Tensor("x", "UINT64", np.dtype("<u8"), (-1, 2)), (1, 2), json.dumps(data).encode())
    assert array.tolist() == [data[0] if isinstance(data[0], list) else data]


@pytest.mark.parametrize("data", [[0, 1 << 64], [1 << 63, -1], [1 << 63, 0.5]])
def test_among_wide_integers_nothing_else_is_taken(data: list[float]) -> None:
    with pytest.raises(BadRequest, match="can hold"):
        from_json(tensor(np.dtype("<u8")), (1, 2), json.dumps(data).encode())


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
