"""``fleet.provisioning.app_bundle``: what `flwr run` sends is the plan, no code, and its digest is known beforehand."""

import hashlib
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk  # which `flwr run` calls
from flwr.common.config import get_fused_config_from_fab, parse_config_args

from fleet.flower import empty_run
from fleet.provisioning.app_bundle import bundle_digest, write_app
from protocol.plan import Plan, plan_from_config

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
PLAN = Plan(rounds=3, min_cohort=4, options=(("allocation", "erk"), ("exponent", 2.5)))


def test_the_digest_is_that_of_what_flower_builds_from_the_folder(tmp_path: Path) -> None:
    write_app(tmp_path / "app", PLAN)
    assert bundle_digest(PLAN) == hashlib.sha256(build_fab_from_disk(tmp_path / "app")).hexdigest()


def test_the_bundle_holds_the_plan_and_no_code(tmp_path: Path) -> None:
    write_app(tmp_path / "app", PLAN)
    bundle = build_fab_from_disk(tmp_path / "app")
    with zipfile.ZipFile(BytesIO(bundle)) as archive:
        assert sorted(archive.namelist()) == [".info/CONTENT", "LICENSE", "pyproject.toml"]
    assert plan_from_config(get_fused_config_from_fab(bundle, empty_run(1))) == PLAN


def test_flower_overrides_a_field_and_an_option_that_the_bundle_names(tmp_path: Path) -> None:
    write_app(tmp_path / "app", PLAN)
    given = parse_config_args(["rounds=5 options.exponent=1.5 options.allocation='macs'"])
    run = replace(empty_run(1), override_config=given)
    fused = plan_from_config(get_fused_config_from_fab(build_fab_from_disk(tmp_path / "app"), run))
    assert fused == replace(PLAN, rounds=5, options=(("allocation", "macs"), ("exponent", 1.5)))


def test_another_plan_is_another_bundle() -> None:
    assert bundle_digest(PLAN) != bundle_digest(replace(PLAN, bits=12))
    assert bundle_digest(PLAN) == bundle_digest(replace(PLAN))
