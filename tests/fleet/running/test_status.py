"""``fleet.running``, status and deployed run: what an operator sees of a run that goes on elsewhere."""

from contextlib import ExitStack
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from aggregator.endpoint import Overview, endpoint
from aggregator.journal import Journal
from aggregator.records import PhaseSeconds
from aggregator.settings import AggregatorSettings
from aggregator.status import FAILED, FINISHED, RUNNING, STATUS_FILE, STOPPED, NodeStatus, Problem, Status
from fleet.running.deployed_run import _Trouble
from fleet.running.status import look, show
from protocol.errors import ConfigError, DeploymentError
from protocol.plan import Plan
from tests.factories import record
from tests.fleet.command import call

PLAN = Plan(rounds=3)
STATUS = Status(
    run="ab" * 16,
    plan="cd" * 32,
    method="fedavg",
    rounds=3,
    updated=1_700_000_000.0,
    starts=2,
    round=2,
    phase="train",
    answered=4,
    asked=5,
    nodes={"north": NodeStatus(online=True, seen=1_700_000_000.0, round=1), "south": NodeStatus()},
    refused={"SignatureRefused": 2},
    failed=1,
    problems=(Problem(time=1_700_000_000.0, round=2, node="south", kind="SignatureRefused", text="[bold]not signed"),),
)
RECORD = record(
    1,
    cohort=5,
    dropped=1,
    refused=2,
    sparsity=0.5,
    uplink_bytes=2048,
    seconds=PhaseSeconds(train=1.5, contribute=0.0, release=0.0, add=0.0, other=0.0),
)


def write(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    STATUS.model_copy(update=changes).write(folder / STATUS_FILE)
    (folder / "metrics.jsonl").write_bytes(RECORD.to_json() + b"\n")
    return folder


def shown(found: Overview) -> str:
    text = StringIO()
    show(Console(file=text, width=120), found)
    return text.getvalue()


def test_a_run_under_way_is_shown_with_its_nodes_rounds_and_refusals(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    with Journal(folder, PLAN).held():
        text = shown(look(str(folder)))
    for line in (
        "state           running",
        "rounds          1 of 3 complete",
        "now             round 2, train: 4 of 5 answers",
        "refused         2 x SignatureRefused",
        "north  yes    2023-11-14 22:13:20  1",
        "south  no     never                none",
        "1      5       1     2        not yet   0.500     2.0 kB  1.5",
        "2023-11-14 22:13:20  round 2  south  SignatureRefused: [bold]not signed",
    ):
        assert line in text


def test_a_run_that_nobody_runs_any_more_is_not_called_running(tmp_path: Path) -> None:
    assert "state           interrupted: no process runs it" in shown(look(str(write(tmp_path / "run"))))


@pytest.mark.parametrize(
    ("state", "error"), [(FAILED, "QuorumError: start more clients"), (STOPPED, ""), (FINISHED, "")]
)
def test_how_a_run_ended_is_shown_with_what_to_do(tmp_path: Path, state: str, error: str) -> None:
    text = shown(look(str(write(tmp_path / "run", state=state, error=error))))
    assert f"state           {state}" in text
    assert (f"error           {error}" in text) == bool(error)


def test_nothing_that_an_endpoint_says_moves_the_terminal_or_fills_it(tmp_path: Path) -> None:
    evil = "\x1b[2J\r\u202e" * 1000
    problem = Problem(time=0.0, round=1, node=evil, kind=evil, text=evil)
    changes = {"state": FAILED, "error": evil, "method": evil, "refused": {evil: 1}, "problems": (problem,)}
    text = shown(look(str(write(tmp_path / "run", nodes={evil: NodeStatus()}, **changes))))
    assert text.replace("\n", "").isprintable()
    assert len(text) < 10_000


def test_the_endpoint_shows_what_the_folder_shows(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", state=FINISHED)
    with endpoint("127.0.0.1", 0, AggregatorSettings(tmp_path / "roster.json", folder), list) as port:
        assert look(f"http://127.0.0.1:{port}/") == look(str(folder))


def test_the_command_prints_for_people_and_for_machines(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", state=FINISHED)
    people, machine = call("status", folder), call("status", folder, "--json")
    assert (people.exit_code, machine.exit_code) == (0, 0)
    assert "state           finished" in people.stdout
    assert Overview.parse(machine.stdout.encode(), "stdout") == look(str(folder))


@pytest.mark.parametrize("where", ["http://127.0.0.1:9", "nowhere"])
def test_where_nothing_is_known_the_command_says_so(tmp_path: Path, where: str) -> None:
    result = call("status", where if ":" in where else tmp_path / where)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


def test_a_server_that_answers_something_else_is_refused(tmp_path: Path) -> None:
    with ExitStack() as stack:
        port = stack.enter_context(endpoint("127.0.0.1", 0, AggregatorSettings(tmp_path, tmp_path), list))
        with pytest.raises(ConfigError, match="cannot be read: HTTP Error 404"):
            look(f"http://127.0.0.1:{port}/elsewhere")


def test_a_service_that_stays_in_trouble_ends_the_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.running.deployed_run._ASK_SECONDS", 0.0)
    wrong: list[str] = []
    settings = AggregatorSettings(tmp_path / "roster.json", write(tmp_path / "run"))
    with endpoint("127.0.0.1", 0, settings, lambda: wrong) as port:
        trouble = _Trouble(f"http://127.0.0.1:{port}")
        trouble.check()
        wrong.append("the app has ended 5 times")
        trouble.check()
        assert "trouble         the app has ended 5 times" in shown(look(f"http://127.0.0.1:{port}"))
        monkeypatch.setattr("fleet.running.deployed_run._TROUBLE_SECONDS", 0.0)
        with pytest.raises(DeploymentError, match="the app has ended 5 times"):
            trouble.check()
        wrong.clear()
        trouble.check()
        wrong.append("new")
        trouble.check()
    trouble.check()


def test_running_is_the_first_state_of_a_status() -> None:
    assert Status(run="", plan="", method="", rounds=1).state == RUNNING
