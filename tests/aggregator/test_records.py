"""``aggregator.records``: the record of a round, also of one that was damaged or written by a newer minor version."""

import json
from pathlib import Path

import pytest

from aggregator.journal import METRICS_FILE, RECORD_FILE, Journal, read_records
from aggregator.records import MaskFigures, Record, Scores
from protocol.errors import CheckpointError
from protocol.plan import Plan
from tests.aggregator.conftest import BAD, MakeScene
from tests.aggregator.stub_grid import CONTRIBUTE, EVALUATE, TRAIN
from tests.factories import record

SCORES = Scores(accuracy=0.5, test_loss=None, kept=7, sparsity=0.25)


def test_the_seconds_of_a_round_add_up_by_phase() -> None:
    seconds = record(1).seconds
    assert list(seconds.by_phase()) == ["train", "contribute", "release", "add", "other"]
    assert seconds.total == 3.75


def test_a_record_is_completed_with_scores_and_bytes_and_keeps_what_it_does_not_know() -> None:
    newer = json.loads(record(4, regrown=3).to_json()) | {"version": "1.1", "carbon": {"grams": 2}}
    made = Record.parse(json.dumps(newer).encode(), "it").scored(SCORES, 10, 20)
    changed = {"accuracy": 0.5, "kept": 7, "sparsity": 0.25, "uplink_bytes": 2058, "downlink_bytes": 4116}
    assert json.loads(made.to_json()) == newer | changed


def test_an_aggregator_knows_nothing_of_masks() -> None:
    assert set(MaskFigures().model_dump().values()) == {None}


def test_a_round_of_a_newer_minor_version_is_published_with_its_own_keys(tmp_path: Path) -> None:
    journal = Journal(tmp_path, Plan())
    journal.save(b"sum", record(1))
    path = tmp_path / "rounds" / "round-000001" / RECORD_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": "1.1", "carbon": 2}))
    stored = journal.last().record
    assert stored is not None
    journal.publish(stored.scored(SCORES, 0, 0))
    (line,) = (tmp_path / METRICS_FILE).read_text().splitlines()
    assert (json.loads(line)["version"], json.loads(line)["carbon"]) == ("1.1", 2)


def test_a_damaged_line_is_named_with_its_key_and_nothing_is_written_over_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path, Plan())
    journal.publish(record(1))
    path = tmp_path / METRICS_FILE
    path.write_text(path.read_text().replace('"train":2.0', '"train":"2"'))
    before = path.read_bytes()
    for look in (lambda: read_records(tmp_path), lambda: journal.publish(record(2))):
        with pytest.raises(CheckpointError, match=r"a line of .*metrics\.jsonl is damaged: 'seconds\.train'"):
            look()
    assert path.read_bytes() == before


def test_metrics_without_end_are_refused(tmp_path: Path) -> None:
    with (tmp_path / METRICS_FILE).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="larger than"):
        read_records(tmp_path)


@pytest.mark.parametrize("number", [1.7e308, -1.7e308, -1.0])
def test_absurd_figures_of_clients_are_recorded_as_none_or_within_bounds_and_stop_nothing(
    scene: MakeScene, number: float
) -> None:
    told = dict.fromkeys(("loss", "correct", "tested", "test-loss", "parameters", "kept", "clipped"), number)
    s = scene(4, rounds=2)
    for kind in (TRAIN, CONTRIBUTE, EVALUATE):
        s.grid.when(kind, lambda ask: ask.reply(ask.honest()[0], dict(told)), 2, 3, BAD, 8)
    s.run()
    assert [one.round for one in read_records(s.folder)] == [1, 2]
