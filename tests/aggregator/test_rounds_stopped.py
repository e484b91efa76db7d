"""``aggregator.rounds``: a run that cannot go on stops with its reasons, and goes on when they are gone."""

import pytest

from aggregator.journal import Journal
from protocol.errors import AgreementError, QuorumError
from protocol.figures import Figures, figures_to_bytes
from tests.aggregator.conftest import BAD, MakeScene, flower, lines
from tests.aggregator.stub_grid import (
    CONTRIBUTE,
    NODES,
    REPORT,
    TRAIN,
    fails,
    sends,
    sends_plaintext,
    silent,
    unsigned,
    with_fields,
)


@pytest.mark.parametrize("kind", [TRAIN, CONTRIBUTE])
def test_a_round_that_keeps_failing_stops_the_run_with_its_reasons_and_what_to_do(scene: MakeScene, kind: str) -> None:
    s = scene(3, rounds=2, attempts=3)
    s.grid.when(kind, fails("this node's keys are missing or exposed [ref 0a1b]"), BAD, round=2)
    s.grid.when(kind, sends(unsigned), 3, round=2, attempt=2)
    with pytest.raises(QuorumError) as caught:
        s.run()
    assert str(caught.value) == (
        "round 2 failed 3 times: too few clients for a sum of at least 3 "
        "(3 x \"this node's keys are missing or exposed\", 1 x 'SignatureRefused')."
        " Look at the clients' logs, then resume the run; it goes on from the last complete round."
    )


def test_a_round_in_which_nobody_says_why_is_told_as_time_out(scene: MakeScene) -> None:
    s = scene(3, attempts=1)
    s.grid.when(CONTRIBUTE, silent, BAD)
    with pytest.raises(QuorumError, match=r"round 1 failed 1 times: .* \(no answer in time\)"):
        s.run()


def test_a_stopped_run_goes_on_from_the_last_complete_round_when_the_cause_is_gone(scene: MakeScene) -> None:
    s = scene(3, rounds=3, attempts=1)
    s.grid.when(TRAIN, silent, BAD, round=2)
    with pytest.raises(QuorumError):
        s.run()
    assert Journal(s.folder, s.plan).last().round == 1
    again = scene(3, before=s, rounds=3, attempts=1)
    watch = again.run()
    assert watch.texts == ["resuming after round 1 of 3"]
    assert [number for number, *_ in watch.sums] == [2, 3]
    assert [line["round"] for line in lines(again)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", bytes(32)), ("support", bytes(32)), ("values", 7)],
    ids=["model", "support", "values"],
)
def test_clients_that_derived_different_models_without_a_majority_stop_the_run_by_name(
    scene: MakeScene, field: str, value: bytes | int
) -> None:
    s = scene(4, rounds=2)
    s.grid.when(TRAIN, sends(with_fields(**{field: value})), 2, BAD, round=2)
    with pytest.raises(AgreementError) as caught:
        s.run()
    assert (caught.value.field, caught.value.nodes) == (field, NODES[:4])
    assert f"nodes 2, 3, 5 and 8 report different values of the {field}" in str(caught.value)
    assert Journal(s.folder, s.plan).last().round == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", bytes(32)), ("support", bytes(32)), ("values", 7)],
    ids=["model", "support", "values"],
)
def test_a_client_that_derived_another_model_is_refused_by_name_and_the_others_go_on(
    scene: MakeScene, field: str, value: bytes | int
) -> None:
    s = scene(4, rounds=2)
    s.grid.when(TRAIN, sends(with_fields(**{field: value})), BAD, round=2)
    watch = s.run()
    assert [record.cohort for record in watch.records] == [4, 3]
    assert watch.records[1].refusals == {"PeerMismatch": 1}
    assert Journal(s.folder, s.plan).last().round == 2


def test_a_client_that_reports_another_final_model_is_refused_and_does_not_count(scene: MakeScene) -> None:
    s = scene(3)
    s.grid.when(REPORT, lambda ask: ask.reply(ask.honest() | {"model": bytes(32)}), BAD)
    watch = s.run()
    assert watch.records[0].accuracy == 0.8
    assert [(node, type(error).__name__) for _, node, error in watch.refusals] == [(flower(BAD)[0], "PeerMismatch")]


def test_a_client_that_reports_other_figures_is_refused_and_does_not_count(scene: MakeScene) -> None:
    s = scene(3)
    lie = figures_to_bytes(Figures(correct=1, tested=1))
    s.grid.when(REPORT, lambda ask: ask.reply(ask.honest() | {"figures": lie}), BAD)
    watch = s.run()
    assert watch.records[0].accuracy == 0.8
    assert [(node, type(error).__name__) for _, node, error in watch.refusals] == [(flower(BAD)[0], "PeerMismatch")]


def test_clients_that_report_final_models_without_a_majority_stop_the_run_by_name(scene: MakeScene) -> None:
    s = scene(4)
    s.grid.when(REPORT, sends(lambda ask, frame: bytes(32)), 2, BAD)
    with pytest.raises(AgreementError) as caught:
        s.run()
    assert caught.value.nodes == tuple(sorted(flower(*NODES[:4])))
    assert lines(s) == []


def test_a_final_model_is_scored_by_those_who_answer(scene: MakeScene) -> None:
    s = scene(5)
    s.grid.when(REPORT, fails("this node has no usable data"), 2)
    s.grid.when(REPORT, sends_plaintext, 3)
    s.grid.when(REPORT, silent, 5)
    watch = s.run()
    assert watch.records[0].accuracy == 0.8
    assert [phase for phase in watch.phases if phase[1] == "report"] == [(1, "report", n, 5) for n in (1, 2)]


def test_a_final_model_that_nobody_scores_stops_the_run_which_asks_again_when_resumed(scene: MakeScene) -> None:
    s = scene(3)
    s.grid.when(REPORT, fails("this node has no usable data [ref 1]"), 2, 3, 5)
    with pytest.raises(QuorumError, match=r"\(3 x 'this node has no usable data'\); resume the run"):
        s.run()
    again = scene(3, before=s)
    again.run()
    assert [kind for kind, *_ in again.grid.asked] == [REPORT]
    assert [(line["round"], line["accuracy"]) for line in lines(again)] == [(1, 0.8)]
