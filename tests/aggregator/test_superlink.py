"""``aggregator.superlink``: Flower's database waits for its lock, and nothing else of it is changed."""

import sys

import pytest
from flwr.supercore import sql_mixin

from aggregator.superlink import main


def test_the_database_waits_two_minutes_for_its_lock_and_is_otherwise_flowers_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = vars(sql_mixin)["SQLITE_PRAGMAS"]
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", before)
    monkeypatch.setattr("flwr.superlink.cli.flower_superlink", lambda: None)
    monkeypatch.setattr(sys, "argv", ["superlink"])
    main()
    after = vars(sql_mixin)["SQLITE_PRAGMAS"]
    assert dict(after) == {**dict(before), "busy_timeout": "120000"}
    assert len(after) == len(before)
    assert int(dict(before)["busy_timeout"]) < 120_000
