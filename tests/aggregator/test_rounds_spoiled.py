"""``aggregator.rounds``: whoever spoils a sum costs one attempt; its group is named and the others go on."""

import pytest
from flwr.app import Message

from aggregator.journal import Journal
from protocol.errors import MalformedMessage, QuorumError, Spoiled
from tests import factories
from tests.aggregator.conftest import BAD, MakeScene, asked
from tests.aggregator.stub_grid import (
    CONTRIBUTE,
    NODES,
    RELEASE,
    REPORT,
    TRAIN,
    Ask,
    Watch,
    refuses_the_sum,
    silent,
    spoils,
)
from tests.aggregator.test_rounds_dealing import attends_with


def named(watch: Watch) -> list[str]:
    """What was said of spoilers."""
    return [text for text in watch.texts if "one of them spoiled their sum" in text]


def companions(watch: Watch, nth: int = 0) -> frozenset[int]:
    """The group whose sum was none, of the nth round that was opened in groups."""
    total = [total for _, total, _ in watch.sums if len(total.parts) > 1][nth]
    return next(part for part in total.sets if BAD in part)


def test_a_spoiled_sum_is_asked_again_in_groups_and_the_good_ones_go_on(scene: MakeScene) -> None:
    s = scene(10, rounds=3)
    s.grid.when(CONTRIBUTE, spoils, BAD, round=1)
    watch = s.run()
    assert [(round_, total.nodes) for round_, total in watch.spoiled] == [(1, frozenset(NODES))]
    (first, *_) = watch.sums
    assert first[0] == 1
    assert first[1].nodes == frozenset(NODES)
    assert sorted(map(len, first[1].sets)) == [3, 3, 4]
    assert first[2].told.spoiled.bit_count() == 1
    assert BAD in companions(watch)
    assert first[2].clients == 10 - len(companions(watch))
    (text,) = named(watch)
    assert text.startswith("round 1: left out of round 2: ")
    assert all(f"node-{node}" in text for node in companions(watch))
    assert [record.round for record in watch.records] == [1, 2, 3]


def test_a_client_that_spoils_every_sum_costs_one_attempt_a_round_and_never_the_run(scene: MakeScene) -> None:
    s = scene(10, rounds=3)
    s.grid.when(CONTRIBUTE, spoils, BAD)
    watch = s.run()
    assert [record.round for record in watch.records] == [1, 2, 3]
    assert all(BAD not in total.nodes or len(total.parts) > 1 for _, total, _ in watch.sums)
    assert max(record.attempts for record in watch.records) <= 2


@pytest.mark.parametrize("after", [False, True], ids=["the last round", "the final model's figures"])
def test_the_last_sums_are_asked_again_as_others_are(scene: MakeScene, after: bool) -> None:
    s = scene(6, rounds=2)
    s.grid.when(CONTRIBUTE, spoils, BAD, round=2 + after)
    watch = s.run()
    assert [(round_, total.nodes) for round_, total in watch.spoiled] == [(2 + after, frozenset(NODES[:6]))]
    assert len(named(watch)) == 1
    assert [record.round for record in watch.records] == [1, 2]
    assert all(record.accuracy is not None for record in watch.records)
    assert len(asked(s, REPORT, after=True)) == 1 + after


def test_a_cohort_that_cannot_be_divided_is_asked_once_more_whole(scene: MakeScene) -> None:
    s = scene(5, rounds=2)
    s.grid.when(CONTRIBUTE, spoils, BAD, round=1, attempt=1)
    watch = s.run()
    assert asked(s, CONTRIBUTE)[:2] == [(1, 1, NODES[:5]), (1, 2, NODES[:5])]
    assert [len(total.parts) for _, total, _ in watch.sums] == [1, 1]
    assert watch.texts == [
        "round 1: 5 clients refuse its sum, which is spoiled; asking again, in groups where it can be divided"
    ]


def test_one_that_spoils_it_again_stops_the_run_which_names_its_members(scene: MakeScene) -> None:
    s = scene(5, rounds=2)
    s.grid.when(CONTRIBUTE, spoils, BAD, round=1)
    with pytest.raises(QuorumError, match=r"One of node-2, node-3, node-5, node-8, node-13 spoils it"):
        s.run()
    s.grid._rules.clear()
    watch = s.run()  # it is mended, and the operator resumes
    assert [record.round for record in watch.records] == [1, 2]


