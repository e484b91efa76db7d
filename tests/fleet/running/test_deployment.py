"""``fleet.running.deployment``: what a deployment on one machine is made of; whole ones are in tests/e2e."""

import signal
import socket
import stat
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from edge_client.bundle import BUNDLES_FILE, accepted
from fleet.provisioning.app_bundle import bundle_digest
from fleet.provisioning.kits import AGGREGATOR, kit_name, provision
from fleet.running.deployment import EXECUTOR_FILE, HOST, Deployment, port_of, prepare, reserve_port
from fleet.running.local import Engine, Options, start, stored_run
from protocol.errors import ConfigError, DeploymentError
from protocol.plan import Plan
from tests.e2e.conftest import group_members
from tests.waiting import wait_for

PLAN = Plan(rounds=2, max_cohort=3)
NODES = 3


@pytest.fixture
def out(tmp_path: Path) -> Path:
    provision(tmp_path / "kits", NODES, PLAN)
    prepare(tmp_path, PLAN, NODES)
    return tmp_path


def test_every_secret_is_private_and_nobody_shares_one(out: Path) -> None:
    kits = [out / "kits" / name for name in (AGGREGATOR, *map(kit_name, range(NODES)))]
    secrets = [(kit / EXECUTOR_FILE).read_bytes() for kit in kits]
    assert len(set(secrets)) == NODES + 1
    private = {path for path in out.rglob("*") if path.suffix in {".key", ".secret"}}
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    assert len(private) == 1 + NODES * 5 + 2 + 2


def test_the_nodes_accept_the_bundle_of_the_plan_and_no_other(out: Path) -> None:
    for node in range(NODES):
        assert accepted(out / "kits" / kit_name(node)) == {bundle_digest(PLAN)}
        assert (out / "kits" / kit_name(node) / BUNDLES_FILE).is_file()


def test_a_second_preparation_overwrites_nothing(out: Path) -> None:
    before = (out / "tls" / "ca.key").read_bytes()
    with pytest.raises(FileExistsError):
        prepare(out, PLAN, NODES)
    assert (out / "tls" / "ca.key").read_bytes() == before


@pytest.mark.slow
def test_a_superlink_that_does_not_start_is_named_with_its_log(out: Path) -> None:
    (out / "tls" / "server.key").write_text("no key")
    with (
        pytest.raises(DeploymentError, match=r"the superlink does not start: see .*superlink\.log"),
        Deployment(out, 3),
    ):
        raise AssertionError("it starts")
    assert (out / "logs" / "superlink.log").stat().st_size > 0


def test_a_process_that_ends_by_itself_is_started_again_and_all_end_with_the_deployment(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet.running.deployment._AGAIN_SECONDS", 0.0)
    deployment = Deployment(out, NODES)
    (out / "logs").mkdir()
    deployment._start("sleeper", [sys.executable, "-c", "import time; time.sleep(600)"], {})
    first = deployment.processes["sleeper"].pid
    deployment.tend()
    assert deployment.processes["sleeper"].pid == first
    deployment.processes["sleeper"].kill()

    def again() -> bool:
        deployment.tend()
        return deployment.processes["sleeper"].pid != first

    wait_for(again, "its second start")
    second = deployment.processes["sleeper"].pid
    deployment.stop()
    assert group_members(second) == []
    assert deployment.processes == {}


def test_a_process_that_does_not_listen_is_ended_all_the_same(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.running.deployment._STOP_SECONDS", 0.5)
    deployment = Deployment(out, NODES)
    (out / "logs").mkdir()
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    deployment._start("deaf", [sys.executable, "-c", deaf], {})
    wait_for(lambda: "deaf" in (out / "logs" / "deaf.log").read_text())
    pid = deployment.processes["deaf"].pid
    deployment.end("deaf", signal.SIGTERM)
    assert group_members(pid) == []


def test_a_reserved_port_is_there_for_our_server_again_and_again_and_for_nobody_else() -> None:
    with reserve_port() as held:
        for _ in range(2):
            with HTTPServer((HOST, port_of(held)), BaseHTTPRequestHandler) as server:
                assert server.server_port == port_of(held)
        with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
            other.bind((HOST, port_of(held)))


def test_the_ports_of_a_deployment_are_reserved_as_long_as_it_is_there(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, 30)
    ports = [deployment.port, deployment.metrics_port, *deployment._node_ports]
    assert len(set(ports)) == 32
    with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
        other.bind((HOST, ports[-1]))
    del deployment
    with socket.socket() as other:
        other.bind((HOST, ports[-1]))


def test_what_only_the_local_engine_can_do_is_refused_for_flower(tmp_path: Path) -> None:
    for drop, verify, workers in ((0.1, False, 0), (0.0, True, 0), (0.0, False, 2)):
        with pytest.raises(ConfigError, match="are for the local engine"):
            Options(3, drop, verify, workers, Engine.FLOWER)


@pytest.mark.slow
def test_the_engine_is_remembered(tmp_path: Path) -> None:
    options = Options(3, 0.0, False, 0, Engine.FLOWER)
    start(tmp_path / "run", PLAN, options)
    assert stored_run(tmp_path / "run") == (PLAN, options)
    assert (tmp_path / "run" / "tls" / "ca.crt").is_file()
