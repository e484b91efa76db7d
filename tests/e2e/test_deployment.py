"""`pruneseal run --engine flower`: the same run as on one machine, to the last bit, through Flower's own services."""

import shutil
from pathlib import Path

import pytest

from aggregator.journal import RUN_FILE
from protocol import checkpoint
from tests.e2e.conftest import ROOT, finished, pruneseal

pytestmark = pytest.mark.e2e
SETTINGS = (
    *("--clients", "3", "--rounds", "2", "--epochs", "1", "--sparsity", "0.5"),
    *("--model", "tests.e2e.tiny:build", "--data", "tests.e2e.tiny:load"),
)


def test_a_deployment_gives_the_model_that_the_local_engine_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    deployed = finished(tmp_path / "deployed", "--engine", "flower", *SETTINGS)
    (tmp_path / "local").mkdir()
    shutil.copy(deployed.out / RUN_FILE, tmp_path / "local")  # seeds follow from the run's name, which is random
    local = finished(tmp_path / "local", *SETTINGS)
    ours, theirs = (checkpoint.load(run.out / "model.safetensors").tensors for run in (deployed, local))
    assert {name: array.tobytes() for name, array in ours.items()} == {
        name: array.tobytes() for name, array in theirs.items()
    }
    counted = ("round", "cohort", "dropped", "refused", "values", "uplink_bytes", "accuracy", "sparsity")
    assert [[line[name] for name in counted] for line in deployed.metrics] == [
        [line[name] for name in counted] for line in local.metrics
    ]
    assert deployed.printed.splitlines()[0].startswith("round 1/2  cohort 3  accuracy 0.")
    shown = pruneseal("status", deployed.out)
    assert shown.returncode == 0, shown.stderr
    assert "state           finished" in shown.stdout
    again = pruneseal("run", "--out", deployed.out, "--resume", "--engine", "local")
    assert again.returncode == 1
    assert "began with --engine flower, not local" in again.stderr
