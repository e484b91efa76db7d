"""`pruneseal serve`: settings that cannot be, what is told of them, and what starting does not import."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from serve.cli import app
from tests.serve.serving import linear, save


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--max-batch", "0", "max-batch must be 1 or more, not 0"),
        ("--queue", "5", "queue must be 32 or more, not 5"),
        ("--max-request-bytes", "10", "max-request-bytes must be 1024 or more"),
        ("--max-connections", "0", "max-connections must be 1 or more"),
        ("--max-connections", "100000000", "this process may open"),
        ("--threads", "-1", "threads must be 1 or more"),
        ("--batch-wait", "-1", "batch-wait must be 0 or more"),
        ("--batch-wait", "nan", "batch-wait must be 0 or more"),
        ("--idle-timeout", "0", "idle-timeout must be more than 0"),
        ("--port", "70000", "port must lie between 0 and 65535"),
        ("--grpc-port", "-1", "grpc-port must lie between 0 and 65535"),
        ("--log-level", "loud", "log-level must be debug, info, warning or error"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, option: str, value: str, told: str) -> None:
    result = call(tmp_path, option, value)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert told in result.stderr


@pytest.mark.parametrize("taken", ["--port", "--grpc-port"])
def test_a_port_that_is_taken_is_named(tmp_path: Path, taken: str) -> None:
    file = save(linear(), tmp_path / "m.onnx")
    with socket.create_server(("127.0.0.1", 0)) as other:
        number = str(other.getsockname()[1])
        free = "--grpc-port" if taken == "--port" else "--port"
        result = call(file, taken, number, free, "0")
    assert result.exit_code == 1
    assert f"cannot listen on 127.0.0.1 port {number}" in result.stderr


def test_a_folder_without_models_is_told_what_one_is(tmp_path: Path) -> None:
    result = call(tmp_path, "--port", "0", "--grpc-port", "0")
    assert result.exit_code == 1
    assert "holds no model: give an ONNX file, or a folder with export.json or model.onnx" in result.stderr


def test_serving_needs_neither_torch_nor_flower_nor_tenseal() -> None:
    code = "import sys, serve.server, serve.cli, fleet.entry; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "onnxruntime" in loaded
    assert {name.split(".")[0] for name in loaded}.isdisjoint({"torch", "flwr", "tenseal", "safetensors"})
