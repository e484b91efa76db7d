"""``edge_client.executor``: the process of a message is a fork that runs a checked client app, and nothing else."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edge_client import bundle, executor, flower
from edge_client.executor import Forks, arguments
from edge_client.flower import ExecutionSpec, LaunchResult, TaskType
from tests.waiting import wait_for

SPEC = ExecutionSpec(
    task_type=TaskType.CLIENT_APP,
    runtime_api_address="supernode:9094",
    token="a-token",  # noqa: S106  # of nothing
    insecure=True,
    root_certificates_path=None,
    runtime_dependency_install=False,
    parent_pid=4,
    suppress_output=False,
    task_id=1,
)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that are forked from now on."""
    made: list[int] = []
    fork = os.fork

    def watched() -> int:
        made.append(process := fork())
        return process

    monkeypatch.setattr(os, "fork", watched)
    return made


def launched(monkeypatch: pytest.MonkeyPatch, forked: list[int], app: Callable[[], object]) -> int:
    """The status with which the process of a task ends that runs this app."""
    monkeypatch.setattr(bundle, "main", app)
    assert Forks().launch(SPEC) == LaunchResult.accepted()
    return os.waitstatus_to_exitcode(os.waitpid(forked[0], 0)[1])


def test_a_task_runs_the_checked_client_app_in_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, forked: list[int], tmp_path: Path
) -> None:
    def app() -> None:
        (tmp_path / "seen").write_text(f"{os.getpid()} {' '.join(sys.argv[1:])}")

    before = list(sys.argv)
    assert launched(monkeypatch, forked, app) == 0
    process, *given = (tmp_path / "seen").read_text().split()
    assert int(process) != os.getpid()
    assert given == arguments(SPEC)
    assert sys.argv == before


@pytest.mark.parametrize(("end", "status"), [(SystemExit(0), 0), (SystemExit(3), 3), (SystemExit("no"), 1)])
def test_the_process_ends_as_the_app_does(
    monkeypatch: pytest.MonkeyPatch, forked: list[int], end: SystemExit, status: int
) -> None:
    def app() -> None:
        raise end

    assert launched(monkeypatch, forked, app) == status


def test_what_an_app_raises_stays_in_the_log_of_the_node(
    monkeypatch: pytest.MonkeyPatch, forked: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    def app() -> None:
        raise RuntimeError("something is wrong")

    assert launched(monkeypatch, forked, app) == 1
    assert "RuntimeError: something is wrong" in capfd.readouterr().err


def test_processes_that_have_ended_are_taken_leave_of(monkeypatch: pytest.MonkeyPatch, forked: list[int]) -> None:
    monkeypatch.setattr(bundle, "main", lambda: None)
    forks = Forks()
    for _ in range(3):
        forks.launch(SPEC)

    def gone() -> bool:
        forks.reconcile()
        return not any(Path(f"/proc/{process}").exists() for process in forked)

    wait_for(gone, "the end of the forks")
    forks.reconcile()
    forks.close()
    assert len(forked) == 3


def test_that_there_is_no_process_to_take_leave_of_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: int) -> tuple[int, int]:
        raise ChildProcessError

    monkeypatch.setattr(os, "waitpid", none)
    Forks().reconcile()


@pytest.mark.parametrize("kind", [kind for kind in TaskType if kind != TaskType.CLIENT_APP])
def test_nothing_but_client_apps_is_run(kind: TaskType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("it forks"))
    assert Forks().get_eligible_capacity({*TaskType}) == ({TaskType.CLIENT_APP}, set())
    result = Forks().launch(replace(SPEC, task_type=kind))
    assert result == LaunchResult.failed(f"this node runs client apps, not {kind}")


def test_the_connection_is_secured_as_that_of_the_executor() -> None:
    assert arguments(SPEC)[-1] == "--insecure"
    secured = replace(SPEC, insecure=False, root_certificates_path="ca.crt")
    assert arguments(secured)[-2:] == ["--root-certificates", "ca.crt"]
    assert "--insecure" not in arguments(replace(SPEC, insecure=False))


def test_flowers_superexec_is_given_the_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setitem(vars(flower.superexec), "get_executor", None)  # put back afterwards
    monkeypatch.setattr(flower, "flower_superexec", lambda: given.append(vars(flower.superexec)["get_executor"](None)))
    monkeypatch.setattr(sys, "argv", ["executor"])
    executor.main()
    assert isinstance(given[0], Forks)
    assert "edge_client.app" in sys.modules
