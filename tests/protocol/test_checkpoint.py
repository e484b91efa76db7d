"""``protocol.checkpoint``: what is loaded is what was saved, or it is refused."""

import json
import os
import stat
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save as to_safetensors

from protocol.checkpoint import FORMAT, VERSION, Checkpoint, load, save
from protocol.errors import CheckpointError
from protocol.files import replace_file

DTYPES = st.sampled_from(["|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8"])
ARRAYS = DTYPES.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
)
TENSORS = st.dictionaries(st.text(max_size=12).filter("__metadata__".__ne__), ARRAYS, max_size=4)
METADATA = st.dictionaries(
    st.text(max_size=12).filter(lambda key: key not in {"format", "version", "sha256"}),
    st.text(max_size=12),
    max_size=4,
)
CHECKPOINTS = st.builds(Checkpoint, TENSORS, METADATA)
on_disk = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def small() -> Checkpoint:
    return Checkpoint(
        tensors={
            "weight": np.array([[0.0, -0.0, 1.5], [np.nan, 0.0, -2.0]], dtype=np.float32),
            "steps": np.array(7),
        },
        metadata={"model": "mlp", "round": "3"},
    )


def header_length(data: bytes) -> int:
    """The length field and the JSON header, in bytes."""
    return 8 + int(struct.unpack("<Q", data[:8])[0])


def refused_or_equal(path: Path, data: bytes, original: Checkpoint) -> None:
    path.write_bytes(data)
    try:
        loaded = load(path)
    except CheckpointError:
        return
    assert loaded == original


@pytest.mark.slow
@on_disk
@given(checkpoint=CHECKPOINTS)
def test_what_is_loaded_equals_what_was_saved(tmp_path: Path, checkpoint: Checkpoint) -> None:
    save(tmp_path / "c", checkpoint)
    loaded = load(tmp_path / "c")
    assert loaded == checkpoint
    assert list(loaded.tensors) == sorted(checkpoint.tensors)
    assert dict(loaded.metadata) == dict(checkpoint.metadata)
    for name, array in checkpoint.tensors.items():
        assert loaded.tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded.tensors[name], array, strict=True)


def test_a_transposed_view_comes_back_as_it_looked(tmp_path: Path) -> None:
    view = np.arange(6, dtype=np.float32).reshape(2, 3).T
    save(tmp_path / "c", Checkpoint({"w": view}, {}))
    np.testing.assert_array_equal(load(tmp_path / "c").tensors["w"], view)


def test_the_loaded_arrays_can_be_trained_on(tmp_path: Path, small: Checkpoint) -> None:
    save(tmp_path / "c", small)
    array = load(tmp_path / "c").tensors["weight"]
    array += 1.0


def test_equality_tells_negative_zero_dtype_shape_and_metadata_apart() -> None:
    one = Checkpoint({"w": np.zeros(4, np.float32)}, {"round": "1"})
    assert one == Checkpoint({"w": np.zeros(4, np.float32)}, {"round": "1"})
    assert one != Checkpoint({"w": -np.zeros(4, np.float32)}, {"round": "1"})
    assert one != Checkpoint({"w": np.zeros(4, np.int32)}, {"round": "1"})
    assert one != Checkpoint({"w": np.zeros((2, 2), np.float32)}, {"round": "1"})
    assert one != Checkpoint({"w": np.zeros(4, np.float32)}, {"round": "2"})
    assert one != "a checkpoint"
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)


@on_disk
@given(data=st.data())
def test_any_truncated_file_is_refused(tmp_path: Path, small: Checkpoint, data: st.DataObject) -> None:
    save(tmp_path / "c", small)
    content = (tmp_path / "c").read_bytes()
    length = data.draw(st.integers(0, len(content) - 1))
    (tmp_path / "c").write_bytes(content[:length])
    with pytest.raises(CheckpointError):
        load(tmp_path / "c")


