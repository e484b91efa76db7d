"""``edge_client.learning.data``: what is loaded is what was stored, and what cannot be used is refused, and why."""

import gzip
import hashlib
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_client.learning.data import DIGITS_FILE, DataSet, import_function, load, part
from edge_client.learning.partition import partition
from protocol.errors import DataError

DATA_DIR = Path(os.environ.get("PRUNESEAL_DATA_DIR", Path(__file__).resolve().parents[3].parent / "shared" / "data"))
FASHION = DATA_DIR / "fashion_mnist"
IDX_NAMES = {
    "x": "train-images-idx3-ubyte",
    "y": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def small(rows: int = 6, tests: int = 4) -> DataSet:
    x, test_x = (np.arange(n * 3, dtype=np.float32).reshape(n, 3) for n in (rows, tests))
    return DataSet("small", x, np.arange(rows) % 2, test_x, np.arange(tests) % 2, classes=2)


def write_idx(folder: Path) -> dict[str, NDArray[np.uint8]]:
    x, x_test = np.arange(0, 180, dtype=np.uint8).reshape(9, 5, 4)[:6], np.full((3, 5, 4), 255, np.uint8)
    arrays = {"x": x, "y": np.arange(6, dtype=np.uint8) % 3, "x_test": x_test, "y_test": np.arange(3, dtype=np.uint8)}
    for key, array in arrays.items():
        head = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        (folder / IDX_NAMES[key]).write_bytes(head + array.tobytes())
    return arrays


def npz(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "data.npz", **arrays)
    return f"npz:{folder / 'data.npz'}"


def test_a_data_set_knows_the_shape_of_one_input() -> None:
    assert small().input_shape == (3,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 1}, "at least 2 classes"),
        ({"train_x": np.zeros((6, 3))}, "must be float32"),
        ({"train_x": np.zeros(6, np.float32)}, "must be float32"),
        ({"test_y": np.zeros(4, np.int32)}, "int64"),
        ({"train_x": np.zeros((0, 3), np.float32), "train_y": np.zeros(0, np.int64)}, "training set: must be one"),
        ({"test_x": np.zeros((4, 0), np.float32)}, "test set: must be one or more"),
        ({"train_y": np.zeros(5, np.int64)}, "a label each"),
        ({"test_x": np.full((4, 3), np.nan, np.float32)}, "test set: the inputs hold NaN"),
        ({"train_y": np.full(6, 2)}, "labels run from 2 to 2, outside 0..1"),
        ({"test_y": np.full(4, -1)}, "labels run from -1 to -1"),
        ({"test_x": np.zeros((4, 2), np.float32)}, "differ in shape"),
        ({"groups": np.zeros(5, np.int64)}, "groups must be int64"),
    ],
)
def test_a_data_set_that_breaks_an_invariant_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(small(), **change)


@given(tests=st.integers(1, 40), clients=st.integers(1, 50))
def test_the_test_shares_are_disjoint_and_cover_the_test_set(tests: int, clients: int) -> None:
    data = small(tests=tests)
    shares = [part(data, np.array([0]), k, clients) for k in range(clients)]
    firsts = np.concatenate([share.test_x[:, 0] for share in shares])
    assert sorted(firsts) == data.test_x[:, 0].tolist()
    assert max(len(share.test_y) for share in shares) - min(len(share.test_y) for share in shares) <= 1


@pytest.mark.slow
def test_a_share_holds_writable_copies_of_its_rows() -> None:
    data = load("digits")
    share = part(data, np.array([5, 7]), 1, 3)
    assert (share.x == data.train_x[[5, 7]]).all()
    assert share.y.tolist() == data.train_y[[5, 7]].tolist()
    assert (share.test_x == data.test_x[1::3]).all()
    assert all(a.flags.writeable and a.flags.owndata for a in (share.x, share.y, share.test_x, share.test_y))


def test_a_share_without_training_rows_is_no_usable_data() -> None:
    with pytest.raises(DataError, match="no usable data"):
        part(small(), np.array([], np.int64), 0, 2)


