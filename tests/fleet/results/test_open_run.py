"""``fleet.results.open_run``: the operator's secret opens the stored aggregate, and nothing else does."""

from pathlib import Path

import pytest

from aggregator.journal import RunName
from fleet.provisioning.app_bundle import write_app
from fleet.provisioning.kits import AGGREGATOR, OPERATOR, provision
from fleet.results.open_run import open_run
from protocol.errors import CheckpointError, ConfigError, KeyFileError, RosterRefused
from protocol.plan import Plan
from tests.fleet.command import call

PLAN = Plan(rounds=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("kits", "others"):
        provision(tmp_path / name, 3, PLAN)
    write_app(tmp_path / "app", PLAN)
    (tmp_path / "run").mkdir()
    return tmp_path


def opened(folder: Path, kits: str = "kits", run: str = "run") -> None:
    roster = folder / "kits" / AGGREGATOR / "roster.json"
    open_run(folder / run, folder / kits / OPERATOR, roster, folder / "app" / "pyproject.toml", None, folder / "out")


def test_a_folder_that_is_no_run_is_refused_and_not_made_one(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not the folder of a run: it holds no run\.json"):
        opened(folder)
    assert list((folder / "run").iterdir()) == []


def test_a_run_without_a_complete_round_has_nothing_to_open(folder: Path) -> None:
    RunName(run=bytes(16).hex(), plan=PLAN.digest.hex()).write(folder / "run" / "run.json")
    with pytest.raises(CheckpointError, match="holds no complete round yet"):
        opened(folder)


def test_a_run_of_another_plan_is_refused(folder: Path) -> None:
    RunName(run=bytes(16).hex(), plan=bytes(32).hex()).write(folder / "run" / "run.json")
    with pytest.raises(ConfigError, match="holds a run of another plan"):
        opened(folder)


def test_the_kit_of_another_operator_is_refused(folder: Path) -> None:
    (folder / "run" / "run.json").write_text("{}")
    with pytest.raises(RosterRefused, match="is not signed with the operator's key"):
        opened(folder, kits="others")


def test_the_secret_of_another_federation_is_refused(folder: Path) -> None:
    (folder / "run" / "run.json").write_text("{}")
    place = Path(OPERATOR) / "cohort.secret"
    (folder / "kits" / place).write_bytes((folder / "others" / place).read_bytes())
    with pytest.raises(KeyFileError, match="is not the one of the roster"):
        opened(folder)


def test_a_roster_that_was_changed_is_refused(folder: Path) -> None:
    (folder / "run" / "run.json").write_text("{}")
    path = folder / "kits" / AGGREGATOR / "roster.json"
    path.write_text(path.read_text().replace('"node-2"', '"node-3"'))
    with pytest.raises(RosterRefused, match="is not signed with the operator's key"):
        opened(folder)


def test_an_exposed_secret_is_refused(folder: Path) -> None:
    (folder / "run" / "run.json").write_text("{}")
    (folder / "kits" / OPERATOR / "cohort.secret").chmod(0o644)
    with pytest.raises(KeyFileError, match="can be read by others"):
        opened(folder)


def test_the_command_tells_what_is_wrong_in_one_line(folder: Path) -> None:
    options = {"--kit": OPERATOR, "--roster": f"{AGGREGATOR}/roster.json"}
    arguments = [part for option, path in options.items() for part in (option, str(folder / "kits" / path))]
    config = ["--config", str(folder / "app" / "pyproject.toml"), "--out", str(folder / "out")]
    result = call("open", folder / "run", *arguments, *config)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "is not the folder of a run" in result.stderr
