"""``aggregator.logs``: what a node or an aggregator does wrong is named in the operator's log: round, node, reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from aggregator.app import log_and_status
from aggregator.journal import Journal
from aggregator.logs import LOG_FILE, LogObserver, json_logs
from aggregator.rounds import Run
from aggregator.settings import AggregatorSettings
from protocol.errors import AgreementError, CohortRefused, PruneSealError, StorageError
from protocol.roster import OPERATOR_PUBLIC_FILE
from protocol.text import LONGEST_NAME
from tests.aggregator.stub_grid import (
    CONTRIBUTE,
    TRAIN,
    Behaviour,
    Scene,
    fails,
    make_scene,
    of_round_before,
    sends,
    sends_plaintext,
    signed_by_another,
    small_plan,
    with_fields,
)
from tests.factories import OPERATOR_PUBLIC, signed_roster

BAD = 5


def test_a_node_s_name_is_bounded_and_cleaned() -> None:
    observer = LogObserver()
    observer.online(1, {7: "\x1b]0;owned\x07" * 1000, 8: ""})
    assert observer.name(7).isprintable()
    assert len(observer.name(7)) == LONGEST_NAME
    assert observer.name(8) == "8"


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    made = make_scene(tmp_path / "run", monkeypatch, small_plan(rounds=2), 8)
    (tmp_path / "roster.json").write_text(signed_roster(made.roster))
    (tmp_path / OPERATOR_PUBLIC_FILE).write_text(OPERATOR_PUBLIC)
    return made


def log_of(scene: Scene) -> list[dict[str, Any]]:
    """Run as the deployed app does, to the end or to an error of ours; what is in the log then."""
    journal = Journal(scene.folder, scene.plan)
    settings = AggregatorSettings(scene.folder.parent / "roster.json", scene.folder)
    try:
        with journal.held(), log_and_status(settings, scene.plan, journal) as observer:
            Run(scene.grid, scene.plan, scene.roster, journal, observer).run()
    except PruneSealError:
        pass
    return [json.loads(line) for line in (scene.folder / LOG_FILE).read_text().splitlines()]


@pytest.mark.parametrize(
    ("behaviour", "reason", "text"),
    [
        (sends(of_round_before), "PeerMismatch", "round: ours is 2, the peer's is 1"),
        (sends(signed_by_another), "SignatureRefused", f"node {BAD}"),
        (sends_plaintext, "MalformedMessage", "'numpy.ndarray'"),
    ],
    ids=["the contribution of the round before", "another node's signature", "plaintext"],
)
def test_a_contribution_that_is_refused_is_named_with_round_node_and_reason(
    scene: Scene, behaviour: Behaviour, reason: str, text: str
) -> None:
    scene.grid.when(CONTRIBUTE, behaviour, BAD, round=2)
    (refused,) = [entry for entry in log_of(scene) if entry["event"] == "refused"]
    assert (refused["level"], refused["round"], refused["node"]) == ("warning", 2, f"node-{BAD}")
    assert refused["reason"] == reason
    assert refused["message"].startswith(f"round 2: refused a message: {reason}: ")
    assert text in refused["message"]


def test_a_refusal_by_a_client_is_named_with_round_node_and_reason(scene: Scene) -> None:
    """It sees a cohort below the minimum, for one; the reference leads to the whole text in the client's own log."""
    reason = f"{CohortRefused.public} [ref 0123456789ab]"
    scene.grid.when(CONTRIBUTE, fails(reason), BAD, round=2, attempt=1)
    (failed,) = [entry for entry in log_of(scene) if entry["event"] == "failed"]
    assert (failed["level"], failed["round"], failed["node"]) == ("warning", 2, f"node-{BAD}")
    assert failed["reason"] == reason
    assert failed["message"] == f"round 2: {reason}"


def test_different_models_are_named_with_round_nodes_and_reason(scene: Scene) -> None:
    scene.grid.when(TRAIN, sends(with_fields(model=bytes(32))), 2, 3, 5, 8, round=2)
    last = log_of(scene)[-1]
    assert (last["level"], last["event"], last["round"]) == ("error", "failed", 2)
    assert last["reason"] == AgreementError.__name__
    assert "nodes 2, 3, 5, 8, 13, 21, 34 and 55 report different values of the model" in last["message"]


def test_what_a_full_disk_has_left_of_a_line_does_not_spoil_the_next(scene: Scene) -> None:
    whole = json.dumps({"event": "message", "message": "before"})
    scene.folder.mkdir(exist_ok=True)
    (scene.folder / LOG_FILE).write_text(f'{whole}\n{{"time": "2026-01-01T00:00:00.000+00:00", "event": "st')
    first, *later = log_of(scene)
    assert first == json.loads(whole)
    assert [entry["round"] for entry in later if entry["event"] == "round"] == [1, 2]


def test_a_log_that_cannot_be_written_does_not_hide_why_a_run_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / LOG_FILE).symlink_to("/dev/full")

    def run() -> None:
        with json_logs(tmp_path, "ab"):
            LogObserver().message("lost")
            raise StorageError("the reason")

    with pytest.raises(StorageError, match="the reason"):
        run()
    assert "No space left" in capsys.readouterr().err


def test_a_node_goes_by_its_number_where_no_name_is_registered() -> None:
    observer = LogObserver()
    observer.online(1, {7000: "site-a", 7013: ""})
    assert [observer.name(node) for node in (7000, 7013, 7026)] == ["site-a", "7013", "7026"]
