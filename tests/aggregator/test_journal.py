"""``aggregator.journal``: a completed round is on disk whole or not at all, and a resumed run finds it."""

import os
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from aggregator.journal import AGGREGATE_FILE, ATTEMPT_FILE, RUN_FILE, Attempt, Journal, Stored, is_held
from aggregator.records import METRICS_FILE, RECORD_FILE, Record, read_records
from protocol.errors import CheckpointError, ConfigError, StorageError
from protocol.plan import Plan
from tests.factories import record

PLAN = Plan()


class KilledError(BaseException):
    """What no handler of errors catches."""


def published(folder: Path) -> list[Record]:
    return [Record.parse(line, "line") for line in (folder / METRICS_FILE).read_bytes().splitlines()]


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "rounds").iterdir())


def test_a_new_folder_gets_a_random_run_and_keeps_it(tmp_path: Path) -> None:
    first = Journal(tmp_path / "a" / "b", PLAN)
    assert len(first.run) == 16
    assert Journal(tmp_path / "a" / "b", PLAN).run == first.run
    assert Journal(tmp_path / "c", PLAN).run != first.run


def test_a_run_can_be_given_a_name_and_keeps_that_too(tmp_path: Path) -> None:
    for given in (bytes(range(16)), bytes(16), None):
        assert Journal(tmp_path, PLAN, given).run == bytes(range(16))


def test_a_folder_of_another_plan_is_refused_and_the_message_names_both(tmp_path: Path) -> None:
    Journal(tmp_path, PLAN)
    other = Plan(seed=7)
    with pytest.raises(ConfigError) as caught:
        Journal(tmp_path, other)
    assert PLAN.digest.hex()[:16] in str(caught.value)
    assert other.digest.hex()[:16] in str(caught.value)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot be written"):
        Journal(tmp_path / "file", PLAN)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"run": 1, "plan": ""}', '{"run": "xyz", "plan": ""}'])
def test_a_run_file_that_names_no_run_is_refused(tmp_path: Path, text: str) -> None:
    Journal(tmp_path, PLAN)
    (tmp_path / RUN_FILE).write_text(text)
    with pytest.raises(ConfigError, match="does not name a run"):
        Journal(tmp_path, PLAN)


def test_before_the_first_round_there_is_nothing(tmp_path: Path) -> None:
    assert Journal(tmp_path, PLAN).last() == Stored(0, b"")


def test_the_last_round_is_the_one_that_was_saved_last_also_after_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path, PLAN)
    for number in range(1, 13):
        journal.save(bytes([number]) * 100, record(number), BEGUN)
        assert Journal(tmp_path, PLAN).last() == Stored(number, bytes([number]) * 100)


def test_of_the_rounds_that_are_kept_those_without_a_line_are_unpublished(tmp_path: Path) -> None:
    journal = Journal(tmp_path, PLAN)
    assert journal.unpublished() == []
    for number in (1, 2):
        journal.save(b"sum", record(number), BEGUN)
    assert journal.unpublished() == [record(1), record(2)]
    journal.publish(record(1))
    assert journal.unpublished() == [record(2)]
    journal.amend(record(2, clipped=7))
    assert Journal(tmp_path, PLAN).unpublished() == [record(2, clipped=7)] == read_records(tmp_path)[1:]


def test_a_run_is_closed_with_the_sum_of_its_scores(tmp_path: Path) -> None:
    journal = Journal(tmp_path, PLAN)
    assert journal.scores() == b""
    journal.save(b"sum", record(1), BEGUN)
    journal.wait(7, b"masked")
    journal.close(b"scores", BEGUN)
    assert Journal(tmp_path, PLAN).scores() == b"scores"
    assert journal.last() == Stored(1, b"sum")
    assert journal.waiting(7) == b""
    assert journal.opened(7) == BEGUN


