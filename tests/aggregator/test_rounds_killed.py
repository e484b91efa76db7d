"""``aggregator.rounds``: a run that is killed anywhere, and resumed, ends with the integers of an unbroken one."""

from itertools import count
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from numpy.typing import NDArray

from aggregator.journal import Attempt, Journal
from aggregator.records import MaskFigures, Record
from aggregator.summation import MaskedSum
from protocol.call import Action
from protocol.errors import CheckpointError, LedgerLost, QuorumError
from protocol.files import replace_file
from protocol.messages import to_error
from tests import factories
from tests.aggregator.conftest import BAD, MakeScene, asked, lines
from tests.aggregator.stub_grid import (
    CONTRIBUTE,
    RELEASE,
    REPORT,
    TRAIN,
    Ask,
    Scene,
    Watch,
    make_scene,
    silent,
    small_plan,
)

pytestmark = pytest.mark.slow


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

    def summed(self, round_: int, total: MaskedSum, aggregate: bytes) -> MaskFigures:
        figures = super().summed(round_, total, aggregate)
        self._count()
        return figures

    def round_done(self, record: Record) -> None:
        super().round_done(record)
        self._count()


def final_integers(watch: Watch) -> NDArray[np.int64]:
    return watch.sums[-1][2].values


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Watch:
    with pytest.MonkeyPatch.context() as patch:
        return make_scene(tmp_path_factory.mktemp("unbroken"), patch, small_plan(rounds=3), 3).run()


ROUND_EVENTS = 3 + 3 + 3 + 1
"""What the observer of three clients is told in a round: who has answered each of its messages, and its sum."""
EVENTS = 4 * ROUND_EVENTS + 3 + 3
"""In three rounds and the one after them, with the reports and a record of each round."""


@pytest.mark.parametrize("at", range(1, EVENTS + 1))
def test_a_run_that_is_killed_anywhere_ends_with_the_same_integers_as_an_unbroken_one(
    scene: MakeScene, unbroken: Watch, at: int
) -> None:
    broken = scene(3, rounds=3)
    killer = Killer(broken.grid)
    broken.watch, killer.at = killer, at
    with pytest.raises(KilledError):
        broken.run()
    done = Journal(broken.folder, broken.plan).last().round
    resumed = scene(3, rounds=3, before=broken)
    watch = resumed.run()
    assert [number for number, *_ in watch.sums] == list(range(done + 1, 4))
    assert (watch.refusals, watch.failures) == ([], [])
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

    def dying(self: Journal, aggregate: bytes, record: Record, attempt: Attempt) -> None:
        if after or record.round != round_:
            save(self, aggregate, record, attempt)
        if record.round == round_:
            raise KilledError

    broken = scene(3, rounds=3)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", dying)
        with pytest.raises(KilledError):
            broken.run()
    assert Journal(broken.folder, broken.plan).last().round == (round_ if after else round_ - 1)
    resumed = scene(3, rounds=3, before=broken)
    watch = resumed.run()
    assert [number for number, *_ in watch.sums] == list(range(round_ + after, 4))
    sums = broken.watch.sums + watch.sums
    assert np.array_equal(sums[-1][2].values, final_integers(unbroken))
    assert [line["round"] for line in lines(resumed)] == [1, 2, 3]


def test_a_finished_run_that_is_resumed_only_asks_for_reports_again(scene: MakeScene) -> None:
    s = scene(3, rounds=2)
    s.run()
    before = lines(s)
    again = scene(3, rounds=2, before=s)
    again.run()
    assert [kind for kind, *_ in again.grid.asked] == [REPORT]
    assert lines(again) == before


def test_a_run_that_is_killed_in_every_round_has_one_line_a_round(scene: MakeScene) -> None:
    s: Scene | None = None
    for _ in range(3):
        s = scene(3, rounds=3, before=s)
        killer = Killer(s.grid)
        s.watch, killer.at = killer, ROUND_EVENTS + 1
        with pytest.raises(KilledError):
            s.run()
    s = scene(3, rounds=3, before=s)
    s.run()
    assert [line["round"] for line in lines(s)] == [1, 2, 3]


# --- what clients hold it to ---------------------------------------------------------------------------


def kill_at_write(patch: pytest.MonkeyPatch, at: int, after: bool) -> None:
    """Let the process end at its ``at``-th write to the journal, before or after it is done."""
    number = count(1)

    def dying(path: Path, data: bytes, mode: int = 0o644) -> None:
        now = next(number)
        if now == at and not after:
            raise KilledError
        replace_file(path, data, mode)
        if now == at:
            raise KilledError

    for module in ("aggregator.journal", "protocol.documents"):
        patch.setattr(f"{module}.replace_file", dying)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("lost", [None, TRAIN, CONTRIBUTE, RELEASE])
