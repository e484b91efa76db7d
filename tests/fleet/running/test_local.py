"""Starting and finding local runs; whole runs are in tests/e2e."""

from pathlib import Path

import pytest

from fleet.running.local import OPTIONS_FILE, Options, largest_cohort, start, stored_run
from protocol.errors import ConfigError
from protocol.plan import Plan

OPTIONS = Options(clients=4, drop=0.0, verify=True, workers=1)
PLAN = Plan(max_cohort=4)


def test_what_was_started_can_be_found_again(tmp_path: Path) -> None:
    start(tmp_path / "run", PLAN, OPTIONS)
    assert stored_run(tmp_path / "run") == (PLAN, OPTIONS)
    assert sorted(path.name for path in (tmp_path / "run" / "kits").iterdir()) == [
        *("aggregator", "node-0", "node-1", "node-2", "node-3", "operator")
    ]


def test_a_second_start_is_refused_and_leaves_the_first_alone(tmp_path: Path) -> None:
    start(tmp_path, PLAN, OPTIONS)
    before = (tmp_path / "kits" / "operator" / "cohort.secret").read_bytes()
    with pytest.raises(ConfigError, match="already holds a run"):
        start(tmp_path, PLAN, OPTIONS)
    assert (tmp_path / "kits" / "operator" / "cohort.secret").read_bytes() == before


@pytest.mark.parametrize("text", ["{", "{}", '{"plan": {}, "options": {}}', '{"plan": {}, "options": {"more": 1}}'])
def test_a_damaged_options_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / OPTIONS_FILE).write_text(text)
    with pytest.raises(ConfigError):
        stored_run(tmp_path)


@pytest.mark.parametrize(("clients", "fraction", "cohort"), [(10, 1.0, 10), (100, 0.1, 10), (10, 0.25, 3)])
def test_the_largest_cohort_is_the_part_that_is_asked(clients: int, fraction: float, cohort: int) -> None:
    assert largest_cohort(clients, fraction) == cohort