def test_only_the_newest_rounds_are_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path, PLAN)
    for number in range(1, 6):
        journal.save(b"sum", record(number), BEGUN)
    assert kept(tmp_path) == ["round-000004", "round-000005"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (RECORD_FILE, None),
        (RECORD_FILE, ""),
        (RECORD_FILE, "{"),
        (RECORD_FILE, "{}"),
        (RECORD_FILE, "[]"),
        (RECORD_FILE, '{"round": null}'),
        (AGGREGATE_FILE, None),
    ],
)
def test_a_damaged_round_is_refused_by_its_path_and_the_one_before_can_be_gone_on_from(
    tmp_path: Path, name: str, text: str | None
) -> None:
    journal = Journal(tmp_path, PLAN)
    for number in (1, 2):
        journal.save(b"sum", record(number), BEGUN)
    newest = tmp_path / "rounds" / "round-000002"
    (newest / name).unlink()
    if text is not None:
        (newest / name).write_text(text)
    with pytest.raises(CheckpointError, match="round-000002 is damaged"):
        journal.last()
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    assert journal.last().round == 1


def test_a_save_that_is_killed_at_any_step_leaves_the_old_round_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = record(1), record(2)
    old, new = Stored(1, b"old"), Stored(2, b"new")
    seen = []
    for step in count(1):
        folder = tmp_path / str(step)
        Journal(folder, PLAN).save(old.aggregate, first, BEGUN)
        left = iter(range(step, 0, -1))

        def sync(descriptor: int, left: "Any" = left) -> None:
            if next(left) == 1:
                raise KilledError

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", sync)
            patch.setattr("aggregator.journal.shutil.rmtree", lambda path, ignore_errors=False: None)
            try:
                Journal(folder, PLAN).save(new.aggregate, second, BEGUN)
            except KilledError:
                seen.append(Journal(folder, PLAN).last())
            else:
                break
        journal = Journal(folder, PLAN)
        if journal.last() == old:
            journal.save(new.aggregate, second, BEGUN)
        assert journal.last() == new
    assert set(map(repr, seen)) == {repr(old), repr(new)}
    assert seen == sorted(seen, key=lambda stored: stored.round)


def test_each_round_has_one_line_of_metrics(tmp_path: Path) -> None:
    journal = Journal(tmp_path, PLAN)
    for number in (1, 2, 3):
        journal.publish(record(number))
    assert published(tmp_path) == [record(1), record(2), record(3)]


def test_a_line_that_was_written_before_a_crash_is_replaced_when_its_round_is_published_again(tmp_path: Path) -> None:
    Journal(tmp_path, PLAN).publish(record(1))
    Journal(tmp_path, PLAN).publish(record(2, accuracy=0.1))
    Journal(tmp_path, PLAN).publish(record(2, accuracy=0.9))
    assert published(tmp_path) == [record(1), record(2, accuracy=0.9)]


def test_lines_of_rounds_that_are_run_again_go(tmp_path: Path) -> None:
    journal = Journal(tmp_path, PLAN)
    for number in (1, 2, 3):
        journal.publish(record(number))
    journal.publish(record(2))
    assert published(tmp_path) == [record(1), record(2)]


def test_the_part_of_a_line_that_a_crash_has_left_goes(tmp_path: Path) -> None:
    journal = Journal(tmp_path, PLAN)
    journal.publish(record(1))
    line = record(2).to_json()
    for length in range(1, len(line) + 1):
        (tmp_path / METRICS_FILE).write_bytes(record(1).to_json() + b"\n" + line[:length])
        journal.publish(record(2))
        assert published(tmp_path) == [record(1), record(2)]


# --- a full disk, and who may run --------------------------------------------------------------------


