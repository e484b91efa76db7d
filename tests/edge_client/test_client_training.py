"""``edge_client.client``: training and scoring, the same again whoever restarts, or refused."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from edge_client.client import Client
from edge_client.learning.network import build_network, insert
from edge_client.learning.training import evaluate
from edge_client.round import model_digest
from edge_client.settings import NodeSettings
from edge_client.state import load_pending, save_pending
from edge_client.sums import open_sum, state_after
from protocol.attendance import decode_attendance
from protocol.call import Call
from protocol.errors import (
    CohortRefused,
    DataError,
    Duplicate,
    LedgerLost,
    MalformedMessage,
    PeerError,
    PeerMismatch,
    TrainingError,
)
from protocol.figures import NOTHING, UNIT
from protocol.openings import Opening
from tests.edge_client import tiny
from tests.edge_client.federation import (
    FIRST,
    NODES,
    PLAN,
    RUN,
    Federation,
    Played,
    Stage,
    add_up,
    announcement,
    cohort_of,
    federation,
    figures_of,
    invitation,
    one_client,
    open_up,
    play_round,
    release_of,
    reports,
)

# --- training -----------------------------------------------------------------------------------


def test_the_first_round_begins_with_the_initial_model_and_counts_what_it_holds(
    played: tuple[Federation, Mapping[int, Client], Played],
) -> None:
    fed, _, result = played
    network = build_network(PLAN, (5,), 4, RUN)
    sizes = []
    for node, answer in result.trained.items():
        said = decode_attendance(answer.frames["attendance"], fed.roster)
        assert (said.run, said.round, said.attempt, said.node) == (RUN, 1, 1, node)
        assert said.values == tiny.PARAMETERS
        assert said.model == model_digest(network.initial, FIRST, fed.kits[node])
        assert said.figures == NOTHING
        sizes.append(said.samples)
    assert sorted(sizes) == [16, 24, 32, 40]


def test_the_figures_of_a_sum_are_those_of_the_model_that_its_round_began_with_on_all_test_rows(
    ended: tuple[Federation, Mapping[int, Client], Played],
) -> None:
    fed, clients, result = ended
    network, data = build_network(fed.plan, (5,), 4, RUN), tiny.data()
    initial = evaluate(network.model, data.test_x, data.test_y)
    opened = open_sum(result.aggregate, RUN, 1, fed.kits[NODES[0]], fed.plan, network.layout)
    insert(network, state_after(result.aggregate, RUN, 1, fed.kits[NODES[0]], fed.plan, network).vector)
    after = evaluate(network.model, data.test_x, data.test_y)
    (told,) = {figures_of(answer) for answer in reports(clients, fed, result.aggregate).values()}
    for score, said in ((initial, opened.told.figures), (after, told)):
        assert (said.tested, said.correct) == (score.tested, score.correct)
        assert said.test_loss * UNIT == pytest.approx(score.loss, rel=1e-4)
        assert (said.parameters, said.kept) == (4 * 64, 4 * 64)
    assert score.tested == 26
    assert opened.told.figures.loss > 0
    assert told.loss == 0, "after the last round nothing is trained"
    assert after.loss < initial.loss


def test_nodes_agree_on_the_model_that_they_report_on(
    ended: tuple[Federation, Mapping[int, Client], Played],
) -> None:
    fed, clients, result = ended
    digests = {answer.frames["model"] for answer in reports(clients, fed, result.aggregate).values()}
    network = build_network(fed.plan, (5,), 4, RUN)
    state = state_after(result.aggregate, RUN, 1, fed.kits[NODES[0]], fed.plan, network)
    assert digests == {model_digest(state, Call(RUN, 2, 1), fed.kits[NODES[0]])}


def test_a_report_changes_nothing_on_disk(
    ended: tuple[Federation, Mapping[int, Client], Played], tmp_path: Path
) -> None:
    fed, clients, result = ended
    scores = play_round(clients, fed, 2, result.aggregate).aggregate
    client = one_client(tmp_path, fed, fed.plan)
    client.report(Call(RUN, 2, 1), {"aggregate": result.aggregate, "scores": scores})
    assert not (tmp_path / "kit" / "state").exists()


def test_the_sum_of_scores_trains_nothing_and_sends_no_value(
    ended: tuple[Federation, Mapping[int, Client], Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    fed, clients, result = ended
    monkeypatch.delattr("edge_client.client.local_update")
    played = play_round(clients, fed, 2, result.aggregate)
    said = [decode_attendance(answer.frames["attendance"], fed.roster) for answer in played.trained.values()]
    assert {(one.values, one.votes) for one in said} == {(0, 0)}
    opened = open_sum(
        played.aggregate, RUN, 2, fed.kits[NODES[0]], fed.plan, build_network(fed.plan, (5,), 4, RUN).layout
    )
    assert (opened.values.size, opened.votes.size, opened.told.figures.tested) == (0, 0, 26)


def test_training_repeats_bit_by_bit_whatever_the_attempt_and_follows_the_round_and_the_node(tmp_path: Path) -> None:
    fed = federation(PLAN)
    trained = []
    for place, (node, attempt) in enumerate(((2, 1), (2, 1), (2, 2), (3, 1))):
        folder = tmp_path / str(place)
        fed.clients(folder)[node].train(Call(RUN, 1, attempt), invitation(fed.kits))
        trained.append(load_pending(folder / str(node) / "state").values.tobytes())
    assert trained[0] == trained[1] == trained[2] != trained[3]


def test_asked_again_in_the_same_attempt_a_client_answers_as_before_and_does_not_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = federation(PLAN)
    client = fed.clients(tmp_path)[NODES[0]]
    first = client.train(FIRST, invitation(fed.kits))
    monkeypatch.delattr("edge_client.client.local_update")
    assert client.train(FIRST, invitation(fed.kits)) == first
    with pytest.raises(PeerMismatch, match="invited"):
        client.train(FIRST, invitation(NODES[:3]))


def test_in_another_attempt_a_client_answers_with_the_same_update_and_new_keys_and_does_not_train(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_pending(stage.state(2))
    monkeypatch.delattr("edge_client.client.local_update")
    again = stage.clients[2].train(Call(RUN, 1, 2), invitation(NODES))
    after = load_pending(stage.state(2))
    assert after.values.tolist() == before.values.tolist()
    assert after.measured == before.measured
    assert set(again.frames) == {"attendance", "shares"}
    one, other = (decode_attendance(each.attendance, stage.fed.roster) for each in (before, after))
    assert replace(other, attempt=1, exchange=one.exchange, seed=one.seed, dealt=one.dealt) == one
    assert len({one.exchange, other.exchange, one.seed, other.seed, one.dealt, other.dealt}) == 6
    assert after.secrets != before.secrets


def test_an_attempt_of_another_round_or_state_is_trained_for(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("edge_client.client.local_update")
    with pytest.raises(NameError):
        stage.clients[2].train(Call(bytes(16), 1, 1), invitation(NODES))
    save_pending(stage.state(2), replace(load_pending(stage.state(2)), state=bytes(32)))
    with pytest.raises(NameError):
        stage.clients[2].train(Call(RUN, 1, 2), invitation(NODES))


def test_attempts_of_a_round_must_rise(tmp_path: Path) -> None:
    fed = federation(PLAN)
    client = fed.clients(tmp_path)[NODES[0]]
    client.train(Call(RUN, 1, 2), invitation(fed.kits))
    with pytest.raises(Duplicate, match="node 2 has already sent its answers up to attempt 2 of round 1"):
        client.train(FIRST, invitation(fed.kits))
    client.train(Call(RUN, 1, 3), invitation(fed.kits))
    with pytest.raises(Duplicate):
        client.train(Call(RUN, 1, 2), invitation(fed.kits))


@pytest.mark.parametrize(
    ("invited", "error", "text"),
    [
        (NODES[1:], CohortRefused, "asked to train, but not invited"),
        (NODES[:2], CohortRefused, "2 are invited; the plan allows 3 to 6"),
        ((*NODES[:3], 34), PeerMismatch, "nodes of the roster, the peer's is node 34"),
        ((), CohortRefused, "not invited"),
    ],
)
def test_an_invitation_that_could_come_to_no_sum_is_refused_before_anybody_trains(
    invited: tuple[int, ...], error: type[PeerError], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = federation(replace(PLAN, partition="iid"), nodes=6).clients(tmp_path)[NODES[0]]
    monkeypatch.delattr("edge_client.client.local_update")
    with pytest.raises(error, match=text):
        client.train(FIRST, invitation(invited))


def test_a_round_that_was_begun_with_some_nodes_is_not_begun_again_with_others(stage: Stage) -> None:
    """A quorum of the others could open a second sum of which none of the first would know."""
    stage.clients[2].contribute(FIRST, stage.announcement(2, *NODES))
    with pytest.raises(CohortRefused, match=r"\(nodes 2, 3, 5, 8, 13, 21\) have to be invited again"):
        stage.clients[2].train(Call(RUN, 1, 2), invitation(NODES[:4]))
    assert stage.clients[2].train(Call(RUN, 1, 2), invitation(NODES)).frames["attendance"]


def test_an_attendance_says_what_its_sender_has_helped_to_open_from_the_same_state(stage: Stage) -> None:
    everybody = frozenset(NODES)
    assert stage.cohort(*NODES).memory == frozenset()
    stage.clients[2].contribute(FIRST, stage.announcement(2, *NODES))
    told = [
        decode_attendance(
            stage.clients[node].train(Call(RUN, 1, 2), invitation(NODES)).frames["attendance"], stage.fed.roster
        )
        for node in (2, 3)
    ]
    assert [attendance.memory for attendance in told] == [{Opening(everybody, frozenset())}, frozenset()]


def test_the_plan_has_no_more_rounds_than_it_says(stage: Stage) -> None:
    with pytest.raises(PeerMismatch, match="round: ours is at most 4, the peer's is 5"):
        stage.clients[2].train(Call(RUN, stage.fed.plan.rounds + 2, 1), invitation(NODES))


def test_another_run_or_round_is_trained_for_whatever_waits(stage: Stage) -> None:
    client = stage.clients[2]
    client.train(Call(RUN, 1, 5), invitation(NODES))
    fresh = client.train(Call(bytes(16), 1, 1), invitation(NODES)).frames["attendance"]
    said = decode_attendance(fresh, stage.fed.roster)
    assert (said.run, said.attempt) == (bytes(16), 1)


@pytest.mark.parametrize("what", ["nothing readable", "another signature", "another node's"])
def test_what_waits_but_could_never_be_sent_does_not_stop_the_training(what: str, stage: Stage) -> None:
    """A folder of state outlives a damaged disk and a node that was provisioned anew."""
    if what == "nothing readable":
        (stage.state(2) / "pending.npz").write_bytes(b"damaged")
    else:
        waiting = load_pending(stage.state(3 if what == "another node's" else 2))
        flip = what == "another signature"
        signature = bytes([waiting.attendance[-1] ^ flip])
        save_pending(stage.state(2), replace(waiting, attendance=waiting.attendance[:-1] + signature))
    client = stage.clients[2]
    fresh = client.train(FIRST, invitation(NODES)).frames["attendance"]
    assert decode_attendance(fresh, stage.fed.roster).node == 2
    assert fresh != stage.trained[2].frames["attendance"]
    assert load_pending(stage.state(2)).attendance == fresh


def test_clients_that_restart_between_all_messages_send_what_they_would_have_sent(tmp_path: Path) -> None:
    fed = federation(PLAN)

    def started() -> dict[int, Client]:
        folders = {node: tmp_path / str(node) for node in fed.kits}
        settings = [NodeSettings(folder, folder / "state", None, i, 4, 1) for i, folder in enumerate(folders.values())]
        return {node: Client(one, PLAN) for node, one in zip(folders, settings, strict=True)}

    trained = {node: client.train(FIRST, invitation(fed.kits)) for node, client in fed.clients(tmp_path).items()}
    cohort = cohort_of(trained, fed.roster)
    sent = {
        node: client.contribute(FIRST, announcement(cohort, trained, fed.kits, node)).frames["contribution"]
        for node, client in started().items()
    }
    total = add_up(fed, cohort, FIRST, trained, sent)
    consents = {
        node: client.release(FIRST, release_of(total, terms=True)).frames["consent"]
        for node, client in started().items()
    }
    layout = build_network(PLAN, (5,), 4, RUN).layout
    assert open_sum(open_up(fed, total, consents), RUN, 1, fed.kits[NODES[0]], PLAN, layout).clients == 4


def test_a_node_with_its_own_data_uses_all_of_it(tmp_path: Path) -> None:
    plan = replace(PLAN, data="digits")
    fed = federation(plan)
    client = one_client(tmp_path, fed, plan, data="tests.edge_client.tiny:data", position=3)
    answer = client.train(FIRST, invitation(fed.kits))
    assert decode_attendance(answer.frames["attendance"], fed.roster).samples == 112
    assert load_pending(tmp_path / "kit" / "state").measured.tested == 26


def test_the_aggregate_is_the_whole_state_so_a_node_that_joins_late_trains_with_the_others_from_its_second_round_on(
    tmp_path: Path,
) -> None:
    fed = federation(PLAN)
    clients = fed.clients(tmp_path / "others")
    others = {node: clients[node] for node in NODES[1:4]}
    late, last = one_client(tmp_path, fed, PLAN), play_round(others, fed, 1, b"").aggregate
    with pytest.raises(LedgerLost, match="it sits out round 2 and joins with the next one"):
        late.train(Call(RUN, 2, 1), invitation(fed.kits, last))
    last = play_round(others, fed, 2, last).aggregate
    said = {
        decode_attendance(
            client.train(Call(RUN, 3, 1), invitation(fed.kits, last)).frames["attendance"], fed.roster
        ).model
        for client in (late, *others.values())
    }
    assert len(said) == 1


def test_a_later_round_without_its_aggregate_is_refused(tmp_path: Path) -> None:
    client = one_client(tmp_path, federation(PLAN), PLAN)
    client.train(FIRST, invitation(NODES[:4]))
    for handler, round_ in ((client.train, 2), (client.report, PLAN.rounds + 1)):
        announced = f"round {round_} was announced without the aggregate of the round before"
        with pytest.raises(MalformedMessage, match=announced):
            handler(Call(RUN, round_, 1), invitation(NODES[:4]) if handler == client.train else {})


@pytest.mark.parametrize(
    ("call", "field"), [(Call(RUN, 1, 2), "round"), (Call(RUN, 3, 1), "round"), (Call(bytes(16), 2, 1), "run")]
)
def test_the_aggregate_of_another_round_or_run_is_refused(
    call: Call, field: str, played: tuple[Federation, Mapping[int, Client], Played]
) -> None:
    _, clients, result = played
    with pytest.raises(PeerMismatch) as caught:
        clients[NODES[0]].train(call, invitation(clients, result.aggregate))
    assert caught.value.field == field


@pytest.mark.parametrize("round_", [1, 2, 3])
def test_nothing_is_reported_before_the_last_round_is_over(
    round_: int, played: tuple[Federation, Mapping[int, Client], Played]
) -> None:
    _, clients, result = played
    with pytest.raises(PeerMismatch, match=f"round: ours is 4, the peer's is {round_}"):
        clients[NODES[0]].report(Call(RUN, round_, 1), {"aggregate": result.aggregate, "scores": result.aggregate})


# --- data that cannot be trained on -------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"data": "tests.edge_client.tiny:not_finite"}, "hold NaN or infinity"),
        ({"data": "tests.edge_client.tiny:nothing"}, "must be one or more inputs"),
        ({"data": "nowhere"}, "unknown data"),
        ({"data": "npz:absent.npz"}, "does not exist"),
        ({"partition": "unfair"}, "unknown partition"),
        ({"partition": "shards:9"}, "shards:9 fails"),
    ],
)
def test_a_node_without_usable_data_says_so(change: dict[str, str], text: str, tmp_path: Path) -> None:
    plan = replace(PLAN, **change)  # type: ignore[arg-type]
    client = one_client(tmp_path, federation(PLAN), plan)
    with pytest.raises(DataError, match=text):
        client.train(FIRST, invitation(NODES[:4]))
    assert not (tmp_path / "kit" / "state").exists()


def test_a_federation_of_more_nodes_than_rows_leaves_nobody_without_an_error(tmp_path: Path) -> None:
    client = one_client(tmp_path, federation(PLAN), replace(PLAN, partition="iid"), nodes=113)
    with pytest.raises(DataError, match="112 training rows cannot be dealt to 113 clients"):
        client.train(FIRST, invitation(NODES[:4]))


def test_training_that_diverges_is_an_error_and_leaves_no_update(tmp_path: Path) -> None:
    client = one_client(tmp_path, federation(PLAN), replace(PLAN, learning_rate=1e38))
    with pytest.raises(TrainingError, match="lower the learning rate"):
        client.train(FIRST, invitation(NODES[:4]))
    assert not (tmp_path / "kit" / "state").exists()
