"""``protocol.npz``: what `numpy.savez` wrote, and no more memory than the file, whatever it says."""

import tracemalloc
from io import BytesIO
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol.npz import read_arrays

ARRAYS = st.sampled_from(["<f4", "<f8", "|b1", "|u1", "<i8"]).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(max_dims=2, max_side=5))
)


def saved(**arrays: Any) -> bytes:
    file = BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def archive(member: bytes, **options: Any) -> bytes:
    file = BytesIO()
    with ZipFile(file, "w", **options) as made:
        made.writestr("a.npy", member)
    return file.getvalue()


def headed(header: str) -> bytes:
    """What stands before the numbers of an array."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@given(st.dictionaries(st.sampled_from("abc"), ARRAYS))
def test_arrays_come_back_as_they_were_saved(arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    back = read_arrays(saved(**arrays))
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert back[name].tobytes() == array.tobytes()
        assert back[name].flags.writeable


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04",
        archive(b""),
        archive(headed("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000,), }")),
        archive(headed("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }") + bytes(11)),
        archive(headed("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }") + bytes(12)),
        archive(headed("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }")),
        archive(headed("{'descr': '|O', 'fortran_order': False, 'shape': (0,), }")),
        archive(headed("{'descr': '<f4/, 'fortran_order': False, 'shape': (1,), }")),
        archive(headed("(" * 9000)),
        archive(bytes(1 << 20), compression=ZIP_DEFLATED),
        saved(a=np.zeros(3))[:-30],
    ],
    ids=[
        "empty",
        "head",
        "no-array",
        "claim",
        "too-short",
        "too-long",
        "negative",
        "objects",
        "torn-header",
        "deep",
        "packed",
        "cut",
    ],
)
def test_what_savez_does_not_write_is_refused_and_costs_nothing(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"archive|array|members|magic"):
            read_arrays(data)
        assert tracemalloc.get_traced_memory()[1] < 20 * len(data) + (1 << 20)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("size", "claim"), [(0, 10**9), (11, 3), (12, 2), (0, 10**18 - 1)])
def test_an_array_is_held_against_the_length_that_its_head_says(size: int, claim: int) -> None:
    head = headed(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({claim},), }}")
    with pytest.raises(ValueError, match="not as long as its head says"):
        read_arrays(archive(head + bytes(size)))
    whole = headed("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }") + bytes(12)
    assert read_arrays(archive(whole))["a"].tolist() == [0, 0, 0]
