"""One run of a real deployment to which, round after round, everything happens that can happen to it.

SuperLink, nodes, apps and service are processes of their own, with TLS; they are killed, stopped, cut off and starved
while the run goes on. The run must complete with no round lost or counted twice, or stop with an error that says what
to do. One deployment serves all tests of this file: starting it costs more than a round.
"""

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aggregator.logs import LOG_FILE
from aggregator.records import read_records
from aggregator.status import FINISHED, Status, read_status
from fleet.provisioning.kits import kit_name, provision
from fleet.results.open_run import open_run
from fleet.running.deployment import LOG_FOLDER, Deployment, prepare
from protocol import checkpoint
from protocol.plan import Plan
from tests.e2e.conftest import ACCEPTED, ROOT, group_members, lines
from tests.e2e.proxy import Proxy
from tests.waiting import wait_for

pytestmark = pytest.mark.e2e
NODES, ROUNDS = 4, 9
PLAN = Plan(
    sparsity=0.5,
    rounds=ROUNDS,
    max_cohort=NODES,
    model="tests.e2e.tiny:build",
    data="tests.e2e.tiny:load",
    epochs=1,
    deadline=60.0,
    attempts=12,
)
KILLED, PAUSED, BETWEEN, CUT, CORRUPT = 3, 1, 2, 0, 2
CUT_SECONDS = 30
DISK_BYTES = 80_000_000
PATIENCE = 600.0


