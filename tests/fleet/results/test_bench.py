"""`pruneseal bench`: a table of medians and ratios, from files that take the same input."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from export.convert import convert
from fleet.results.bench import counts
from protocol.errors import ConfigError
from tests.fleet.command import call


def file(path: Path, width: int, inputs: int = 6, **metadata: str) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 3))
    path.write_bytes(convert(model, (inputs,), metadata))
    return path


@pytest.mark.slow
def test_two_files_are_compared_at_every_setting(tmp_path: Path) -> None:
    small, large = file(tmp_path / "small.onnx", 8), file(tmp_path / "large.onnx", 20_000)
    result = call("bench", small, "--against", large, "--threads", "1", "--batch", "1,2")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("against")
    assert "onnxruntime" in lines[2]
    assert lines[3].split() == ["threads", "batch", "file", "median", "p10", "p90", "CPU", "ms", "times", "as", "fast"]
    rows = [line.split() for line in lines[4:]]
    assert [row[:3] for row in rows] == [[("1"), b, f] for b in "12" for f in ("against", "model")]
    for dense, made in zip(rows[::2], rows[1::2], strict=True):
        assert float(dense[7]) == 1
        assert float(made[7]) == pytest.approx(float(dense[6]) / float(made[6]), rel=0.1)
        assert float(made[7]) > 1


@pytest.mark.slow
def test_one_file_alone_has_no_ratio(tmp_path: Path) -> None:
    result = call("bench", file(tmp_path / "a.onnx", 8, input_range="[0, 255]"), "--threads", "1", "--batch", "3")
    assert result.exit_code == 0, result.output
    assert "times as fast" not in result.stdout
    assert result.stdout.splitlines()[-1].split()[:3] == ["1", "3", "model"]


@pytest.mark.slow
def test_files_of_different_inputs_are_refused(tmp_path: Path) -> None:
    result = call("bench", file(tmp_path / "a.onnx", 8), "--against", file(tmp_path / "b.onnx", 8, inputs=7))
    assert result.exit_code == 1
    assert "the files take samples of different shapes" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("value", ["[", "[1]", '["a", "b"]', "[5, 5]", "[0, 1e400]"])
def test_a_range_that_is_none_is_refused(tmp_path: Path, value: str) -> None:
    path = file(tmp_path / "a.onnx", 8)
    model = onnx.load(path)
    model.metadata_props.add(key="input_range", value=value)
    onnx.save(model, path)
    result = call("bench", path)
    assert result.exit_code == 1
    assert "input_range" in result.stderr


@pytest.mark.parametrize("text", ["", "0", "1,,2", "one", "-3", "99999"])
def test_numbers_that_cannot_be_meant_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--batch takes numbers from 1 to 4096"):
        counts("batch", text)