def test_a_full_disk_is_told_with_what_to_do_and_leaves_the_rounds_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, PLAN)
    journal.save(b"first", record(1), BEGUN)
    journal.publish(record(1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    told = r"round 2 cannot be written .* No space left on device\. Free space"
    with pytest.raises(StorageError, match=told):
        journal.save(b"second", record(2), BEGUN)
    with pytest.raises(StorageError, match=told):
        journal.publish(record(2))
    monkeypatch.undo()
    assert journal.last() == Stored(1, b"first")
    journal.publish(record(2))
    assert published(tmp_path) == [record(1), record(2)]


def test_only_one_process_holds_a_run_and_whoever_looks_does_not_disturb_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path, PLAN)
    assert not is_held(tmp_path)
    with journal.held():
        assert is_held(tmp_path)
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    assert not is_held(tmp_path / "nowhere")


def test_what_a_killed_run_was_about_to_write_is_cleared_by_the_next_that_runs_and_not_by_one_that_reads(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path, PLAN)
    (tmp_path / "rounds" / ".half").mkdir()
    assert Journal(tmp_path, PLAN).last().round == 0
    assert kept(tmp_path) == [".half"]
    with journal.held():
        assert kept(tmp_path) == []


def test_the_records_are_the_lines_and_the_last_round_that_has_none_yet(tmp_path: Path) -> None:
    assert read_records(tmp_path) == []
    journal = Journal(tmp_path, PLAN)
    journal.save(b"first", record(1), BEGUN)
    assert read_records(tmp_path) == [record(1)]
    journal.publish(record(1, accuracy=0.5))
    assert read_records(tmp_path) == [record(1, accuracy=0.5)]
    journal.save(b"second", record(2), BEGUN)
    (tmp_path / METRICS_FILE).write_bytes(record(1, accuracy=0.5).to_json() + b'\n{"round": ')
    assert read_records(tmp_path) == [record(1, accuracy=0.5), record(2)]


# --- the attempt under way ----------------------------------------------------------------------------

BEGUN = Attempt(
    round=7,
    attempt=3,
    invited=(2, 3, 4_000_000_000),
    announced=True,
)


def test_the_attempt_that_was_begun_last_is_found_also_after_a_restart(tmp_path: Path) -> None:
    assert Journal(tmp_path, PLAN).begun() is None
    for attempt in (Attempt(round=1, attempt=1, invited=(), announced=False), BEGUN):
        Journal(tmp_path, PLAN).begin(attempt)
        assert Journal(tmp_path, PLAN).begun() == attempt


def test_a_note_that_is_killed_at_any_step_leaves_the_old_one_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, seen = BEGUN.model_copy(update={"attempt": 2}), []
    for step in count(1):
        Journal(tmp_path, PLAN).begin(old)
        left = iter(range(step, 0, -1))

        def sync(descriptor: int, left: "Any" = left) -> None:
            if next(left, 0) == 1:
                raise KilledError

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", sync)
            try:
                Journal(tmp_path, PLAN).begin(BEGUN)
            except KilledError:
                seen.append(Journal(tmp_path, PLAN).begun())
            else:
                break
    assert seen == [old, BEGUN]


def test_a_note_cut_off_anywhere_or_of_another_shape_is_an_error_of_ours(tmp_path: Path) -> None:
    journal = Journal(tmp_path, PLAN)
    journal.begin(BEGUN)
    path = tmp_path / ATTEMPT_FILE
    whole = path.read_bytes()
    others = [
        b"[]",
        b"{}",
        b"3",
        b"null",
        b"[" * 200_000,
        whole.replace(b"7", b"Infinity", 1),
        whole.replace(b"7", b"-7", 1),
        b'{"round": "x"}',
    ]
    others.append(whole.replace(b'"invited":', b'"invited": 3, "other":'))
    for damaged in [*(whole[:length] for length in range(len(whole) - 1)), *others]:
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"attempt\.json is damaged"):
            journal.begun()


def test_an_attempt_that_the_disk_does_not_take_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path, PLAN)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"round 7 cannot be written .* No space left on device"):
        journal.begin(BEGUN)
    assert journal.begun() is None


# --- the sum that waits for its release ---------------------------------------------------------------


def test_a_sum_that_waits_is_found_until_its_round_is_saved(tmp_path: Path) -> None:
    journal = Journal(tmp_path, PLAN)
    assert journal.waiting(1) == b""
    journal.wait(1, b"a masked sum")
    assert Journal(tmp_path, PLAN).waiting(1) == b"a masked sum"
    assert journal.waiting(2) == b""
    journal.save(b"first", record(1), BEGUN)
    assert journal.waiting(1) == b""
    assert not list(tmp_path.glob("masked-*"))


def test_a_sum_that_the_disk_does_not_take_or_give_back_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, PLAN)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"round 3 cannot be written .* No space left on device"):
            journal.wait(3, b"a masked sum")
    assert journal.waiting(3) == b""
    (tmp_path / "masked-000003.npz").mkdir()
    with pytest.raises(StorageError, match=r"masked-000003\.npz cannot be read: Is a directory"):
        journal.waiting(3)
