"""Whole runs, as a user starts them: the command in its own process."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "fleet.entry"]
ACCEPTED = "SuperNode ID:"
"""What a SuperNode prints when the SuperLink has taken it."""


def pruneseal(*arguments: str | Path, timeout: float = 900) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )


@contextmanager
def running(*arguments: str | Path) -> Iterator["subprocess.Popen[str]"]:
    """Start the command in a process group of its own; what is left of it at the end is killed."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # tests in the background: the command would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for member in group_members(process.pid):
            os.kill(member, signal.SIGKILL)
        process.communicate()


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; none where it does not exist yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def group_members(group: int) -> list[int]:
    """The living processes of a process group (zombies are dead)."""
    members = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            members.append(int(status.parent.name))
    return [pid for pid in members if pid != os.getpid()]


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended well."""

    out: Path
    printed: str
    summary: dict[str, Any]
    metrics: Sequence[dict[str, Any]]


def finished(out: Path, *arguments: str) -> FinishedRun:
    """Run to the end and read what it wrote."""
    done = pruneseal("run", "--out", out, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return FinishedRun(out, done.stdout, json.loads((out / "summary.json").read_text()), lines(out / "metrics.jsonl"))


@pytest.fixture(scope="session")
def main_job(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The main job, as `make run` runs it."""
    return finished(tmp_path_factory.mktemp("main") / "run", "--clients", "10", "--sparsity", "0.95", "--verify")


@pytest.fixture(scope="session")
def lossy_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A run in which a fifth of the clients miss a message of every round."""
    return finished(
        tmp_path_factory.mktemp("lossy") / "run",
        *("--verify", "--clients", "10", "--rounds", "10", "--drop", "0.2", "--min-cohort", "5"),
    )
