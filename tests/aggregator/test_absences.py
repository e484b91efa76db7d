"""``aggregator.absences``: who is missing, or may have spoiled a sum, is left out for a while, and longer each time."""

from pathlib import Path

import pytest
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st

from aggregator.absences import ABSENCES_FILE, ABSENT, SPOILED, Absences, read_absences, told
from protocol.errors import CheckpointError, StorageError
from tests import factories
from tests.aggregator.conftest import BAD, MakeScene, asked, flower
from tests.aggregator.stub_grid import CONTRIBUTE, NODES, RELEASE, TRAIN, Ask, silent

ROSTER = factories.roster(NODES[:5])
ALL = frozenset(NODES[:5])
NOBODY: frozenset[int] = frozenset()


def missing(folder: Path, rounds: int, node: int = BAD) -> Absences:
    """A node that is invited to so many rounds and is in none of their sums."""
    absences = Absences(folder, ROSTER)
    for round_ in range(1, rounds + 1):
        absences.summed(round_, ALL, ALL - {node})
    return absences


def test_a_node_that_is_missing_once_is_not_left_out(tmp_path: Path) -> None:
    assert missing(tmp_path, 1).left_out(2, ABSENT) == NOBODY


def test_one_that_is_missing_twice_is_left_out_of_the_next_round_alone(tmp_path: Path) -> None:
    absences = missing(tmp_path, 2)
    assert absences.left_out(3, ABSENT) == {BAD}
    assert absences.left_out(4, ABSENT) == NOBODY
    assert absences.left_out(3, SPOILED) == NOBODY


@given(st.integers(2, 40))
def test_it_is_left_out_twice_as_long_each_time_but_never_longer_than_64_rounds(
    tmp_path_factory: pytest.TempPathFactory, times: int
) -> None:
    absences = missing(tmp_path_factory.mktemp("run"), times)
    long = min(64, 1 << (times - 2))
    assert absences.left_out(times + long, ABSENT) == {BAD}
    assert absences.left_out(times + long + 1, ABSENT) == NOBODY


def test_a_node_that_is_in_a_sum_again_is_forgiven(tmp_path: Path) -> None:
    absences = missing(tmp_path, 2)
    absences.summed(4, ALL, ALL)
    assert read_absences(tmp_path) == {}


def test_one_whose_sum_was_spoiled_is_forgiven_by_a_good_one_alone(tmp_path: Path) -> None:
    absences = Absences(tmp_path, ROSTER)
    absences.judged(1, ALL - {BAD, 8, 13}, frozenset({BAD, 8, 13}))
    absences.summed(3, ALL, ALL)
    assert read_absences(tmp_path).keys() == {"node-5", "node-8", "node-13"}
    absences.judged(3, ALL - {BAD}, frozenset({BAD}))
    assert {name: one.times for name, one in read_absences(tmp_path).items()} == {"node-5": 2}


def test_those_whose_sum_was_spoiled_are_left_out_from_the_first_time_on(tmp_path: Path) -> None:
    absences = Absences(tmp_path, ROSTER)
    news = absences.judged(4, frozenset({2, 3}), ALL - {2, 3})
    assert absences.left_out(5, SPOILED) == ALL - {2, 3}
    assert absences.left_out(6, SPOILED) == NOBODY
    assert list(told(4, news)) == [
        "round 4: left out of round 5: node-5, node-8, node-13 (one of them spoiled their sum)"
    ]
    news = absences.judged(6, ALL - {BAD, 8, 13}, frozenset({BAD, 8, 13}))
    assert list(told(6, news)) == [
        "round 6: left out of rounds 7 to 8: node-5, node-8, node-13 (one of them spoiled their sum)"
    ]


def test_a_round_is_counted_once_whoever_counts_it(tmp_path: Path) -> None:
    missing(tmp_path, 2)
    before = (tmp_path / ABSENCES_FILE).read_bytes()
    again = Absences(tmp_path, ROSTER)
    assert again.summed(2, ALL, ALL - {BAD}) == {}
    assert (tmp_path / ABSENCES_FILE).read_bytes() == before
    assert again.left_out(3, ABSENT) == {BAD}


def test_a_node_that_was_not_invited_is_not_missing(tmp_path: Path) -> None:
    absences = Absences(tmp_path, ROSTER)
    for round_ in (1, 2, 3):
        absences.summed(round_, ALL - {BAD}, ALL - {BAD})
    assert read_absences(tmp_path) == {}


def test_a_damaged_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / ABSENCES_FILE).write_text("{")
    with pytest.raises(CheckpointError, match="may be removed"):
        Absences(tmp_path, ROSTER)


def test_where_the_disk_does_not_take_it_nothing_is_counted(tmp_path: Path) -> None:
    absences = Absences(tmp_path / "gone", ROSTER)
    with pytest.raises(StorageError, match="Free space"):
        absences.judged(1, NOBODY, ALL)
    assert absences.left_out(2, SPOILED) == NOBODY


# --- in a run ------------------------------------------------------------------------------------------


def test_a_node_that_attends_and_never_contributes_is_asked_less_and_less(scene: MakeScene) -> None:
    s = scene(5, rounds=9)
    s.grid.when(CONTRIBUTE, silent, BAD)
    watch = s.run()
    invited = [round_ for round_, _, nodes in asked(s, TRAIN) if BAD in nodes]
    assert invited == [1, 2, 4, 7]
    assert [record.cohort for record in watch.records] == [4] * 9
    assert "round 2: left out of round 3: node-5 (missing from one sum after the other)" in watch.texts
    assert "round 4: left out of rounds 5 to 6: node-5 (missing from one sum after the other)" in watch.texts


def test_where_too_few_are_left_without_it_it_is_asked_all_the_same(scene: MakeScene) -> None:
    s = scene(4, rounds=3)

    def leaves(ask: Ask) -> Message:
        ask.grid.online.discard(*flower(8))
        return ask.answer()

    for round_ in (1, 2):
        s.grid.when(CONTRIBUTE, silent, BAD, round=round_)
    s.grid.when(RELEASE, leaves, 8, round=2)
    watch = s.run()
    assert "round 2: left out of round 3: node-5 (missing from one sum after the other)" in watch.texts
    assert asked(s, TRAIN)[-1] == (3, 1, (2, 3, 5))
    assert [record.cohort for record in watch.records] == [3, 3, 3]
