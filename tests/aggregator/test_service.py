"""``aggregator.service``: the run goes on whatever dies, and an error for the operator is not tried again by itself."""

import json
import signal
import subprocess
import sys
import urllib.request
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from aggregator.journal import Journal
from aggregator.service import FlowerControl, Supervisor, address, flower_command, main
from aggregator.status import FAILED, FINISHED, RUNNING, STATUS_FILE, STOPPED, Status, read_status
from protocol.errors import ConfigError
from tests.aggregator.stub_grid import make_kits, small_plan
from tests.factories import record, write_roster

PLAN = small_plan(rounds=9)


@dataclass
class StubFlower:
    """Notes what it is asked; refuses while the SuperLink is away."""

    away: bool = False
    asked: list[str] = field(default_factory=list)

    def submit(self) -> str:
        if self.away:
            raise OSError("the SuperLink does not answer")
        self.asked.append("submit")
        return f"run {len(self.asked)}"

    def stop(self, run: str) -> None:
        self.asked.append(f"stop {run}")


class Stage:
    """A run's folder, a clock, and a supervisor that looks."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now, self.starts, self.rounds = folder, 0.0, 0, 0
        self.journal, self.flower = Journal(folder, PLAN), StubFlower()
        self.lacking: list[str] = []
        self.supervisor = Supervisor(folder, self.flower, lambda: self.lacking, lambda: self.now)

    def app(self, state: str, rounds: int = 0) -> None:
        """The app has started, and ended in this state after so many new rounds."""
        self.starts += 1
        self.rounds += rounds
        status = Status(
            run="ab", plan="cd", method="fedavg", rounds=9, state=state, starts=self.starts, error="QuorumError: x"
        )
        status.write(self.folder / STATUS_FILE)
        lines = [record(number).to_json() + b"\n" for number in range(1, self.rounds + 1)]
        (self.folder / "metrics.jsonl").write_bytes(b"".join(lines))

    def runs(self) -> AbstractContextManager[None]:
        return self.journal.held()

    def look(self, seconds: float = 0.0) -> list[str]:
        """Let time pass, look, and give what Flower was asked for."""
        self.now += seconds
        self.supervisor.tick()
        asked, self.flower.asked = self.flower.asked, []
        return asked


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "run")


def test_a_new_run_is_submitted_once(stage: Stage) -> None:
    assert stage.look() == ["submit"]
    assert [stage.look(1) for _ in range(5)] == [[]] * 5
    with stage.runs():
        assert stage.look(600) == []


def test_a_run_whose_app_was_killed_is_submitted_again_at_once(stage: Stage) -> None:
    stage.look()
    stage.app(RUNNING, rounds=2)
    assert stage.look(1) == ["stop run 1", "submit"]


def test_a_stopped_app_is_started_again(stage: Stage) -> None:
    stage.look()
    stage.app(STOPPED, rounds=1)
    assert stage.look(1) == ["stop run 1", "submit"]


def test_a_finished_run_is_left_alone(stage: Stage) -> None:
    stage.look()
    stage.app(FINISHED)
    assert [stage.look(60) for _ in range(3)] == [[]] * 3


@pytest.mark.parametrize("state", [FINISHED, FAILED])
def test_an_app_that_ends_while_the_service_looks_is_not_started_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    stage.look()
    stage.app(RUNNING, rounds=9)
    with ExitStack() as running:
        running.enter_context(stage.runs())

        def read(folder: Path) -> Status | None:
            status = read_status(folder)
            stage.app(state)
            running.close()
            return status

        monkeypatch.setattr("aggregator.service.read_status", read)
        assert stage.look(1) == []


def test_an_app_that_begins_while_the_service_looks_is_left_alone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.look()
    stage.app(RUNNING, rounds=1)
    with ExitStack() as running:

        def read(folder: Path) -> Status | None:
            status = read_status(folder)
            running.enter_context(stage.runs())
            return status

        monkeypatch.setattr("aggregator.service.read_status", read)
        assert stage.look(1) == []


def test_a_failed_run_waits_for_its_operator_and_a_new_service_tries_again(stage: Stage) -> None:
    stage.look()
    stage.app(FAILED)
    assert [stage.look(60) for _ in range(3)] == [[]] * 3
    stage.supervisor = Supervisor(stage.folder, stage.flower, list, lambda: stage.now)
    assert stage.look() == ["submit"]
    assert [stage.look(1) for _ in range(3)] == [[]] * 3


def test_a_service_that_was_killed_finds_the_run_under_way_and_leaves_it(stage: Stage) -> None:
    stage.app(RUNNING, rounds=1)
    with stage.runs():
        assert stage.look() == []
        assert stage.look(600) == []


def test_an_app_that_dies_without_progress_is_not_started_for_ever(stage: Stage) -> None:
    asked = stage.look()
    for _ in range(12):
        stage.app(RUNNING)
        asked += stage.look(60)
    assert asked.count("submit") == 5
    assert "has ended 5 times without a new round" in stage.supervisor.trouble[0]


def test_progress_makes_it_patient_again(stage: Stage) -> None:
    asked = stage.look()
    for _ in range(9):
        stage.app(RUNNING, rounds=1)
        asked += stage.look(60)
    assert asked.count("submit") == 10
    assert stage.supervisor.trouble == []


def test_a_superlink_that_is_away_is_told_and_asked_again(stage: Stage) -> None:
    stage.flower.away = True
    assert [stage.look(10) for _ in range(20)] == [[]] * 20
    assert stage.supervisor.trouble == ["the SuperLink does not answer"]
    stage.flower.away = False
    assert stage.look(10) == ["submit"]
    assert stage.supervisor.trouble == []


def test_while_something_is_lacking_nothing_is_started_and_afterwards_it_is_by_itself(stage: Stage) -> None:
    stage.look()
    stage.lacking = ["0 MB are free on the disk: make space"]
    assert [stage.look(60) for _ in range(5)] == [[]] * 5
    assert stage.supervisor.trouble == stage.lacking
    stage.lacking = []
    assert stage.look(1) == ["stop run 1", "submit"]
    assert stage.supervisor.trouble == []


def test_an_app_that_never_comes_is_submitted_again(stage: Stage) -> None:
    stage.look()
    assert stage.look(100) == []
    assert stage.look(30) == ["stop run 1", "submit"]


@pytest.mark.parametrize(("text", "found"), [("127.0.0.1:9464", ("127.0.0.1", 9464)), (":1", ("", 1))])
def test_the_address_is_host_and_port(text: str, found: tuple[str, int]) -> None:
    assert address({"PRUNESEAL_METRICS": text}) == found


@pytest.mark.parametrize("text", ["", "9464", "host:", "host:http", "host:-1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must be host:port"):
        address({"PRUNESEAL_METRICS": text})


def test_without_an_app_it_only_watches_and_a_folder_without_one_is_refused(tmp_path: Path) -> None:
    assert flower_command({}) is None
    with pytest.raises(ConfigError, match=r"holds no pyproject\.toml"):
        flower_command({"PRUNESEAL_APP": str(tmp_path)})
    (tmp_path / "pyproject.toml").write_text("")
    assert flower_command({"PRUNESEAL_APP": str(tmp_path)}) == FlowerControl(tmp_path, "aggregator")


@pytest.mark.usefixtures("put_back")
def test_a_service_without_settings_says_which_are_missing(caplog: pytest.LogCaptureFixture) -> None:
    assert main({}) == 1
    assert "set PRUNESEAL_ROSTER" in caplog.text


@pytest.mark.slow
def test_the_process_answers_and_ends_kindly_when_it_is_told_to(tmp_path: Path) -> None:
    write_roster(tmp_path, make_kits(3, PLAN)[0].roster)
    environment = {
        "PRUNESEAL_ROSTER": str(tmp_path / "roster.json"),
        "PRUNESEAL_RUN": str(tmp_path / "run"),
        "PRUNESEAL_METRICS": "127.0.0.1:0",
    }
    service = subprocess.Popen(
        [sys.executable, "-m", "aggregator.service"],
        cwd=Path(__file__).parents[2],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert service.stderr is not None
    try:
        listening = json.loads(service.stderr.readline())
        where = listening["message"].removeprefix("listening on ")
        with urllib.request.urlopen(f"http://{where}/ready", timeout=10) as answer:
            assert answer.read() == b"ready\n"
        service.send_signal(signal.SIGTERM)
        _, rest = service.communicate(timeout=20)
    finally:
        service.kill()
        service.communicate()
    assert service.returncode == 0
    assert json.loads(rest)["message"] == "the service ends; a run that is under way goes on"