@pytest.mark.parametrize(("rows", "position"), [([-1], 0), ([6], 0), ([0], 2), ([0], -1)])
def test_a_share_of_rows_or_clients_that_do_not_exist_is_refused(rows: list[int], position: int) -> None:
    with pytest.raises(DataError):
        part(small(), np.array(rows), position, 2)


def test_the_embedded_digits_are_scikit_learns() -> None:
    with np.load(DIGITS_FILE) as file:
        x, y = file["x"], file["y"]
    assert x.shape == (1797, 8, 8)
    assert hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest() == (
        "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    )


def test_digits_are_the_same_stratified_split_every_time() -> None:
    data = load("digits")
    assert load("digits") is data
    load.cache_clear()
    assert load("digits") is not data
    assert (load("digits").train_x == data.train_x).all()
    assert (data.input_shape, data.classes) == ((1, 8, 8), 10)
    assert (len(data.train_y), len(data.test_y)) == (1438, 359)
    assert 0 <= data.train_x.min() < data.train_x.max() == 1
    whole, tests = np.bincount(np.concatenate([data.train_y, data.test_y])), np.bincount(data.test_y)
    assert (abs(tests - whole / 5) <= 0.5).all()


def test_loaded_arrays_are_read_only_because_all_callers_share_them() -> None:
    with pytest.raises(ValueError, match="read-only"):
        load("digits").train_x[0] = 0


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_idx_files_are_read_as_scaled_images(tmp_path: Path, packed: bool) -> None:
    arrays = write_idx(tmp_path)
    for file in list(tmp_path.iterdir()) if packed else []:
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    data = load(f"idx:{tmp_path}")
    assert (data.input_shape, data.classes) == ((1, 5, 4), 3)
    assert (np.rint(data.train_x[:, 0] * 255) == arrays["x"]).all()
    assert data.test_y.tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", IDX_NAMES.values())
def test_a_missing_idx_file_is_named(tmp_path: Path, name: str) -> None:
    write_idx(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"missing file.*{name}"):
        load(f"idx:{tmp_path}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: b"", "no idx file"),
        (lambda raw: raw[:10], "no idx file"),
        (lambda raw: b"\x00\x00\x08\x01" + raw[4:], "no idx file"),
        (lambda raw: b"\x00\x00\x0d\x03" + raw[4:], "no idx file"),
        (lambda raw: raw[:-1], "but 119 follow"),
        (lambda raw: raw + b"\x00", "but 121 follow"),
        (lambda raw: raw[:4] + b"\xff" * 12 + raw[16:], "but 120 follow"),
    ],
)
def test_a_damaged_idx_file_is_refused(tmp_path: Path, damage: Any, message: str) -> None:
    write_idx(tmp_path)
    file = tmp_path / IDX_NAMES["x"]
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=message):
        load(f"idx:{tmp_path}")


@pytest.mark.parametrize("cut", [5, -9])
def test_a_truncated_gzip_file_is_refused(tmp_path: Path, cut: int) -> None:
    write_idx(tmp_path)
    file = tmp_path / IDX_NAMES["y"]
    file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes())[:cut])
    file.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        load(f"idx:{tmp_path}")


@pytest.mark.parametrize(
    ("stored", "loaded"),
    [
        ((20, 6, 5, 3), (3, 6, 5)),
        ((20, 6, 5, 1), (1, 6, 5)),
        ((20, 6, 5, 4), (4, 6, 5)),
        ((20, 3, 6, 5), (3, 6, 5)),
        ((20, 6, 5), (1, 6, 5)),
        ((20, 7), (7,)),
    ],
)
def test_npz_bytes_become_images_with_channels_first(
    tmp_path: Path, stored: tuple[int, ...], loaded: tuple[int, ...]
) -> None:
    x = np.random.default_rng(0).integers(0, 256, stored, dtype=np.uint8)
    data = load(npz(tmp_path, x=x, y=np.arange(20) % 2, x_test=x[:4], y_test=np.arange(4) % 2))
    assert data.input_shape == loaded
    assert data.train_x.flags.c_contiguous
    expected = np.moveaxis(x, -1, 1) if len(stored) == 4 and loaded[0] == stored[-1] else x
    assert (np.rint(data.train_x * 255).ravel() == expected.ravel()).all()


