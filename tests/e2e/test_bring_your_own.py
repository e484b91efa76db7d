"""A user's own network and data, as the README tells it: its code and its command, word for word, in another folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from protocol import checkpoint
from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the README's module and nothing else."""
    folder = tmp_path_factory.mktemp("own")
    section = (ROOT / "README.md").read_text().partition("## Bring your own")[2]
    (code,) = re.findall(r"```python\n(# mine\.py\n.*?)```", section, re.DOTALL)
    (command,) = re.findall(r"```sh\nPYTHONPATH=\. \.venv/bin/(pruneseal run .*?)\n```", section, re.DOTALL)
    (folder / "mine.py").write_text(code)
    (folder / "command").write_text(command)
    return folder


def run(folder: Path, *more: str, but: str = "") -> "subprocess.CompletedProcess[str]":
    """The README's command, without some of its words and with further ones, from the user's folder."""
    command = (folder / "command").read_text()
    assert but in command
    _, *arguments = command.replace(but, "").split()
    environment = {**os.environ, "PYTHONPATH": "."}
    return subprocess.run(
        [sys.executable, "-m", "fleet.entry", *arguments, *more],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


def test_the_readmes_own_network_trains_prunes_and_is_exported(own: Path) -> None:
    done = run(own, "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((own / "runs" / "own" / "summary.json").read_text())
    assert (summary["parameters"], summary["model"], summary["data"]) == (
        5 * 32 + 32 + 32 * 2 + 2,
        "mine:build",
        "mine:load",
    )
    assert summary["sparsity"] >= 0.5
    assert summary["accuracy"] > 0.9
    assert summary["onnx_accuracy"] == pytest.approx(summary["accuracy"], abs=0.02)
    assert summary["verified"]["rounds"] == 10
    assert (own / "runs" / "own" / "model.onnx").exists()


def test_the_same_network_under_a_method_that_leaves_each_client_its_own(own: Path) -> None:
    method = ("--method", "spafl", "--set", "threshold-penalty=0.01")
    done = run(own, *method, "--out", "runs/spafl", "--verify", but="--sparsity 0.5")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((own / "runs" / "spafl" / "summary.json").read_text())
    assert summary["own_models"] == 5
    folders = sorted((own / "runs" / "spafl" / "clients").iterdir())
    assert [folder.name for folder in folders] == [f"node-{i}" for i in range(5)]
    stored = [checkpoint.load(folder / "model.safetensors") for folder in folders]
    assert len({one.tensors["1.weight"].tobytes() for one in stored}) == 5
    assert all((folder / "model.onnx").exists() for folder in folders)
    assert summary["accuracy"] > 0.7