@pytest.mark.parametrize("at", range(1, 12))
def test_a_run_that_is_killed_at_any_write_asks_nothing_that_clients_refuse(
    scene: MakeScene, monkeypatch: pytest.MonkeyPatch, at: int, lost: Action | None, after: bool
) -> None:
    """Also where a client is lost at one of the messages and never comes back: a refusal would end this test."""
    broken = scene(4, rounds=2)
    order = [TRAIN, CONTRIBUTE, RELEASE]
    for kind in order[order.index(lost) :] if lost else ():
        broken.grid.when(kind, silent, BAD)
    with monkeypatch.context() as patch:
        kill_at_write(patch, at, after)
        with pytest.raises(KilledError):
            broken.run()
    resumed = scene(4, rounds=2, before=broken)
    for kind in order if lost else ():
        resumed.grid.when(kind, silent, BAD)
    watch = resumed.run()
    assert (watch.refusals, watch.failures) == ([], [])
    assert [line["round"] for line in lines(resumed)] == [1, 2]
    for _, total, _ in broken.watch.sums + watch.sums:
        assert total.nodes >= {2, 3, 8}


def test_an_attempt_that_was_under_way_is_followed_by_another_in_which_nobody_trains_again(scene: MakeScene) -> None:
    broken = scene(4)
    killer = Killer(broken.grid)
    broken.watch, killer.at = killer, 4 + 2
    with pytest.raises(KilledError):
        broken.run()
    trained = {c.kit.node: c.pending.values.tolist() for c in broken.grid.clients.values() if c.pending}
    resumed, sent = scene(4, before=broken), {}

    def note(ask: Ask) -> Message:
        assert ask.client.pending is not None
        sent[ask.node] = ask.client.pending.values.tolist()
        return ask.reply(ask.honest())

    resumed.grid.when(CONTRIBUTE, note, 2, 3, 5, 8, round=1)
    resumed.run()
    assert [(kind, attempt) for kind, _, attempt, _ in resumed.grid.asked] == [
        *((kind, 2) for kind in (TRAIN, CONTRIBUTE, RELEASE)),
        *((kind, 1) for kind in (TRAIN, CONTRIBUTE, RELEASE, REPORT)),
    ]
    assert sent == trained


def test_a_sum_whose_release_was_asked_for_is_released_after_a_restart_and_nothing_else_is_asked(
    scene: MakeScene,
) -> None:
    broken = scene(5)
    killer = Killer(broken.grid)
    broken.grid.when(CONTRIBUTE, silent, BAD)
    broken.watch, killer.at = killer, 5 + 4 + 2
    with pytest.raises(KilledError):
        broken.run()
    resumed = scene(5, before=broken)
    watch = resumed.run()
    assert [kind for kind, *_ in resumed.grid.asked] == [RELEASE, TRAIN, CONTRIBUTE, RELEASE, REPORT]
    assert watch.sums[0][1].nodes == {2, 3, 8, 13}
    assert not list(resumed.folder.glob("masked-*")), "a sum that is released waits no more"


def test_attempts_are_counted_anew_after_a_restart_but_numbered_on(scene: MakeScene) -> None:
    s = scene(3, attempts=2)
    s.grid.when(TRAIN, silent, BAD)
    for start in range(3):
        again = scene(3, attempts=2, before=s)
        again.grid.when(TRAIN, silent, BAD)
        with pytest.raises(QuorumError, match="round 1 failed 2 times"):
            again.run()
        assert [attempt for _, attempt, _ in asked(again, TRAIN)] == [2 * start + 1, 2 * start + 2]


def test_a_note_of_another_round_does_not_count(scene: MakeScene) -> None:
    s = scene(3, rounds=2)
    Journal(s.folder, s.plan, factories.RUN).begin(Attempt(round=7, attempt=7, invited=(3, 5, 8), announced=True))
    s.run()
    assert [attempt for _, attempt, _ in asked(s, CONTRIBUTE)] == [1, 1]


def test_a_sum_that_waits_and_is_damaged_stops_the_run_and_is_named(scene: MakeScene) -> None:
    s = scene(3)
    Journal(s.folder, s.plan, factories.RUN).wait(1, b"no sum")
    with pytest.raises(CheckpointError, match="the sum that waits to be released is damaged"):
        s.run()


# --- nodes that sit a round out ------------------------------------------------------------------------


def sits_out(ask: Ask) -> Message:
    return Message(to_error(LedgerLost("its ledger was lost"), "0a1b"), reply_to=ask.message)


def test_in_place_of_nodes_that_sit_a_round_out_others_are_asked_and_no_attempt_is_lost(scene: MakeScene) -> None:
    first = scene(10, "other", fraction=0.3).run().sums[0][1].nodes
    s = scene(10, fraction=0.3, attempts=1)
    s.grid.when(TRAIN, sits_out, *first)
    watch = s.run()
    asked_in = [set(nodes) for _, _, nodes in asked(s, TRAIN)]
    assert asked_in[0] == first
    assert len(asked_in) == 2
    assert not asked_in[1] & first
    assert watch.sums[0][1].nodes == asked_in[1]


def test_a_round_that_too_many_sit_out_is_given_up(scene: MakeScene) -> None:
    s = scene(3, attempts=2)
    s.grid.when(TRAIN, sits_out, BAD)
    with pytest.raises(
        QuorumError, match=r"failed 2 times: .* x \"this node's ledger was lost; it joins with the next"
    ):
        s.run()