@pytest.mark.slow
@settings(on_disk, max_examples=400)
@given(data=st.data())
def test_any_changed_byte_is_refused_or_changes_nothing(tmp_path: Path, small: Checkpoint, data: st.DataObject) -> None:
    save(tmp_path / "c", small)
    content = bytearray((tmp_path / "c").read_bytes())
    header = st.integers(0, header_length(bytes(content)) - 1)
    position = data.draw(header | st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    refused_or_equal(tmp_path / "c", bytes(content), small)


def test_every_flipped_bit_of_a_weight_is_refused(tmp_path: Path, small: Checkpoint) -> None:
    save(tmp_path / "c", small)
    content = (tmp_path / "c").read_bytes()
    for position in range(header_length(content), len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            (tmp_path / "c").write_bytes(bytes(flipped))
            with pytest.raises(CheckpointError, match="checksum"):
                load(tmp_path / "c")


@on_disk
@given(content=st.binary(max_size=200))
def test_any_other_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(CheckpointError):
        load(tmp_path / "c")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*absent"):
        load(tmp_path / "absent")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not an ordinary file"):
        load(tmp_path)


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("protocol.checkpoint.safe_open", refuse)
    with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
        load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (None, "not a checkpoint of PruneSeal"),
        ({"format": "pt"}, "not a checkpoint of PruneSeal"),
        ({"format": FORMAT}, "version ''"),
        ({"format": FORMAT, "version": "2"}, "version '2'"),
        ({"format": FORMAT, "version": VERSION}, "checksum"),
        ({"format": FORMAT, "version": VERSION, "sha256": "0" * 64}, "checksum"),
    ],
)
def test_a_safetensors_file_that_is_no_checkpoint_is_refused(
    tmp_path: Path, metadata: dict[str, str] | None, reason: str
) -> None:
    (tmp_path / "c").write_bytes(to_safetensors({"w": np.zeros(3)}, metadata))
    with pytest.raises(CheckpointError, match=reason):
        load(tmp_path / "c")


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "C64"])
def test_a_dtype_that_numpy_does_not_have_is_refused_before_it_is_read(tmp_path: Path, dtype: str) -> None:
    size = {"BF16": 2, "F8_E4M3": 1, "C64": 8}[dtype]
    header = json.dumps(
        {
            "__metadata__": {"format": FORMAT, "version": VERSION},
            "w": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]},
        }
    ).encode()
    (tmp_path / "c").write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    with pytest.raises(CheckpointError, match=dtype):
        load(tmp_path / "c")


@pytest.mark.parametrize("dtype", [">f4", "<c8", "<U3", "|O"])
def test_a_dtype_that_would_not_come_back_is_not_saved(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(CheckpointError, match="dtype"):
        save(tmp_path / "c", Checkpoint({"w": np.zeros(2, dtype)}, {}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["format", "version", "sha256"])
def test_metadata_cannot_pose_as_the_file_format(tmp_path: Path, key: str) -> None:
    with pytest.raises(CheckpointError, match=key):
        save(tmp_path / "c", Checkpoint({}, {key: "1"}))


def test_a_tensor_cannot_be_named_like_the_metadata(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="__metadata__"):
        save(tmp_path / "c", Checkpoint({"__metadata__": np.zeros(1)}, {}))


def test_saving_into_a_missing_directory_says_so(tmp_path: Path, small: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="directory exists"):
        save(tmp_path / "absent" / "c", small)


def test_a_failed_replacement_leaves_the_old_file_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file(tmp_path / "c", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(tmp_path / "c", b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"c": b"old"}


def test_a_replacement_syncs_the_file_and_then_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append("directory" if is_directory else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    replace_file(tmp_path / "c", b"new")
    assert synced == ["file", "directory"]
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_the_file_has_the_permissions_of_any_other_new_file(tmp_path: Path) -> None:
    replace_file(tmp_path / "c", b"")
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "c").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