def test_npz_floats_are_kept_as_they_are(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(20, 6, 128))
    data = load(npz(tmp_path, x=x, y=np.arange(20) % 4))
    assert (data.input_shape, data.classes) == ((6, 128), 4)
    assert {row.tobytes() for row in data.train_x} < {row.tobytes() for row in x.astype(np.float32)}


def test_npz_without_test_arrays_is_split_with_its_groups(tmp_path: Path) -> None:
    rows = np.arange(100)
    data = load(npz(tmp_path, x=rows[:, None] / 100, y=rows // 50, groups=np.array(["anna", "ben"])[rows % 2]))
    assert len(data.train_y) == 80
    assert np.bincount(data.test_y).tolist() == [10, 10]
    assert data.groups is not None
    assert data.groups.tolist() == (np.rint(data.train_x[:, 0] * 100).astype(int) % 2).tolist()
    assert sorted(np.rint(np.concatenate([data.train_x, data.test_x])[:, 0] * 100)) == rows.tolist()


X, Y = np.zeros((20, 3), np.float32), np.arange(20) % 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "must hold the arrays x and y; it holds: x"),
        ({"x": X, "y": Y, "x_test": X}, "only one of x_test and y_test"),
        ({"x": X, "y": np.array([None] * 20)}, "object arrays are refused"),
        ({"x": X.astype(np.int32), "y": Y}, "uint8 or floating point, not int32"),
        ({"x": X[:, 0], "y": Y}, "of shape"),
        ({"x": np.zeros((20, 5, 5, 7), np.uint8), "y": Y}, "can be the channels"),
        ({"x": X, "y": Y.astype(float)}, "labels must be one integer per row"),
        ({"x": X, "y": Y[:, np.newaxis]}, "labels must be one integer per row"),
        ({"x": X, "y": Y[:5]}, "same length"),
        ({"x": X, "y": Y, "groups": Y[:5]}, "same length"),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y, "groups": Y[:5]}, "groups must be"),
        ({"x": X, "y": Y * 0}, "at least 2 classes"),
        ({"x": X[:2], "y": Y[:2]}, "test set: must be one or more"),
        ({"x": np.full((20, 3), 1e300), "y": Y}, "overflow float32"),
    ],
)
def test_npz_arrays_that_are_no_data_set_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(npz(tmp_path, **arrays))


def test_a_file_that_is_no_npz_archive_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", X)
    (tmp_path / "text.npz").write_text("x,y")
    for name in ("one.npy", "text.npz"):
        with pytest.raises(DataError, match=r"numpy\.savez"):
            load(f"npz:{tmp_path / name}")
    with pytest.raises(DataError, match=r"missing file: .*none\.npz"):
        load(f"npz:{tmp_path / 'none.npz'}")


def test_an_import_path_gives_its_data_set_or_four_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_good_data.py").write_text(
        "import numpy as np\n"
        "from edge_client.learning.data import DataSet\n"
        "x, y = np.full((6, 4, 4, 3), 255, np.uint8), np.arange(6) % 2\n"
        "def arrays(): return x, y, x[:2], y[:2]\n"
        "def whole(): return DataSet('mine', x.astype(np.float32), y, x.astype(np.float32), y, 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    arrays, whole = load("my_good_data:arrays"), load("my_good_data:whole")
    assert (arrays.name, arrays.input_shape, arrays.train_x.max()) == ("my_good_data:arrays", (3, 4, 4), 1)
    assert (whole.name, whole.input_shape, whole.train_x.max()) == ("mine", (4, 4, 3), 255)


