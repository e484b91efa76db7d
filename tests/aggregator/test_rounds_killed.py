"""``aggregator.rounds``: a run that is killed anywhere, and resumed, ends with the integers of an unbroken one."""

import numpy as np
import pytest
from numpy.typing import NDArray

from aggregator.journal import Journal
from aggregator.records import MaskFigures, Record
from protocol.cohort import Cohort
from tests.aggregator.conftest import MakeScene, lines
from tests.aggregator.stub_grid import EVALUATE, Watch, make_kits, make_scene, small_plan


class KilledError(BaseException):
    """What no handler of errors catches."""


class Killer(Watch):
    """An observer that is the end of the process at one of its calls."""

    calls = 0
    at = 0

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise KilledError

    def phase(self, round_: int, name: str, done: int, total: int) -> None:
        super().phase(round_, name, done, total)
        self._count()

    def summed(self, round_: int, attempt: int, cohort: Cohort, aggregate: bytes) -> MaskFigures:
        figures = super().summed(round_, attempt, cohort, aggregate)
        self._count()
        return figures

    def round_done(self, record: Record) -> None:
        super().round_done(record)
        self._count()


def final_integers(watch: Watch) -> NDArray[np.int64]:
    return watch.sums[-1][3].values


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Watch:
    with pytest.MonkeyPatch.context() as patch:
        return make_scene(tmp_path_factory.mktemp("unbroken"), patch, small_plan(rounds=3), 3).run()


ROUND_EVENTS = 3 + 3 + 1 + 1
"""What the observer of three clients is told in a round: who trained, the record of the round before, …"""


@pytest.mark.slow
@pytest.mark.parametrize("at", range(1, 3 * ROUND_EVENTS + 4))
def test_a_run_that_is_killed_anywhere_ends_with_the_same_integers_as_an_unbroken_one(
    scene: MakeScene, unbroken: Watch, at: int
) -> None:
    kits = make_kits(3, small_plan(rounds=3))
    broken = scene(3, rounds=3, kits=kits)
    killer = Killer(broken.grid)
    broken.watch, killer.at = killer, at
    with pytest.raises(KilledError):
        broken.run()
    done = Journal(broken.folder, broken.plan).last().round
    resumed = scene(3, rounds=3, kits=kits)
    watch = resumed.run()
    assert [number for number, *_ in watch.sums] == list(range(done + 1, 4))
    if watch.sums:
        assert np.array_equal(final_integers(watch), final_integers(unbroken))
    assert [line["round"] for line in lines(resumed)] == [1, 2, 3]
    assert [line["cohort"] for line in lines(resumed)] == [3, 3, 3]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("round_", [1, 2, 3])
def test_a_run_that_is_killed_before_or_after_its_round_is_written_loses_at_most_that_round(
    scene: MakeScene, unbroken: Watch, monkeypatch: pytest.MonkeyPatch, round_: int, after: bool
) -> None:
    save = Journal.save

    def dying(self: Journal, aggregate: bytes, record: Record) -> None:
        if after or record.round != round_:
            save(self, aggregate, record)
        if record.round == round_:
            raise KilledError

    broken = scene(3, rounds=3)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", dying)
        with pytest.raises(KilledError):
            broken.run()
    assert Journal(broken.folder, broken.plan).last().round == (round_ if after else round_ - 1)
    resumed = scene(3, rounds=3, kits=broken.kits)
    watch = resumed.run()
    assert [number for number, *_ in watch.sums] == list(range(round_ + after, 4))
    sums = broken.watch.sums + watch.sums
    assert np.array_equal(sums[-1][3].values, final_integers(unbroken))
    assert [line["round"] for line in lines(resumed)] == [1, 2, 3]


def test_a_finished_run_that_is_resumed_is_only_scored_again(scene: MakeScene) -> None:
    s = scene(3, rounds=2)
    s.run()
    before = lines(s)
    again = scene(3, rounds=2, kits=s.kits)
    again.run()
    assert [kind for kind, *_ in again.grid.asked] == [EVALUATE]
    assert lines(again) == before


def test_a_run_that_is_killed_in_every_round_has_one_line_a_round(scene: MakeScene) -> None:
    kits = make_kits(3, small_plan(rounds=3))
    for _ in range(3):
        s = scene(3, rounds=3, kits=kits)
        killer = Killer(s.grid)
        s.watch, killer.at = killer, ROUND_EVENTS + 1
        with pytest.raises(KilledError):
            s.run()
    s = scene(3, rounds=3, kits=kits)
    s.run()
    assert [line["round"] for line in lines(s)] == [1, 2, 3]
