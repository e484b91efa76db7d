"""Attacks on a real deployment, with real processes and TLS. Each is refused, and named in a log.

Here is what needs processes. What a node or an aggregator can do with the messages alone is attacked one level below,
where every variant is cheap: replayed, foreign, forged and plaintext contributions in
``tests/aggregator/test_rounds_refusals.py``; cohorts offered to a client in ``tests/edge_client/test_round_cohorts.py``
and ``test_client_contributing.py``, sums in ``test_round_opening.py`` and ``test_client.py``; two models in one round
in ``tests/aggregator/test_rounds_stopped.py`` and ``test_round_cohorts.py``.
"""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.runtime import RuntimeHttpClient

from aggregator.logs import LOG_FILE
from aggregator.status import FAILED, Status, read_status
from edge_client.enrollment import NODE_KEY_FILE, write_node_key
from fleet.provisioning.certificates import CA_FILE
from fleet.provisioning.kits import kit_name, provision
from fleet.running.deployment import CONNECTION, Deployment, port_of, prepare, reserve_port
from protocol.plan import Plan
from tests.e2e.conftest import ACCEPTED, ROOT, lines
from tests.waiting import wait_for

pytestmark = pytest.mark.e2e
NODES = 3
PLAN = Plan(
    sparsity=0.5,
    rounds=2,
    max_cohort=NODES,
    model="tests.e2e.tiny:build",
    data="tests.e2e.tiny:load",
    epochs=1,
    deadline=120.0,
    attempts=1,
)
PATIENCE = 600.0


@dataclass
class Siege:
    """A deployment whose aggregator is malicious, and what was seen."""

    deployment: Deployment
    seen: dict[str, Any] = field(default_factory=dict)

    def log(self, name: str) -> str:
        return (self.deployment.out / "logs" / f"{name}.log").read_text()

    def until(self, what: str, reached: Callable[[], object]) -> None:
        wait_for(reached, lambda: f"{read_status(self.deployment.out)}\n{what}", PATIENCE)

    def failed_run(self, starts: int) -> Status:
        """Wait until a run has failed; its status."""

        def failed() -> bool:
            status = read_status(self.deployment.out)
            return status is not None and status.starts == starts and status.state == FAILED

        self.until(f"the failure of start {starts}", failed)
        status = read_status(self.deployment.out)
        assert status is not None
        return status

    def supernode(self, *options: str, program: str = "") -> str:
        """Start another SuperNode; what it prints until it ends by itself, or is ended because it is accepted."""
        start = (
            [sys.executable, "-c", program] if program else [str(Path(sys.executable).with_name("flower-supernode"))]
        )
        server = ["--superlink", f"localhost:{self.deployment.port}", "--max-retries", "2"]
        certificate = ["--root-certificates", str(self.deployment.out / "tls" / CA_FILE)]
        printed = ""
        with (
            reserve_port() as held,
            subprocess.Popen(
                [*start, *server, *certificate, "--port", str(port_of(held)), "--isolation", "process", *options],
                env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_HOME": str(self.deployment.out / "intruder")},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as node,
        ):
            assert node.stdout is not None
            for line in node.stdout:
                printed += line
                if ACCEPTED in line:
                    node.terminate()
        return printed


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    """A SuperLink that knows its nodes, and nothing behind it yet."""
    out = tmp_path_factory.mktemp("door")
    provision(out / "kits", NODES, PLAN)
    prepare(out, PLAN, NODES)
    deployment = Deployment(out, NODES)
    try:
        deployment.start_superlink()
        deployment.register()
        yield Siege(deployment)
    finally:
        deployment.stop()


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    out = tmp_path_factory.mktemp("siege")
    provision(out / "kits", NODES, PLAN)
    prepare(out, PLAN, NODES)
    evil = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'e2e' / 'evil'}"}
    with Deployment(out, NODES, environment=evil) as deployment:
        made = Siege(deployment)
        made.seen["two"] = made.failed_run(1)
        project = out / "app" / "pyproject.toml"
        project.write_text(project.read_text() + "\n# one comment more\n" + '[tool.other]\nkey = "value"\n')
        deployment.end("service", signal.SIGTERM)
        deployment.start_service()
        made.seen["bundle"] = made.failed_run(2)
        yield made


def test_a_cohort_below_the_minimum_is_refused_by_every_member(siege: Siege) -> None:
    status: Status = siege.seen["two"]
    refusals = [p for p in status.problems if p.text.startswith("this node refuses the announced cohort")]
    assert len({problem.node for problem in refusals}) == NODES
    assert "this node refuses the announced cohort" in status.error
    assert lines(siege.deployment.out / "metrics.jsonl") == []
    logs = [siege.log(f"{kit_name(node)}-executor") for node in range(NODES)]
    assert (
        sum(f"round 1, attempt 1: CohortRefused: a sum of 2 of {NODES} invited was announced" in log for log in logs)
        == 2
    ), logs


