"""``aggregator.app``: the Flower app runs the rounds with what is private to this process, and tells the log."""

import json
import logging
from contextlib import nullcontext
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from aggregator.app import app, server_app
from aggregator.logs import LogObserver
from aggregator.settings import AggregatorSettings
from protocol.errors import ConfigError
from protocol.plan import Plan
from tests.aggregator.stub_grid import Scene, make_scene, small_plan
from tests.factories import write_roster


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    made = make_scene(tmp_path / "run", monkeypatch, small_plan(rounds=2), 3)
    write_roster(tmp_path, made.roster)
    return made


def context(plan: Plan) -> Context:
    return Context(1, 1, {}, RecordDict(), dict(plan.to_config()))


def test_the_app_reads_its_environment_when_a_run_starts(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNESEAL_ROSTER", str(tmp_path / "roster.json"))
    monkeypatch.setenv("PRUNESEAL_RUN", str(scene.folder))
    app(scene.grid, context(scene.plan))
    rounds = [json.loads(line)["round"] for line in (scene.folder / "metrics.jsonl").read_text().splitlines()]
    assert rounds == [1, 2]


def test_without_its_environment_the_app_stops_before_it_asks_anybody(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PRUNESEAL_ROSTER", raising=False)
    with pytest.raises(ConfigError, match="PRUNESEAL_ROSTER"):
        app(scene.grid, context(scene.plan))
    assert scene.grid.asked == []


def test_an_app_can_be_given_its_settings_and_its_audience(scene: Scene, tmp_path: Path) -> None:
    server_app(lambda: AggregatorSettings(tmp_path / "roster.json", scene.folder), lambda *_: nullcontext(scene.watch))(
        scene.grid, context(scene.plan)
    )
    assert [record.round for record in scene.watch.records] == [1, 2]
    assert [number for number, *_ in scene.watch.sums] == [1, 2]


def test_a_run_config_that_is_no_plan_is_refused(scene: Scene, tmp_path: Path) -> None:
    made = server_app(
        lambda: AggregatorSettings(tmp_path / "roster.json", scene.folder), lambda *_: nullcontext(scene.watch)
    )
    with pytest.raises(ConfigError, match="lacks"):
        made(scene.grid, Context(1, 1, {}, RecordDict(), {}))


def test_the_log_gets_every_stage_at_its_level(scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "pruneseal.aggregator")
    scene.grid.when("train", lambda ask: None, 5, round=1, attempt=1)
    server_app(
        lambda: AggregatorSettings(tmp_path / "roster.json", scene.folder), lambda *_: nullcontext(LogObserver())
    )(scene.grid, context(scene.plan))
    told = {(record.levelname, record.getMessage()) for record in caplog.records}
    assert ("DEBUG", "round 1: train 3 of 3") in told
    assert ("DEBUG", "round 1: contribute 3 of 3") in told
    assert ("INFO", "round 1, attempt 2: added 3 clients") in told
    assert ("WARNING", "round 1: 1 of 3 clients did not train; asking again") in told
    assert ("INFO", "round 1: 3 nodes are online") in told
    assert ("INFO", "round 2 is done") in told
