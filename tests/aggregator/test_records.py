"""``aggregator.records``: the record of a round, also of one that was damaged or written by a newer minor version."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from aggregator.journal import Attempt, Journal
from aggregator.records import METRICS_FILE, RECORD_FILE, MaskFigures, Record, read_records
from protocol.errors import CheckpointError
from protocol.figures import FIGURES as FIGURES_OF_ALL
from protocol.figures import Figures
from protocol.plan import Plan
from tests.aggregator.conftest import MakeScene
from tests.factories import record

FIGURES = Figures(loss=6 << 16, clipped=5, correct=4, tested=8, test_loss=2 << 16, parameters=40, kept=30)
"""Of three clients."""


def test_the_seconds_of_a_round_add_up_by_phase() -> None:
    seconds = record(1).seconds
    assert list(seconds.by_phase()) == ["train", "contribute", "release", "add", "other"]
    assert seconds.total == 3.75


def test_a_record_is_completed_with_figures_and_bytes_and_keeps_what_it_does_not_know() -> None:
    newer = json.loads(record(4, regrown=3).to_json()) | {"version": "1.1", "carbon": {"grams": 2}}
    made = Record.parse(json.dumps(newer).encode(), "it").trained(FIGURES, 12).scored(FIGURES, 3).sent(10, 20)
    trained = {"loss": 0.5, "clipped": 5}
    scored = {"accuracy": 0.5, "test_loss": 0.25, "kept": 10, "sparsity": 0.25}
    assert json.loads(made.to_json()) == newer | trained | scored | {"uplink_bytes": 2058, "downlink_bytes": 4116}


@pytest.mark.parametrize(
    "lies",
    [{"correct": 9}, {"correct": -1}, {"tested": 0}, {"tested": -8}, {"kept": 41}, {"kept": -1}, {"parameters": -1}],
)
def test_figures_that_cannot_be_are_left_out(lies: dict[str, int]) -> None:
    made = record(1).scored(replace(FIGURES, **lies), 3)
    if {"correct", "tested"} & lies.keys():
        assert (made.accuracy, made.test_loss, made.sparsity) == (None, None, 0.25)
    else:
        assert (made.accuracy, made.kept, made.sparsity) == (0.5, None, None)


def test_what_cannot_have_been_clipped_counts_as_nothing() -> None:
    assert record(1).trained(replace(FIGURES, clipped=-5), 12).clipped == 0


def test_an_aggregator_knows_nothing_of_masks() -> None:
    assert set(MaskFigures().model_dump().values()) == {None}


def test_a_round_of_a_newer_minor_version_is_published_with_its_own_keys(tmp_path: Path) -> None:
    journal = Journal(tmp_path, Plan())
    journal.save(b"sum", record(1), Attempt(round=1, attempt=1, invited=(), announced=True))
    path = tmp_path / "rounds" / "round-000001" / RECORD_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": "1.1", "carbon": 2}))
    (stored,) = journal.unpublished()
    journal.publish(stored.scored(FIGURES, 3))
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


@pytest.mark.parametrize("number", [1 << 62, -(1 << 62), -1])
def test_absurd_figures_of_clients_are_recorded_as_none_or_within_bounds_and_stop_nothing(
    scene: MakeScene, number: int
) -> None:
    s = scene(4, rounds=2)
    for client in s.grid.clients.values():
        client.lies = dict.fromkeys(FIGURES_OF_ALL, number)
    s.run()
    assert [one.round for one in read_records(s.folder)] == [1, 2]