def test_where_every_group_has_a_spoiler_the_run_stops(scene: MakeScene) -> None:
    s = scene(6, rounds=2)
    s.grid.when(CONTRIBUTE, spoils, *NODES[:6], round=1)
    with pytest.raises(QuorumError, match="spoils it"):
        s.run()


@pytest.mark.parametrize("message", [TRAIN, CONTRIBUTE, RELEASE])
def test_who_is_lost_while_the_groups_are_asked_is_done_without(scene: MakeScene, message: str) -> None:
    s = scene(10, rounds=2)
    s.grid.when(CONTRIBUTE, spoils, BAD, round=1, attempt=1)
    s.grid.when(message, silent, 21, round=1, attempt=2)
    watch = s.run()
    assert [record.round for record in watch.records] == [1, 2]
    first = watch.sums[0][1]
    assert (21 in first.nodes) == (message == RELEASE)
    assert len(frozenset(NODES) - first.nodes) in {0, 3, 4}


def test_the_word_of_a_few_that_a_sum_is_none_is_not_taken(scene: MakeScene) -> None:
    s = scene(6, rounds=2)
    s.grid.when(TRAIN, refuses_the_sum, BAD, 8, round=2)
    watch = s.run()
    assert watch.spoiled == []
    assert asked(s, CONTRIBUTE) == [(1, 1, NODES[:6]), (2, 1, (2, 3, 13, 21))]
    assert "2 of 6 clients did not train (2 x 'the sum is spoiled')" in watch.texts[0]


def test_the_word_of_one_about_the_groups_is_not_taken(scene: MakeScene) -> None:
    s = scene(10, rounds=2)
    s.grid.when(CONTRIBUTE, spoils, BAD, round=1, attempt=1)

    attends = attends_with(spoiled=2)

    def lies(ask: Ask) -> Message:
        try:
            return attends(ask) or ask.answer()
        except Spoiled:
            return ask.answer()

    s.grid.when(TRAIN, lies, 13, round=2)
    watch = s.run()
    assert named(watch) == []
    assert [record.cohort for record in watch.records] == [10, 9]


def test_what_the_first_attempt_cost_is_in_the_rounds_figures(scene: MakeScene) -> None:
    s = scene(6, rounds=1)
    s.grid.when(CONTRIBUTE, spoils, BAD, round=1, attempt=1)
    (record,) = s.run().records
    assert record.attempts == 2
    assert record.values == 2 * 6 * 26
    assert record.uplink_bytes > 1.9 * record.value_bytes / 2


def test_an_aggregator_that_starts_again_asks_for_the_groups(scene: MakeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    s = scene(10, rounds=2)
    s.grid.when(CONTRIBUTE, spoils, BAD, round=1, attempt=1)

    def dies(journal: Journal, *args: object) -> None:
        raise KeyboardInterrupt

    reopen = Journal.reopen

    def reopened(journal: Journal, attempt: object) -> None:
        reopen(journal, attempt)  # type: ignore[arg-type]
        dies(journal)

    monkeypatch.setattr(Journal, "reopen", reopened)
    with pytest.raises(KeyboardInterrupt):
        s.run()
    monkeypatch.undo()
    again = scene(10, before=s, rounds=2)
    watch = again.run()
    assert watch.sums[0][1].parts[0].nodes != frozenset(NODES)
    assert [record.round for record in watch.records] == [1, 2]
    assert Journal(again.folder, again.plan, factories.RUN).begun() is not None


def test_a_report_with_more_bits_than_there_are_sums_is_refused_in_few_words(scene: MakeScene) -> None:
    s = scene(4, rounds=1)
    s.grid.when(REPORT, lambda ask: ask.reply(ask.honest() | {"spoiled": b"\xff" * 100_000}), BAD)
    watch = s.run()
    ((_, _, error),) = watch.refusals
    assert isinstance(error, MalformedMessage)
    assert len(str(error)) < 100
    assert [record.accuracy for record in watch.records] == [0.8]
