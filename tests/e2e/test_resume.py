"""Runs that end before their time: killed, or interrupted."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from protocol import checkpoint
from tests.e2e.conftest import COMMAND, FinishedRun, finished, group_members, lines, pruneseal, running
from tests.waiting import wait_for

pytestmark = pytest.mark.e2e
SETTINGS = ("--rounds", "12", "--drop", "0.1", "--verify")


def wait_for_round(process: "subprocess.Popen[str]", out: Path, round_: int) -> None:
    def done() -> bool:
        assert process.poll() is None, "the run ended too soon"
        return len(lines(out / "metrics.jsonl")) >= round_

    wait_for(done, f"round {round_}", 600)


def wait_until_gone(group: int) -> None:
    wait_for(lambda: not group_members(group), lambda: f"the end of the processes {group_members(group)}")


ATTEMPTED = {"seconds", "attempts", "uplink_bytes", "downlink_bytes"}
"""What an attempt that was broken off adds to a round's line."""


def without_attempts(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in ATTEMPTED} for line in metrics]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return finished(tmp_path_factory.mktemp("unbroken") / "run", *SETTINGS)


def test_a_killed_run_resumes_to_the_same_result(unbroken: FinishedRun, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with running("run", "--out", out, *SETTINGS) as process:
        wait_for_round(process, out, 4)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        wait_until_gone(process.pid)
    before = len(lines(out / "metrics.jsonl"))
    assert before < 12

    resumed = pruneseal("run", "--out", out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after round" in resumed.stdout
    assert checkpoint.load(out / "model.safetensors").tensors.keys()
    ours, theirs = (checkpoint.load(folder / "model.safetensors") for folder in (out, unbroken.out))
    assert all(ours.tensors[name].tobytes() == array.tobytes() for name, array in theirs.tensors.items())
    assert without_attempts(lines(out / "metrics.jsonl")) == without_attempts(list(unbroken.metrics))
    verified = {line["round"] for line in lines(out / "verified.jsonl")}
    assert verified == set(range(1, 13))


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with running("run", "--out", out, "--rounds", "400") as process:
        wait_for_round(process, out, 2)
        os.killpg(process.pid, signal.SIGINT)
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 130
        wait_until_gone(process.pid)
    assert f"stopped; resume with: pruneseal run --out {out} --resume" in printed
    assert "Traceback" not in printed


def test_there_is_nothing_to_resume_in_an_empty_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "run", "--out", str(tmp_path), "--resume"], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1
    assert "holds no run that could be resumed" in done.stderr