@pytest.mark.parametrize(
    ("function", "message"),
    [("three", "returned tuple"), ("number", "returned int"), ("ragged", "not rectangular"), ("absent", "no function")],
)
def test_an_import_path_that_gives_no_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, message: str
) -> None:
    (tmp_path / "my_bad_data.py").write_text(
        "def three(): return 1, 2, 3\n"
        "def number(): return 7\n"
        "def ragged(): return [[1.0], [1.0, 2.0]], [0, 1], [[1.0]], [0]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=message):
        load(f"my_bad_data:{function}")


@pytest.mark.parametrize("spec", ["", "mnist", "idx:", "npz:", "no.such:data", "a..b:c", "os:1x", ".data:f", ":f"])
def test_an_unknown_spec_is_refused_with_the_known_forms(spec: str) -> None:
    with pytest.raises(DataError, match=r"digits; idx:DIR .* npz:FILE .* package\.module:function"):
        load(spec)


def test_an_import_path_finds_its_function() -> None:
    assert import_function("edge_client.learning.partition:partition") is partition
    with pytest.raises(ImportError, match="has no function FORMS"):
        import_function("edge_client.learning.data:FORMS")


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="no fashion_mnist folder in PRUNESEAL_DATA_DIR")
def test_fashion_mnist_loads_and_splits_as_in_the_paper() -> None:
    data = load(f"idx:{FASHION}")
    assert (data.train_x.shape, data.test_x.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert np.bincount(data.train_y).tolist() == [6_000] * 10
    assert (round(float(data.train_x.mean()), 4), round(float(data.train_x.std()), 4)) == (0.2860, 0.3530)
    dealt = [np.unique(data.train_y[rows]).tolist() for rows in partition("shards:2", data.train_y, None, 10, seed=0)]
    assert dealt == [[k, k + 1] for k in (0, 0, 2, 2, 4, 4, 6, 6, 8, 8)]
    load.cache_clear()


def test_digits_know_their_raw_values() -> None:
    data = load("digits")
    assert (data.scale, data.shift, data.raw_range) == (16, 0, (0, 16))
    raw = data.raw(data.test_x)
    np.testing.assert_array_equal(raw, np.rint(raw))
    assert (raw.min(), raw.max()) == (0, 16)
    assert data.label_names == tuple("0123456789")


def test_bytes_know_that_they_were_divided_by_255(tmp_path: Path) -> None:
    arrays = write_idx(tmp_path)
    data = load(f"idx:{tmp_path}")
    assert (data.scale, data.raw_range) == (255, (0, 255))
    np.testing.assert_allclose(data.raw(data.train_x)[:, 0], arrays["x"], rtol=1e-6)


def test_floats_are_raw_as_they_are_also_beside_bytes(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).random((6, 3)), np.arange(6) % 2
    floats = load(npz(tmp_path, x=x, y=y, x_test=np.full((2, 3), 255, np.uint8), y_test=y[:2]))
    assert (floats.scale, floats.shift, floats.raw_range) == (1, 0, None)


def test_labels_of_an_npz_file_name_the_classes(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).random((20, 3)), np.arange(20) % 2
    data = load(npz(tmp_path, x=x, y=y, labels=np.array(["walk", "sit", "never seen"])))
    assert (data.classes, data.label_names) == (3, ("walk", "sit", "never seen"))


@pytest.mark.parametrize("labels", [np.array([1, 2]), np.array([["a", "b"]])])
def test_labels_that_are_no_texts_are_refused(tmp_path: Path, labels: NDArray[Any]) -> None:
    x, y = np.random.default_rng(0).random((20, 3)), np.arange(20) % 2
    with pytest.raises(DataError, match="labels must be one string per class"):
        load(npz(tmp_path, x=x, y=y, labels=labels))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ("one",)}, "1 labels for 2 classes"),
        ({"scale": 0.0}, "scale 0.0 must be positive"),
        ({"scale": float("nan")}, "must be positive"),
        ({"shift": float("inf")}, "shift inf"),
        ({"raw_range": (1.0, 1.0)}, "is empty"),
    ],
)
def test_raw_values_that_cannot_be_meant_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(small(), **change)