@dataclass
class Storm:
    """The deployment, what is done to it, and what was seen."""

    deployment: Deployment
    holds: Path
    proxy: Proxy
    seen: dict[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> Path:
        return self.deployment.run

    @property
    def status(self) -> Status:
        status = read_status(self.run)
        assert status is not None
        return status

    @property
    def round(self) -> int:
        """The last complete round."""
        return max((record.round for record in read_records(self.run)), default=0)

    def until(self, what: str, reached: Callable[[], object], tend: bool = True) -> None:
        """Wait, keeping the deployment's processes alive."""

        def look() -> object:
            found = reached()
            if tend and not found:
                self.deployment.tend()
            return found

        wait_for(look, lambda: f"{read_status(self.run)}\n{what}", PATIENCE)

    def hold(self, node: int) -> None:
        """Let a node's next training wait."""
        (self.holds / f"{kit_name(node)}.held").unlink(missing_ok=True)
        (self.holds / kit_name(node)).touch()

    def held(self, node: int) -> int:
        """Wait until a node's training waits; its process."""
        marker = self.holds / f"{kit_name(node)}.held"
        self.until(f"node {node} trains", lambda: marker.exists() and marker.read_text())
        return int(marker.read_text())

    def release(self, node: int) -> None:
        (self.holds / kit_name(node)).unlink(missing_ok=True)

    def accepted(self, node: int) -> bool:
        """Whether the SuperLink has taken a node."""
        return ACCEPTED in (self.deployment.out / LOG_FOLDER / f"{kit_name(node)}.log").read_text()

    def app(self) -> int:
        """The process of the aggregator's app."""
        for pid in group_members(self.deployment.processes["aggregator"].pid):
            if b"flwr-serverapp" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        raise AssertionError("no app of the aggregator runs")

    def next_round(self) -> int:
        """Wait for a round to complete; its number."""
        before = self.round
        self.until(f"round {before + 1}", lambda: self.round > before)
        return self.round


def client_killed_in_training(storm: Storm) -> None:
    os.kill(storm.held(KILLED), signal.SIGKILL)
    storm.release(KILLED)
    storm.seen["killed"] = storm.next_round()


def app_killed_in_mid_round(storm: Storm) -> None:
    storm.hold(0)
    storm.held(0)
    storm.seen["before the app is killed"] = (storm.round, storm.status.starts)
    os.kill(storm.app(), signal.SIGKILL)
    storm.until("the app is started again", lambda: storm.status.starts > 1)
    storm.release(0)
    storm.next_round()
    storm.seen["after the app is killed"] = (storm.round, storm.status.starts)


def superlink_killed(storm: Storm) -> None:
    storm.hold(0)
    storm.held(0)
    os.kill(storm.deployment.processes["superlink"].pid, signal.SIGKILL)
    storm.until("the SuperLink is noticed", lambda: storm.deployment.processes["superlink"].poll() is not None, False)
    dead = storm.deployment.processes["superlink"].pid
    storm.until("the SuperLink is started again", lambda: storm.deployment.processes["superlink"].pid != dead)
    storm.release(0)
    storm.seen["superlink"] = (storm.next_round(), storm.status.starts)


def everybody_is_back(storm: Storm) -> None:
    storm.until("a round with all nodes", lambda: any(r.cohort == NODES for r in read_records(storm.run)))


def client_killed_between_the_messages(storm: Storm) -> None:
    storm.hold(KILLED)
    storm.held(KILLED)
    pending = storm.deployment.out / "kits" / kit_name(BETWEEN) / "state" / "pending.npz"
    executor = storm.deployment.processes[f"{kit_name(BETWEEN)}-executor"]
    begun = (storm.holds / f"{kit_name(KILLED)}.held").stat().st_mtime - 60
    storm.until("the other trains", lambda: pending.stat().st_mtime > begun)
    storm.until("it has answered", lambda: group_members(executor.pid) == [executor.pid])
    os.killpg(executor.pid, signal.SIGKILL)
    storm.release(KILLED)
    storm.seen["between"] = storm.next_round()


def client_paused_past_the_deadline(storm: Storm) -> None:
    storm.hold(PAUSED)
    paused = storm.held(PAUSED)
    os.kill(paused, signal.SIGSTOP)
    storm.release(PAUSED)
    storm.seen["paused"] = storm.next_round()
    os.kill(paused, signal.SIGCONT)


def kit_corrupted(storm: Storm) -> None:
    key = storm.deployment.out / "kits" / kit_name(CORRUPT) / "sign.key"
    whole = key.read_bytes()
    key.write_bytes(whole[: len(whole) // 2])
    failures = storm.status.failed
    storm.until("the corrupted kit is noticed", lambda: storm.status.failed > failures)
    storm.seen["corrupt"] = storm.status.problems[-1]
    key.write_bytes(whole)


def network_cut(storm: Storm) -> None:
    storm.proxy.cut()
    end = time.monotonic() + CUT_SECONDS
    storm.until("the network is mended", lambda: time.monotonic() > end)
    storm.proxy.mend()
    storm.seen["cut"] = storm.next_round()


def disk_full(storm: Storm) -> None:
    filler = storm.run / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(2 * DISK_BYTES))
    service = storm.deployment.out / "logs" / "service.log"
    storm.until("the service waits for space", lambda: "the run waits: 0 MB are free" in service.read_text())
    storm.seen["full"] = (storm.round, get(storm, "live"), get(storm, "ready"))
    filler.unlink()
    storm.until("the run goes on", lambda: storm.round > storm.seen["full"][0] or storm.status.state == FINISHED)


def get(storm: Storm, path: str) -> tuple[int, str]:
    """What the service's endpoint answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{storm.deployment.metrics_port}/{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture(scope="module")
def storm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storm]:
    out = tmp_path_factory.mktemp("storm")
    run, holds = out / "run", out / "holds"
    run.mkdir()
    holds.mkdir()
    provision(out / "kits", NODES, PLAN)
    prepare(out, PLAN, NODES)
    environment = {"PRUNESEAL_TEST_HOLD": str(holds), "PYTHONPATH": str(ROOT)}
    with ExitStack() as stack:
        if os.geteuid() == 0:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(run)], check=True)
            stack.callback(subprocess.run, ["umount", "--lazy", str(run)], check=True)
        proxy = stack.enter_context(Proxy(0))
        deployment = Deployment(
            out, NODES, run=run, results=out / "results", fronts={CUT: proxy.port}, environment=environment
        )
        proxy.target = deployment.port
        made = Storm(deployment, holds, proxy)
        made.hold(KILLED)
        stack.callback(deployment.stop)
        deployment.start_superlink()
        deployment.register()
        for node in range(NODES):
            deployment.start_node(node)
        for node in range(NODES):  # a node that comes late would miss the first round, and its fault
            made.until(f"node {node} at the SuperLink", partial(made.accepted, node))
        deployment.start_aggregator()
        deployment.start_service()
        made.until("the first status", lambda: read_status(run))
        for fault in (
            client_killed_in_training,
            app_killed_in_mid_round,
            superlink_killed,
            everybody_is_back,
            client_killed_between_the_messages,
            client_paused_past_the_deadline,
            kit_corrupted,
            network_cut,
        ):
            fault(made)
        if os.path.ismount(run):
            disk_full(made)
        made.until("the end", lambda: made.status.state == FINISHED)
        yield made


def test_every_round_is_complete_and_counted_once(storm: Storm) -> None:
    assert [record["round"] for record in lines(storm.run / "metrics.jsonl")] == list(range(1, ROUNDS + 1))
    assert all(record["cohort"] >= PLAN.min_cohort for record in lines(storm.run / "metrics.jsonl"))


def record(storm: Storm, number: int) -> dict[str, Any]:
    return lines(storm.run / "metrics.jsonl")[number - 1]


def test_a_client_killed_in_training_costs_its_round_one_member(storm: Storm) -> None:
    assert storm.seen["killed"] == 1
    assert (record(storm, 1)["cohort"], record(storm, 1)["dropped"]) == (NODES - 1, 1)
    assert kit_name(KILLED) in storm.status.nodes
    assert storm.status.nodes[kit_name(KILLED)].round > 1, "it came back"


def test_a_killed_app_is_started_again_and_repeats_its_round(storm: Storm) -> None:
    (before, starts), (after, more) = storm.seen["before the app is killed"], storm.seen["after the app is killed"]
    assert more == starts + 1
    assert after == before + 1
    messages = [entry["message"] for entry in lines(storm.run / LOG_FILE) if entry.get("event") == "message"]
    assert f"resuming after round {before} of {ROUNDS}" in messages


def test_a_killed_superlink_costs_neither_the_run_nor_its_app(storm: Storm) -> None:
    _, starts = storm.seen["superlink"]
    assert starts == storm.seen["after the app is killed"][1]


def test_a_client_killed_between_the_messages_answers_when_it_is_back(storm: Storm) -> None:
    assert record(storm, storm.seen["between"])["cohort"] >= PLAN.min_cohort


def test_a_client_paused_past_the_deadline_is_left_behind_and_comes_back(storm: Storm) -> None:
    assert record(storm, storm.seen["paused"])["cohort"] < NODES
    assert storm.status.nodes[kit_name(PAUSED)].round > storm.seen["paused"]


def test_a_corrupted_kit_is_named_by_node_and_told_no_more_of(storm: Storm) -> None:
    problem = storm.seen["corrupt"]
    assert problem.node == kit_name(CORRUPT)
    assert problem.text.startswith("this node's keys are missing or exposed [ref ")
    log = (storm.deployment.out / "logs" / f"{kit_name(CORRUPT)}-executor.log").read_text()
    assert "KeyFileError" in log
    assert problem.text.rpartition("[ref ")[2].rstrip("]") in log


def test_a_cut_network_is_survived(storm: Storm) -> None:
    assert storm.seen["cut"] <= ROUNDS
    assert storm.status.nodes[kit_name(CUT)].round > 0


def test_a_full_disk_holds_the_run_up_until_there_is_space_and_loses_nothing(storm: Storm) -> None:
    if "full" not in storm.seen:
        pytest.skip("filling a disk takes a file system of its own, and mounting one takes root")
    _, (alive, _), (ready, text) = storm.seen["full"]
    assert (alive, ready) == (200, 503)
    assert "0 MB are free on the disk of" in text
    assert "make space" in text
    assert storm.status.state == FINISHED


def test_the_operator_opens_the_model_that_every_client_was_left_with(storm: Storm, tmp_path: Path) -> None:
    out = storm.deployment.out
    kits, app = out / "kits", out / "app"
    summary = open_run(
        storm.run, kits / "operator", kits / "aggregator" / "roster.json", app / "pyproject.toml", None, tmp_path
    )
    assert summary.rounds == ROUNDS
    assert summary.sparsity == pytest.approx(0.5, abs=1e-3)
    opened = checkpoint.load(tmp_path / "model.safetensors")
    for node in range(NODES):
        left = checkpoint.load(out / "results" / kit_name(node) / "model.safetensors")
        assert {name: array.tobytes() for name, array in left.tensors.items()} == {
            name: array.tobytes() for name, array in opened.tensors.items()
        }
        assert left.metadata["plan_digest"] == PLAN.digest.hex()
    folder = out / "results" / kit_name(0)
    storm.until("the export", (folder / "model.onnx").exists, tend=False)


def test_the_endpoint_has_counted_all_of_it(storm: Storm) -> None:
    _, text = get(storm, "metrics")
    assert f"pruneseal_rounds_total {float(ROUNDS)}" in text
    assert 'pruneseal_run_state{state="finished"} 1.0' in text
    assert f"pruneseal_starts_total {float(storm.status.starts)}" in text
