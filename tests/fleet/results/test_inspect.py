"""`pruneseal inspect`: what a file tells somebody without a key."""

from pathlib import Path

import numpy as np
import pytest
import torch

from export.convert import convert, save_onnx
from fleet.results.inspect import describe_file
from protocol import checkpoint
from protocol.attendance import ATTENDANCE_BYTES, Attendance, encode_attendance
from protocol.errors import CheckpointError, ConfigError, MalformedMessage
from protocol.figures import NOTHING


def attendance() -> bytes:
    digest, short = bytes(range(32)), bytes(range(16))
    message = Attendance(
        run=short, round=3, attempt=1, node=7, samples=100, values=50, votes=0, plan=digest, key=short, model=digest,
        support=digest, invited=digest, exchange=digest, seed=digest, dealt=digest, figures=NOTHING, spoiled=0,
        memory=frozenset(),
    )  # fmt: skip
    return encode_attendance(message) + bytes(64)


def test_a_message_shows_its_head(tmp_path: Path) -> None:
    (tmp_path / "message.bin").write_bytes(attendance())
    described = describe_file(tmp_path / "message.bin")
    assert described["kind"] == "attendance"
    assert (described["round"], described["node"], described["samples"], described["values"]) == (3, 7, 100, 50)
    assert described["run"] == bytes(range(16)).hex()
    assert described["bytes"] == ATTENDANCE_BYTES


def test_a_message_cut_within_its_head_is_refused(tmp_path: Path) -> None:
    (tmp_path / "message.bin").write_bytes(attendance()[:40])
    with pytest.raises(MalformedMessage, match="within its head"):
        describe_file(tmp_path / "message.bin")


def test_a_checkpoint_shows_tensors_and_provenance(tmp_path: Path) -> None:
    array = np.array([[0.0, 1.0], [0.0, 2.0]], np.float32)
    checkpoint.save(tmp_path / "model.safetensors", checkpoint.Checkpoint({"w": array}, {"model": "m"}))
    described = describe_file(tmp_path / "model.safetensors")
    assert described["kind"] == "checkpoint"
    assert described["metadata"] == {"model": "m"}
    assert described["tensors"] == {"w": {"shape": [2, 2], "dtype": "float32", "nonzero": 2, "size": 4}}


@pytest.mark.slow
def test_an_onnx_file_shows_inputs_and_outputs(tmp_path: Path) -> None:
    save_onnx(tmp_path / "model.onnx", convert(torch.nn.Linear(3, 2), (3,), {"run": "r"}))
    described = describe_file(tmp_path / "model.onnx")
    assert described["metadata"]["run"] == "r"
    assert {"inputs", "outputs", "opset"} <= set(described)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ConfigError, match=r"notes\.txt is not a PruneSeal message, a checkpoint or an \.onnx file"):
        describe_file(tmp_path / "notes.txt")


def test_a_damaged_checkpoint_is_called_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError):
        describe_file(tmp_path / "model.safetensors")
