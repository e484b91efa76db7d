"""``edge_client.client``: training and scoring, the same again whoever restarts, or refused."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from edge_client.client import Client
from edge_client.learning.network import build_network, insert
from edge_client.learning.training import evaluate
from edge_client.ledger import Ledger
from edge_client.round import model_digest, open_sum, state_after
from edge_client.settings import NodeSettings
from edge_client.state import load_pending, save_pending
from protocol.call import Call
from protocol.cohort import gather_cohort
from protocol.errors import (
    CohortRefused,
    DataError,
    Duplicate,
    LedgerLost,
    MalformedMessage,
    PeerMismatch,
    TrainingError,
)
from protocol.wire import decode_attendance
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
    federation,
    one_client,
    play_round,
)

# --- training -----------------------------------------------------------------------------------


def test_the_first_round_begins_with_the_initial_model_and_counts_what_it_holds(
    played: tuple[Federation, Mapping[int, Client], Played],
) -> None:
    fed, _, result = played
    network = build_network(PLAN, (5,), 4, RUN)
    sizes = []
    for node, answer in result.trained.items():
        said = decode_attendance(answer.payload, fed.roster)
        assert (said.run, said.round, said.attempt, said.node) == (RUN, 1, 1, node)
        assert said.values == tiny.PARAMETERS
        assert said.model == model_digest(network.initial, FIRST, fed.kits[node])
        assert (answer.metrics["parameters"], answer.metrics["kept"]) == (64, 64)
        assert answer.metrics["tested"] in (6, 7)
        assert 0 <= answer.metrics["correct"] <= answer.metrics["tested"]
        assert answer.metrics["seconds-open"] > 0
        assert answer.metrics["seconds-train"] > 0
        sizes.append(said.samples)
    assert sorted(sizes) == [16, 24, 32, 40]


def test_the_clients_test_rows_are_the_whole_test_set_and_their_scores_are_the_models(
    over: tuple[Federation, Mapping[int, Client], Played],
) -> None:
    fed, clients, result = over
    network, data = build_network(fed.plan, (5,), 4, RUN), tiny.data()
    initial = evaluate(network.model, data.test_x, data.test_y)
    state = state_after(result.aggregate, RUN, 1, fed.kits[NODES[0]], fed.plan, network)
    insert(network, state.vector)
    after = evaluate(network.model, data.test_x, data.test_y)
    answers = [client.evaluate(Call(RUN, 2, 1), result.aggregate) for client in clients.values()]
    for score, said in (
        (initial, [answer.metrics for answer in result.trained.values()]),
        (after, [a.metrics for a in answers]),
    ):
        assert sum(metrics["tested"] for metrics in said) == score.tested == 26
        assert sum(metrics["correct"] for metrics in said) == score.correct
        assert sum(metrics["test-loss"] for metrics in said) == pytest.approx(score.loss, rel=1e-5)
    assert after.loss < initial.loss


def test_nodes_agree_on_the_model_that_they_score(
    over: tuple[Federation, Mapping[int, Client], Played],
) -> None:
    fed, clients, result = over
    call = Call(RUN, 2, 1)
    digests = {client.evaluate(call, result.aggregate).payload for client in clients.values()}
    network = build_network(fed.plan, (5,), 4, RUN)
    state = state_after(result.aggregate, RUN, 1, fed.kits[NODES[0]], fed.plan, network)
    assert digests == {model_digest(state, call, fed.kits[NODES[0]])}


def test_scoring_alone_changes_nothing_on_disk(
    over: tuple[Federation, Mapping[int, Client], Played], tmp_path: Path
) -> None:
    fed, _, result = over
    client = one_client(tmp_path, fed, fed.plan)
    client.evaluate(Call(RUN, 2, 1), result.aggregate)
    assert not (tmp_path / "kit" / "state").exists()


def test_training_repeats_bit_by_bit_and_follows_the_attempt(tmp_path: Path) -> None:
    fed = federation(PLAN)
    trained = []
    for place, attempt in enumerate((1, 1, 2)):
        folder = tmp_path / str(place)
        fed.clients(folder)[NODES[0]].train(Call(RUN, 1, attempt), b"")
        trained.append(load_pending(folder / "2" / "state").values.tobytes())
    assert trained[0] == trained[1] != trained[2]


def test_asked_again_in_the_same_attempt_a_client_answers_as_before_and_does_not_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = federation(PLAN).clients(tmp_path)[NODES[0]]
    first = client.train(FIRST, b"")
    monkeypatch.delattr("edge_client.client.local_update")
    again = client.train(FIRST, b"")
    assert (again.payload, again.metrics) == (first.payload, first.metrics)


def test_attempts_of_a_round_must_rise(tmp_path: Path) -> None:
    client = federation(PLAN).clients(tmp_path)[NODES[0]]
    client.train(Call(RUN, 1, 2), b"")
    with pytest.raises(Duplicate, match="node 2 has already sent its answers up to attempt 2 of round 1"):
        client.train(FIRST, b"")
    client.train(Call(RUN, 1, 3), b"")
    with pytest.raises(Duplicate):
        client.train(Call(RUN, 1, 2), b"")


def test_a_client_trains_again_only_in_an_attempt_after_its_last_contribution(stage: Stage) -> None:
    client = stage.clients[2]
    client.contribute(Call(RUN, 1, 3), stage.cohort(*NODES))
    for attempt in (1, 2):
        with pytest.raises(Duplicate):
            client.train(Call(RUN, 1, attempt), b"")
    assert client.train(Call(RUN, 1, 4), b"").payload != stage.trained[2].payload


def test_a_round_that_starts_over_does_not_forget_whom_it_was_summed_with(stage: Stage) -> None:
    """A second training from the same model differs too little to hide who is missing from its sum."""
    for client in stage.clients.values():
        client.contribute(FIRST, stage.cohort(*NODES))
    again = Call(RUN, 1, 2)
    fresh = {node: client.train(again, b"").payload for node, client in stage.clients.items()}
    assert [sent.nodes for sent in Ledger.open(stage.state(2), again, None, 2).given] == [frozenset(NODES)]
    without_one = gather_cohort([fresh[node] for node in NODES[:-1]], stage.fed.roster)
    with pytest.raises(CohortRefused, match="Those who were lost must come back"):
        stage.clients[2].contribute(again, without_one.encode())
    everybody = gather_cohort(list(fresh.values()), stage.fed.roster)
    assert stage.clients[2].contribute(again, everybody.encode()).payload


def test_the_plan_has_no_more_rounds_than_it_says(stage: Stage) -> None:
    with pytest.raises(PeerMismatch, match="round: ours is at most"):
        stage.clients[2].train(Call(RUN, stage.fed.plan.rounds + 1, 1), b"")


def test_another_run_or_round_is_trained_for_whatever_waits(stage: Stage) -> None:
    client = stage.clients[2]
    client.train(Call(RUN, 1, 5), b"")
    said = decode_attendance(client.train(Call(bytes(16), 1, 1), b"").payload, stage.fed.roster)
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
    fresh = client.train(FIRST, b"").payload
    assert decode_attendance(fresh, stage.fed.roster).node == 2
    assert fresh != stage.trained[2].payload
    assert load_pending(stage.state(2)).attendance == fresh


def test_a_client_that_restarts_between_two_messages_sends_what_it_would_have_sent(tmp_path: Path) -> None:
    fed = federation(PLAN)
    clients = fed.clients(tmp_path)
    trained = {node: client.train(FIRST, b"") for node, client in clients.items()}
    cohort = gather_cohort([answer.payload for answer in trained.values()], fed.roster)
    restarted = {
        node: Client(NodeSettings(tmp_path / str(node), tmp_path / str(node) / "state", None, i, 4, 1), PLAN)
        for i, node in enumerate(fed.kits)
    }
    sent = {node: client.contribute(FIRST, cohort.encode()).payload for node, client in restarted.items()}
    aggregate = add_up(PLAN, fed.roster, cohort, 1, sent)
    layout = build_network(PLAN, (5,), 4, RUN).layout
    assert open_sum(aggregate, RUN, 1, fed.kits[NODES[0]], PLAN, layout).clients == 4


def test_a_node_with_its_own_data_uses_all_of_it(tmp_path: Path) -> None:
    plan = replace(PLAN, data="digits")
    fed = federation(plan)
    client = one_client(tmp_path, fed, plan, data="tests.edge_client.tiny:data", position=3)
    answer = client.train(FIRST, b"")
    assert decode_attendance(answer.payload, fed.roster).samples == 112
    assert answer.metrics["tested"] == 26


def test_the_aggregate_is_the_whole_state_so_a_node_that_joins_late_trains_with_the_others_from_its_second_round_on(
    tmp_path: Path,
) -> None:
    fed = federation(PLAN)
    clients = fed.clients(tmp_path / "others")
    others = {node: clients[node] for node in NODES[1:4]}
    late, last = one_client(tmp_path, fed, PLAN), play_round(others, fed, 1, b"").aggregate
    with pytest.raises(LedgerLost, match="it sits out round 2 and joins with the next one"):
        late.train(Call(RUN, 2, 1), last)
    last = play_round(others, fed, 2, last).aggregate
    said = {
        decode_attendance(client.train(Call(RUN, 3, 1), last).payload, fed.roster).model
        for client in (late, *others.values())
    }
    assert len(said) == 1


def test_a_later_round_without_its_aggregate_is_refused(tmp_path: Path) -> None:
    client = one_client(tmp_path, federation(PLAN), PLAN)
    client.train(FIRST, b"")
    for handler, round_ in ((client.train, 2), (client.evaluate, PLAN.rounds + 1)):
        announced = f"round {round_} was announced without the aggregate of the round before"
        with pytest.raises(MalformedMessage, match=announced):
            handler(Call(RUN, round_, 1), b"")


@pytest.mark.parametrize(
    ("call", "field"), [(Call(RUN, 1, 2), "round"), (Call(RUN, 3, 1), "round"), (Call(bytes(16), 2, 1), "run")]
)
def test_the_aggregate_of_another_round_or_run_is_refused(
    call: Call, field: str, played: tuple[Federation, Mapping[int, Client], Played]
) -> None:
    _, clients, result = played
    with pytest.raises(PeerMismatch) as caught:
        clients[NODES[0]].train(call, result.aggregate)
    assert caught.value.field == field


@pytest.mark.parametrize("round_", [1, 2, 3])
def test_nothing_is_scored_before_the_last_round_is_over(
    round_: int, played: tuple[Federation, Mapping[int, Client], Played]
) -> None:
    _, clients, result = played
    with pytest.raises(PeerMismatch, match=f"round: ours is 4, the peer's is {round_}"):
        clients[NODES[0]].evaluate(Call(RUN, round_, 1), result.aggregate)


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
        client.train(FIRST, b"")
    assert not (tmp_path / "kit" / "state").exists()


def test_a_federation_of_more_nodes_than_rows_leaves_nobody_without_an_error(tmp_path: Path) -> None:
    client = one_client(tmp_path, federation(PLAN), replace(PLAN, partition="iid"), nodes=113)
    with pytest.raises(DataError, match="112 training rows cannot be dealt to 113 clients"):
        client.train(FIRST, b"")


def test_training_that_diverges_is_an_error_and_leaves_no_update(tmp_path: Path) -> None:
    client = one_client(tmp_path, federation(PLAN), replace(PLAN, learning_rate=1e38))
    with pytest.raises(TrainingError, match="lower the learning rate"):
        client.train(FIRST, b"")
    assert not (tmp_path / "kit" / "state").exists()
