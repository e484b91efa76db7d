"""The command line: help, versions, and what bad input is told."""

from pathlib import Path

import pytest

from fleet.provisioning.kits import plan_from_toml
from fleet.running import local
from protocol.plan import Plan
from tests.fleet.command import call


def test_the_version_is_one_line() -> None:
    result = call("--version")
    assert result.exit_code == 0
    assert result.stdout == "pruneseal 0.1.0\n"


def test_help_names_every_command() -> None:
    result = call("--help")
    assert result.exit_code == 0
    commands = ("run", "export", "bench", "inspect", "provision", "open", "status", "serve")
    assert all(command in result.stdout for command in commands)


def test_help_of_run_names_what_can_be_chosen() -> None:
    shown = call("run", "--help").stdout
    for text in (
        "fedsparsify-global",
        "one-shot",
        "digits-mlp",
        "dirichlet",
        "idx:DIR",
        "--resume",
        "--drop",
        "--bits",
        "--grid",
    ):
        assert text in shown


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--method", "fedsparsfy", "there is no method 'fedsparsfy'; known are fedavg, fedsparsify-global"),
        ("--sparsity", "95", "sparsity must be a fraction in [0, 1), not 95.0"),
        ("--granularity", "channel", "granularity must be one of weight, filter, not channel"),
        ("--min-cohort", "2", "min-cohort must be 3 or more: a smaller sum exposes its members, not 2"),
        ("--clients", "2", "max-cohort must be at least min-cohort, not 2"),
        ("--bits", "30", "bits must lie between 2 and 24, not 30"),
        ("--drop", "1.5", "drop must be a probability in [0, 1), not 1.5"),
        ("--workers", "-1", "workers must be 0 or more, not -1"),
        ("--rounds", "1", "rounds (1) must exceed first-prune (1), or nothing is ever pruned"),
        ("--data", "cifar", "cifar"),
        ("--model", "lenet6", "lenet6"),
        ("--partition", "sorted", "sorted"),
        ("--allocation", "fair", "there is no allocation 'fair'; known are global, uniform, erk, macs"),
        ("--layer-floor", "0.2", "layer-floor (0.2) is more than sparsity 0.95 leaves"),
        ("--powerprop", "0", "powerprop must be 1 or more, not 0.0"),
        ("--prox", "-1", "proximal must be 0 or more, not -1.0"),
        ("--set", "rouns=3", "the run config has unknown keys: rouns"),
        ("--set", "rounds", "--set takes KEY=VALUE with a value in TOML, such as rounds=10 or model='lenet5'"),
        ("--set", "rounds='many'", "rounds must be of type int, not 'many'"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    tmp_path: Path, option: str, value: str, told: str
) -> None:
    result = call("run", "--out", tmp_path / "run", option, value)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert told in result.stderr
    assert not (tmp_path / "run").exists()


def test_an_unknown_option_is_a_usage_error() -> None:
    assert call("run", "--out", "x", "--sparsety", "0.9").exit_code == 2


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans that runs would have begun with."""
    seen: list[Plan] = []

    def stop(out: Path, plan: Plan, options: local.Options) -> None:
        seen.append(plan)
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "start", stop)
    return seen


def test_the_one_shot_method_prunes_ten_rounds_before_the_end(tmp_path: Path, plans: list[Plan]) -> None:
    assert call("run", "--out", tmp_path, "--method", "one-shot", "--rounds", "40").exit_code == 130
    assert plans[0].first_prune == 30


@pytest.mark.parametrize(
    ("options", "beta"),
    [
        (("--method", "sparsyfed"), 1.25),
        (("--method", "sparsyfed", "--powerprop", "2"), 2.0),
        ((), 1.0),
        (("--powerprop", "1.5"), 1.5),
    ],
)
def test_sparsyfed_has_powerpropagation_unless_another_beta_is_given(
    tmp_path: Path, plans: list[Plan], options: tuple[str, ...], beta: float
) -> None:
    assert call("run", "--out", tmp_path, *options).exit_code == 130
    assert plans[0].powerprop == beta


def test_any_field_of_the_plan_can_be_set(tmp_path: Path, plans: list[Plan]) -> None:
    options = ("--set", "strict-majority=true", "--set", "threshold-estimator='clipped'", "--set", "exponent=2")
    assert call("run", "--out", tmp_path, *options).exit_code == 130
    assert (plans[0].strict_majority, plans[0].threshold_estimator, plans[0].exponent) == (True, "clipped", 2.0)


def test_provision_makes_kits_once_and_never_overwrites_them(tmp_path: Path) -> None:
    first = call("provision", "--out", tmp_path / "kits", "--clients", "4")
    assert first.exit_code == 0
    assert first.stdout.startswith(f"4 kits for the plan {Plan().digest.hex()[:16]}")
    again = call("provision", "--out", tmp_path / "kits", "--clients", "4")
    assert again.exit_code == 1
    assert "keys are never overwritten" in again.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[tool]\n", "holds no [tool.flwr.app.config]"),
        ("not toml", "holds no [tool.flwr.app.config]"),
        ("[tool.flwr.app.config]\nround = 3\n", "the run config has unknown keys: round"),
    ],
)
def test_provision_refuses_a_file_without_a_plan(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "plan.toml").write_text(text)
    result = call("provision", "--out", tmp_path / "kits", "--config", tmp_path / "plan.toml")
    assert result.exit_code == 1
    assert told in result.stderr


def test_provision_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    result = call("provision", "--out", tmp_path / "kits", "--config", tmp_path / "none.toml")
    assert result.exit_code == 1
    assert "cannot be read: No such file or directory" in result.stderr


@pytest.mark.parametrize("command", ["inspect", "export"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, command: str) -> None:
    options = ["--out", str(tmp_path)] if command == "export" else []
    result = call(command, tmp_path / "none.bin", *options)
    assert result.exit_code == 1
    assert "none.bin" in result.stderr


def test_the_defaults_of_the_bundle_are_those_of_the_plan() -> None:
    assert plan_from_toml(Path(__file__).parents[2] / "pyproject.toml") == Plan()