def test_a_changed_bundle_is_refused_before_anything_of_it_is_used(siege: Siege) -> None:
    status: Status = siege.seen["bundle"]
    assert "this node does not accept the app bundle" in status.error
    for node in range(NODES):
        assert "BundleRefused: the app bundle " in siege.log(f"{kit_name(node)}-executor")
        installed = list((siege.deployment.out / "flower" / kit_name(node) / "apps").glob("*"))
        assert len(installed) == 1, "the bundle of the first run, and no other"


def test_every_refusal_is_in_the_log_of_the_aggregator_with_round_and_node(siege: Siege) -> None:
    entries = [
        entry for entry in lines(siege.deployment.out / LOG_FILE) if entry.get("event") == "failed" and "node" in entry
    ]
    reasons = {entry["reason"].split(" [ref")[0].rpartition("<'")[2].rstrip("'>") for entry in entries}
    assert {"this node refuses the announced cohort", "this node does not accept the app bundle"} <= reasons
    assert {entry["round"] for entry in entries} == {1}


def test_a_node_without_a_key_is_refused(door: Siege) -> None:
    assert ACCEPTED not in door.supernode()
    assert '"POST /v1/fleet/register-node HTTP/1.1" 412' in door.log("superlink")


def test_a_node_with_a_key_that_nobody_registered_is_refused(door: Siege, tmp_path: Path) -> None:
    write_node_key(tmp_path)
    printed = door.supernode("--auth-supernode-private-key", str(tmp_path / NODE_KEY_FILE))
    assert ACCEPTED not in printed
    assert "Exit Code: 305" in printed


def test_a_revoked_node_is_refused_from_then_on(door: Siege, tmp_path: Path) -> None:
    write_node_key(tmp_path)
    key = str(tmp_path / NODE_KEY_FILE)
    registered = door.deployment.flwr("supernode", "register", f"{key}.pub", CONNECTION, "--format", "json")
    node = str(json.loads(registered[registered.index("{") :])["node-id"])
    assert ACCEPTED in door.supernode("--auth-supernode-private-key", key)
    door.deployment.flwr("supernode", "unregister", node, CONNECTION)
    printed = door.supernode("--auth-supernode-private-key", key)
    assert ACCEPTED not in printed
    assert "Exit Code: 305" in printed


@pytest.mark.parametrize(("seconds", "accepted"), [(-200, True), (60, False), (-400, False)])
def test_a_node_whose_clock_is_wrong_is_refused_and_one_that_is_late_by_minutes_is_not(
    door: Siege, tmp_path: Path, seconds: int, accepted: bool
) -> None:
    write_node_key(tmp_path)
    door.deployment.flwr("supernode", "register", str(tmp_path / f"{NODE_KEY_FILE}.pub"), CONNECTION)
    shifted = (
        "import datetime as d, flwr.supernode.node_auth_http_interceptor as i\n"
        f"i.now = lambda: d.datetime.now(d.UTC) + d.timedelta(seconds={seconds})\n"
        "from flwr.supernode.cli import flower_supernode\nflower_supernode()"
    )
    printed = door.supernode("--auth-supernode-private-key", str(tmp_path / NODE_KEY_FILE), program=shifted)
    assert (ACCEPTED in printed) == accepted, printed


def test_nobody_gets_the_aggregators_task_without_the_executors_secret(door: Siege) -> None:
    client = RuntimeHttpClient.from_server_address(
        server_address=f"localhost:{door.deployment.port}",
        insecure=False,
        root_certificates=(door.deployment.out / "tls" / CA_FILE).read_bytes(),
        interceptors=[],
    )
    try:
        with pytest.raises(Exception, match="401"):
            client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
    finally:
        client.close()


def test_the_superlink_speaks_tls_alone_and_on_the_loopback_address_alone(door: Siege) -> None:
    port = door.deployment.port
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/control/list-runs", timeout=5)
    with pytest.raises(urllib.error.URLError) as refused:
        urllib.request.urlopen(f"https://127.0.0.1:{port}/health", timeout=5, context=ssl.create_default_context())
    assert isinstance(refused.value.reason, ssl.SSLCertVerificationError)
    own = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)} - {"127.0.0.1"}
    if not own:
        pytest.skip("this machine has no other address than the loopback")
    for address in own:
        with socket.socket() as caller:
            caller.settimeout(5)
            assert caller.connect_ex((str(address), port)) != 0
