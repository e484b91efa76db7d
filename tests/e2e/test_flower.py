"""The same run under Flower's own engine: `flwr build` and `flwr run .`."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_client.keys import load_kit
from fleet.running.deployment import port_of, reserve_port
from protocol.plan import Plan
from tests.e2e.conftest import ROOT, lines, pruneseal
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="Flower's simulation is not installed: pip install pruneseal[simulation]",
    ),
]
BIN = Path(sys.executable).parent
ROUNDS = 3


def answers(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def port() -> Iterator[int]:
    with reserve_port() as held:
        yield port_of(held)


@pytest.fixture
def flower(tmp_path: Path, port: int) -> Iterator[dict[str, str]]:
    """The environment of a SuperLink of our own, which runs while the test does."""
    home = tmp_path / "flower"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    plan = tmp_path / "plan.toml"
    text = (ROOT / "pyproject.toml").read_text()
    plan.write_text(text.replace("\nrounds = 40\n", f"\nrounds = {ROUNDS}\n"))
    made = pruneseal("provision", "--out", tmp_path / "kits", "--config", plan)
    assert made.returncode == 0, made.stderr
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PRUNESEAL_KITS": str(tmp_path / "kits"),
        "PRUNESEAL_ROSTER": str(tmp_path / "kits" / "aggregator" / "roster.json"),
        "PRUNESEAL_RUN": str(tmp_path / "run"),
    }
    command = [BIN / "flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"]
    link = subprocess.Popen(
        [*map(str, command), "--host", "127.0.0.1", "--port", str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: answers(port), "the start of the SuperLink", 300)
        yield environment
    finally:
        link.terminate()
        link.wait(timeout=30)


def test_flwr_run_trains_under_flowers_own_simulation(flower: dict[str, str], tmp_path: Path) -> None:
    started = subprocess.run(
        [
            *(str(BIN / "flwr"), "run", str(ROOT), "here", "--stream"),
            *("--federation-config", "num-supernodes=10 client-resources-num-cpus=1", "-c", f"rounds={ROUNDS}"),
        ],
        env=flower,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert started.returncode == 0, started.stdout + started.stderr
    journal = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: len(lines(journal)) >= ROUNDS, lambda: f"{started.stdout}{started.stderr}\nthe last round", 300)
    metrics = lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["cohort"] for line in metrics] == [10] * ROUNDS
    assert metrics[-1]["sparsity"] == pytest.approx(0.95, abs=1e-4)
    assert load_kit(tmp_path / "kits" / "node-3").plan == Plan(rounds=ROUNDS).digest


def test_the_bundle_holds_no_code(tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, app / name)
    for package in ("aggregator", "edge_client"):
        shutil.copytree(ROOT / package, app / package)
    built = subprocess.run(
        [str(BIN / "flwr"), "build", "--app", str(app)],
        env={**os.environ, "FLWR_HOME": str(tmp_path / "home"), "FLWR_TELEMETRY_ENABLED": "0"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (bundle,) = tmp_path.glob("*.fab")
    with zipfile.ZipFile(bundle) as archive:
        assert sorted(archive.namelist()) == [".info/CONTENT", "LICENSE", "README.md", "pyproject.toml"]
