"""The command line: help, versions, and what bad input is told."""

import re
from pathlib import Path

import pytest

from edge_client.sparsify import METHODS
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
    commands = ("run", "methods", "export", "bench", "inspect", "provision", "open", "status", "serve")
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
        "--engine",
        "pruneseal methods",
    ):
        assert text in shown


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--method", "fedsparsfy", "there is no method 'fedsparsfy'; known are fedavg, fedsparsify-global"),
        ("--sparsity", "95", "sparsity must be a fraction in [0, 1), not 95.0"),
        ("--granularity", "channel", "granularity must be one of weight, filter, not channel"),
        ("--min-cohort", "2", "min-cohort must be 3 (colluders + 2) or more: a smaller sum exposes its members, not 2"),
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
        ("--set", "rouns=3", "neither the plan nor fedsparsify-global has rouns; the plan has method, sparsity"),
        ("--set", "start-sparsity=0.1", "fedsparsify-global has powerprop, allocation, layer-floor, first-prune"),
        ("--set", "rounds", "--set takes KEY=VALUE, such as rounds=10 or model=lenet5, not rounds"),
        ("--set", "rounds='many'", "rounds must be of type int, not 'many'"),
        ("--set", "rounds=many", "rounds must be of type int, not 'many'"),
        ("--set", "method=magic", "there is no method 'magic'; known are fedavg, fedsparsify-global"),
        ("--set", "exponent=0", "exponent must be positive, not 0.0"),
        ("--set", "frequency=1.5", "frequency must be of type int, not 1.5"),
        ("--set", "options.exponent=2", "neither the plan nor fedsparsify-global has options.exponent"),
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


def options(plan: Plan) -> dict[str, object]:
    return dict(plan.options)


def test_the_one_shot_method_prunes_ten_rounds_before_the_end(tmp_path: Path, plans: list[Plan]) -> None:
    assert call("run", "--out", tmp_path, "--method", "one-shot", "--rounds", "40").exit_code == 130
    assert options(plans[0])["first-prune"] == 30


@pytest.mark.parametrize(
    ("given", "beta"),
    [
        (("--method", "sparsyfed"), 1.25),
        (("--method", "sparsyfed", "--powerprop", "2"), 2.0),
        ((), 1.0),
        (("--powerprop", "1.5"), 1.5),
    ],
)
def test_sparsyfed_has_powerpropagation_unless_another_beta_is_given(
    tmp_path: Path, plans: list[Plan], given: tuple[str, ...], beta: float
) -> None:
    assert call("run", "--out", tmp_path, *given).exit_code == 130
    assert options(plans[0])["powerprop"] == beta


def test_any_field_of_the_plan_and_any_option_of_the_method_can_be_set(tmp_path: Path, plans: list[Plan]) -> None:
    given = ("--method", "fedsparsify-local", "--set", "strict-majority=true", "--set", "exponent=2", "--set")
    assert call("run", "--out", tmp_path, *given, "deadline=60", "--set", "allocation=erk").exit_code == 130
    assert call("run", "--out", tmp_path, *given, "allocation='erk'", "--set", "deadline=60.0").exit_code == 130
    assert options(plans[0]) == {
        **{"allocation": "erk", "exponent": 2, "first-prune": 1, "frequency": 1, "layer-floor": 0},
        **{"powerprop": 1, "strict-majority": True},
    }
    assert plans[0].deadline == 60.0
    assert plans[0] == plans[1]


@pytest.mark.parametrize("method", METHODS)
def test_every_option_of_every_method_can_be_set_to_its_default_and_is_in_the_plan(
    tmp_path: Path, plans: list[Plan], method: str
) -> None:
    declared = METHODS[method].declared()
    given = [
        part
        for option in declared.values()
        if not option.derived
        for part in ("--set", f"{option.name}={option.shown}")
    ]
    assert call("run", "--out", tmp_path, "--method", method, *given).exit_code == 130
    assert call("run", "--out", tmp_path, "--method", method).exit_code == 130
    assert plans[0] == plans[1]
    assert options(plans[0]).keys() == declared.keys()


def test_a_method_without_a_target_takes_no_sparsity(tmp_path: Path, plans: list[Plan]) -> None:
    for method in ("fedavg", "spafl"):
        refused = call("run", "--out", tmp_path, "--method", method, "--sparsity", "0.5")
        assert refused.exit_code == 1
        assert f"{method} has no target sparsity: leave sparsity out" in refused.stderr
        assert call("run", "--out", tmp_path, "--method", method).exit_code == 130
    assert [plan.sparsity for plan in plans] == [0.0, 0.0]


def test_the_methods_are_described_with_their_options() -> None:
    shown = call("methods").stdout
    for name, kind in METHODS.items():
        assert f"\n{name}\n" in f"\n{shown}"
        for option in kind.declared().values():
            assert f"{option.name}={option.shown}" in shown
            assert f"\n{option.name}: " in shown
    one = call("methods", "spafl").stdout
    assert "threshold-penalty=0.002" in one
    assert "without a target" in one
    assert "fedavg" not in one
    assert call("methods", "magic").exit_code == 1


def test_the_readme_sets_only_what_can_be_set() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    named = set(re.findall(r"--set ['\"]?([a-z-]+)=", text))
    assert named
    options_of_any = {name for kind in METHODS.values() for name in kind.declared()}
    assert named - {"key"} <= options_of_any | Plan().to_config().keys()


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
        ("not toml", "is not a TOML file"),
        ("[tool.flwr.app.config]\nround = 3\n", "the run config has unknown keys: round"),
    ],
)
def test_provision_refuses_a_file_without_a_plan(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "plan.toml").write_text(text)
    result = call("provision", "--out", tmp_path / "kits", "--config", tmp_path / "plan.toml")
    assert result.exit_code == 1
    assert told in result.stderr


def test_provision_refuses_a_plan_whose_method_does_not_take_its_options(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    (tmp_path / "plan.toml").write_text(f"{text}\n[tool.flwr.app.config.options]\nexponnent = 2.0\n")
    trial = call("provision", "--out", tmp_path / "kits", "--config", tmp_path / "plan.toml")
    site = "[aggregator]\nhosts = ['x']\n[plan]\nmethod = 'spafl'\n[plan.options]\nexponent = 2.0\n"
    (tmp_path / "site.toml").write_text(site + "".join(f"[[clients]]\nname = '{name}'\n" for name in "abc"))
    several = call("provision", tmp_path / "site.toml", "--out", tmp_path / "kits")
    assert (trial.exit_code, several.exit_code) == (1, 1)
    assert "fedsparsify-global has no option exponnent; its options are powerprop, allocation" in trial.stderr
    assert "spafl has no option exponent; its options are threshold-penalty" in several.stderr
    assert not (tmp_path / "kits").exists()


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
