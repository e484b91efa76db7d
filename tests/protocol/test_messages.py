"""``protocol.messages``: our frames inside Flower's records, and nothing else."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st

from protocol import VERSION
from protocol.errors import MalformedMessage
from protocol.messages import STYPE, from_record, to_record


@given(st.dictionaries(st.text(max_size=6), st.binary(min_size=1, max_size=40), max_size=4))
def test_from_record_undoes_to_record(blobs: dict[str, bytes]) -> None:
    assert from_record(to_record(blobs)) == blobs


def test_an_empty_blob_is_left_out() -> None:
    assert from_record(to_record({"sealed": b"", "frame": b"x"})) == {"frame": b"x"}


def test_a_frame_says_that_it_is_ours_and_of_which_version() -> None:
    (array,) = to_record({"frame": b"four"}).values()
    assert (array.stype, array.dtype, tuple(array.shape), array.data) == (
        f"pruneseal.v{VERSION}",
        "bytes",
        (4,),
        b"four",
    )


def test_numpy_cannot_mistake_a_frame_for_an_array() -> None:
    (array,) = to_record({"frame": b"four"}).values()
    with pytest.raises(TypeError):
        array.numpy()


@pytest.mark.parametrize(
    "change",
    [
        {"stype": "numpy.ndarray"},
        {"stype": "pruneseal.v0"},
        {"stype": ""},
        {"dtype": "float32"},
        {"shape": (3,)},
        {"shape": ()},
        {"shape": (4, 1)},
        {"shape": (2, 2)},
    ],
)
def test_an_array_that_is_not_our_frame_is_refused(change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"dtype": "bytes", "shape": (4,), "stype": STYPE, "data": b"four"}
    assert from_record(ArrayRecord({"frame": Array(**fields)})) == {"frame": b"four"}
    with pytest.raises(MalformedMessage, match="'frame' is"):
        from_record(ArrayRecord({"frame": Array(**(fields | change))}))


def test_plaintext_weights_are_refused() -> None:
    record = ArrayRecord([np.zeros((2, 2), np.float32)])
    with pytest.raises(MalformedMessage, match=f"not a {STYPE} frame"):
        from_record(record)


def test_one_foreign_array_spoils_the_record() -> None:
    record = to_record({"frame": b"four"})
    record["weights"] = Array(np.zeros(2, np.float32))
    with pytest.raises(MalformedMessage, match="'weights'"):
        from_record(record)
