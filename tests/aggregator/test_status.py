"""``aggregator.status`` and ``aggregator.logs``: a file and a log that tell how a run goes, whatever becomes of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from aggregator.app import log_and_status
from aggregator.journal import Journal, is_held
from aggregator.logs import LOG_FILE, LogObserver, Tail, json_logs
from aggregator.rounds import Run
from aggregator.settings import AggregatorSettings
from aggregator.status import FAILED, FINISHED, STATUS_FILE, STOPPED, Status, read_status
from protocol.errors import CheckpointError, QuorumError, StorageError
from tests.aggregator.stub_grid import CONTRIBUTE, TRAIN, Scene, fails, make_scene, sends, sends_nothing, small_plan
from tests.factories import write_roster


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    made = make_scene(tmp_path / "run", monkeypatch, small_plan(rounds=2), 4)
    write_roster(tmp_path, made.roster)
    return made


def run(scene: Scene, error: BaseException | None = None) -> None:
    """Run the rounds as the deployed app does."""
    journal = Journal(scene.folder, scene.plan)
    settings = AggregatorSettings(scene.folder.parent / "roster.json", scene.folder)
    with journal.held(), log_and_status(settings, scene.plan, journal) as observer:
        if error is not None:
            raise error
        Run(scene.grid, scene.plan, scene.roster, journal, observer).run()


def known(folder: Path) -> Status:
    status = read_status(folder)
    assert status is not None
    return status


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]


def test_a_finished_run_says_so_and_names_its_nodes(scene: Scene) -> None:
    run(scene)
    status = known(scene.folder)
    assert (status.state, status.error, status.starts, status.rounds) == (FINISHED, "", 1, 2)
    assert status.run == Journal(scene.folder, scene.plan).run.hex()
    took_part = {name: node.round for name, node in status.nodes.items() if node.round}
    assert took_part == {f"node-{node}": 3 for node in (2, 3, 5, 8)}
    assert not is_held(scene.folder)


def test_refusals_and_errors_are_counted_and_kept_with_node_and_text(scene: Scene) -> None:
    scene.grid.when(TRAIN, sends_nothing, 5, round=1)
    scene.grid.when(TRAIN, fails("this node's keys are missing or exposed [ref 0a1b]"), 8, round=2)
    run(scene)
    status = known(scene.folder)
    assert (status.refused, status.failed) == ({"MalformedMessage": 1}, 1)
    first, second = status.problems
    assert (first.round, first.kind) == (1, "MalformedMessage")
    assert "the reply holds no attendance" in first.text
    assert (second.round, second.kind) == (2, "error")
    assert second.text == "this node's keys are missing or exposed [ref 0a1b]"
    assert first.node != second.node


def test_what_a_node_says_is_bounded_and_cleaned_before_it_is_logged_stored_or_told(scene: Scene) -> None:
    scene.grid.when(TRAIN, fails("\x1b[2J\r\n\u202e" * 10_000), 5)
    run(scene)
    (problem, *_) = known(scene.folder).problems
    told = [entry["message"] for entry in logged(scene.folder)]
    for text in (problem.text, *told):
        assert text.isprintable()
        assert len(text) < 1000
    assert any(r"clients did not train (1 x " in text for text in told)


def test_every_line_of_the_log_is_json_with_the_run_and_the_round(scene: Scene) -> None:
    scene.grid.when(TRAIN, sends_nothing, 5, round=1)
    run(scene)
    entries = logged(scene.folder)
    assert {entry["run"] for entry in entries} == {known(scene.folder).run}
    assert {"time", "level", "message"} <= set.intersection(*(set(entry) for entry in entries))
    events = [(entry["event"], entry.get("round")) for entry in entries]
    assert [event for event in events if event[0] == "summed"] == [("summed", 1), ("summed", 2), ("summed", 3)]
    (refused,) = [entry for entry in entries if entry["event"] == "refused"]
    assert (refused["level"], refused["round"], refused["reason"]) == ("warning", 1, "MalformedMessage")
    assert events[-1] == ("finished", None)


def test_a_run_that_fails_keeps_what_to_do_and_counts_on_when_it_is_resumed(scene: Scene) -> None:
    scene.grid.when(CONTRIBUTE, sends(lambda ask, frame: frame[:-1]), 3, 5, round=2)
    with pytest.raises(QuorumError):
        run(scene)
    status = known(scene.folder)
    assert status.state == FAILED
    assert status.error.startswith("QuorumError: round 2 failed 4 times")
    assert "resume the run" in status.error
    refused = status.refused["MalformedMessage"]
    assert refused > 1
    scene.grid._rules.clear()
    run(scene)
    status = known(scene.folder)
    assert (status.state, status.error, status.starts) == (FINISHED, "", 2)
    assert status.refused["MalformedMessage"] == refused


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SystemExit(0), ""),
        (KeyboardInterrupt(), ""),
        (RuntimeError("odd"), "RuntimeError: odd"),
        (StorageError("make space"), "StorageError: make space"),
    ],
)
def test_a_run_that_is_ended_from_outside_is_stopped_not_failed(scene: Scene, error: BaseException, text: str) -> None:
    with pytest.raises(type(error)):
        run(scene, error)
    status = known(scene.folder)
    assert (status.state, status.error) == (STOPPED, text)
    assert logged(scene.folder)[-1]["event"] == "stopped"


def test_the_status_of_another_run_in_the_folder_is_not_counted_on(scene: Scene) -> None:
    run(scene)
    other = json.loads((scene.folder / STATUS_FILE).read_text()) | {"run": "00" * 16, "refused": {"Duplicate": 9}}
    (scene.folder / STATUS_FILE).write_text(json.dumps(other))
    run(scene)
    assert (known(scene.folder).starts, known(scene.folder).refused) == (1, {})


def test_a_status_that_cannot_be_written_is_told_and_stops_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Status, "write", full)
    run(scene)
    assert read_status(scene.folder) is None
    assert "status.json cannot be written: No space left on device" in caplog.text
    assert len((scene.folder / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": "1.0"}', '{"format": "pruneseal-status", "version": "1.0", "more": 2}']
)
def test_a_damaged_status_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / STATUS_FILE).write_text(text)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_status(tmp_path)


def test_a_status_of_another_version_is_refused(scene: Scene) -> None:
    run(scene)
    other = json.loads((scene.folder / STATUS_FILE).read_text()) | {"version": "2.0"}
    (scene.folder / STATUS_FILE).write_text(json.dumps(other))
    with pytest.raises(CheckpointError, match=r"has version 2\.0, not 1\.x"):
        read_status(scene.folder)


def test_a_tail_gives_each_whole_line_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    tail, absent = Tail(path), Tail(tmp_path / "none")
    assert (tail.new(), absent.new()) == ([], [])
    with path.open("a") as file:
        file.write("a\nb")
        file.flush()
        assert tail.new() == ["a"]
        file.write("c\n")
    assert (tail.new(), tail.new()) == (["bc"], [])
    path.write_text("d\n")
    assert tail.new() == ["d"]


def test_a_tail_is_not_lost_when_the_log_cuts_off_what_a_full_disk_has_left(tmp_path: Path) -> None:
    path = tmp_path / LOG_FILE
    path.write_text('{"old": 1}\n{"torn": "' + "x" * 200)
    tail = Tail(path)
    with json_logs(tmp_path, "ab"):
        LogObserver().message("new")
    (line,) = tail.new()
    assert json.loads(line)["message"] == "new"
