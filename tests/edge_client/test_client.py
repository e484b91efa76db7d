"""``edge_client.client``: bytes in, bytes out; a client is nothing but its kit, its data and what waits on its disk."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_client.client import Answer, Client, build_network, state_after
from edge_client.keys import MASK_FILE, PLAN_FILE
from edge_client.round import Call, model_digest, open_sum
from edge_client.settings import Settings
from edge_client.sparsify.fedavg import FedAvg
from edge_client.state import Given, load_pending, save_pending
from edge_client.train import evaluate, insert
from protocol.cohort import Cohort, gather_cohort
from protocol.errors import (
    AgreementError,
    CheckpointError,
    CohortRefused,
    ConfigError,
    DataError,
    Duplicate,
    KeyFileError,
    MalformedMessage,
    PeerMismatch,
    PruneSealError,
    RosterRefused,
    SignatureRefused,
    TrainingError,
)
from protocol.plan import Plan
from protocol.wire import decode_aggregate, decode_attendance, encode_aggregate
from tests.edge_client import tiny
from tests.edge_client.federation import (
    NODES,
    RUN,
    Federation,
    Played,
    add_up,
    federation,
    play_round,
    tiny_plan,
)
from tests.factories import write_roster

FIRST = Call(RUN, 1, 1)
PLAN = tiny_plan(method="fedsparsify-global")


class Stage:
    """Six nodes that have all trained for round 1."""

    def __init__(self, folder: Path, plan: Plan = PLAN) -> None:
        self.folder = folder
        self.fed = federation(plan, nodes=6)
        self.clients = self.fed.clients(folder)
        self.trained = {node: client.train(FIRST, b"") for node, client in self.clients.items()}

    def cohort(self, *nodes: int) -> bytes:
        return gather_cohort([self.trained[node].payload for node in nodes], self.fed.roster).encode()

    def state(self, node: int) -> Path:
        return self.folder / str(node) / "state"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path, replace(PLAN, partition="iid"))


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, Mapping[int, Client], Played]:
    """Four nodes after one whole round."""
    fed = federation(PLAN)
    clients = fed.clients(tmp_path_factory.mktemp("played"))
    return fed, clients, play_round(clients, fed, 1, b"")


def one_client(folder: Path, fed: Federation, plan: Plan, **changes: object) -> Client:
    """The first node, whose kit was provisioned for whatever plan this is."""
    kit = fed.write(NODES[0], folder / "kit")
    (kit / PLAN_FILE).write_text(plan.digest.hex())
    settings = Settings(kit, kit / "state", None, 0, 4, 1)
    return Client(replace(settings, **changes), plan)  # type: ignore[arg-type]


# --- who it works for ---------------------------------------------------------------------------


def test_a_client_refuses_any_plan_but_the_one_that_it_was_provisioned_for(tmp_path: Path) -> None:
    fed = federation(PLAN)
    kit = fed.write(NODES[0], tmp_path / "kit")
    other = replace(PLAN, min_cohort=4)
    with pytest.raises(ConfigError) as caught:
        Client(Settings(kit, kit / "state", None, 0, 4, 1), other)
    assert other.digest.hex()[:16] in str(caught.value)
    assert PLAN.digest.hex()[:16] in str(caught.value)
    assert not (kit / "state").exists()


def test_a_client_with_half_a_kit_does_not_start(tmp_path: Path) -> None:
    fed = federation(PLAN)
    kit = fed.write(NODES[0], tmp_path / "kit")
    (kit / MASK_FILE).unlink()
    with pytest.raises(KeyFileError, match=MASK_FILE):
        Client(Settings(kit, kit / "state", None, 0, 4, 1), PLAN)


def test_a_client_that_has_worked_with_a_roster_refuses_an_older_one(tmp_path: Path) -> None:
    fed = federation(PLAN)
    client = one_client(tmp_path, replace(fed, roster=replace(fed.roster, serial=3)), PLAN)
    kit, before = tmp_path / "kit", client.train(FIRST, b"").payload
    write_roster(kit, replace(fed.roster, serial=2))
    with pytest.raises(RosterRefused, match="is number 2, but number 3 was in force here"):
        Client(Settings(kit, kit / "state", None, 0, 4, 1), PLAN)
    write_roster(kit, replace(fed.roster, serial=4))
    assert Client(Settings(kit, kit / "state", None, 0, 4, 1), PLAN).train(FIRST, b"").payload == before


def test_a_client_uses_as_many_threads_as_it_is_told(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        for place, threads in enumerate((1, 2, 1)):
            one_client(tmp_path / str(place), federation(PLAN), PLAN, threads=threads)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


# --- the network --------------------------------------------------------------------------------


def test_every_client_begins_with_the_same_network_and_torchs_generator_stays_where_it_was() -> None:
    generator = torch.random.get_rng_state()
    one, other = (build_network(PLAN, (5,), 4) for _ in range(2))
    assert torch.equal(generator, torch.random.get_rng_state())
    assert one.initial.vector.tobytes() == other.initial.vector.tobytes()
    assert one.layout == other.layout
    assert (one.initial.round, bool(one.initial.mask.all()), one.method.name) == (0, True, PLAN.method)
    reseeded = build_network(replace(PLAN, seed=1), (5,), 4)
    assert reseeded.initial.vector.tobytes() != one.initial.vector.tobytes()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": "no-such-network"}, "unknown model"),
        ({"method": "magic"}, "there is no method 'magic'"),
        ({"rounds": 1}, "must exceed first-prune"),
        ({"model": "tests.edge_client.tiny:doubled"}, "trained in float32"),
        ({"model": "lenet5"}, "lenet5 takes images"),
    ],
)
def test_a_plan_that_names_what_there_is_not_is_refused(change: dict[str, str], text: str, tmp_path: Path) -> None:
    plan = tiny_plan(**{"method": "fedsparsify-global", **change})
    client = one_client(tmp_path, federation(PLAN), plan)
    with pytest.raises(ConfigError, match=text):
        client.train(FIRST, b"")


# --- training -----------------------------------------------------------------------------------


def test_the_first_round_begins_with_the_initial_model_and_counts_what_it_holds(
    played: tuple[Federation, Mapping[int, Client], Played],
) -> None:
    fed, _, result = played
    network = build_network(PLAN, (5,), 4)
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
    played: tuple[Federation, Mapping[int, Client], Played],
) -> None:
    fed, clients, result = played
    network, data = build_network(PLAN, (5,), 4), tiny.data()
    initial = evaluate(network.model, data.test_x, data.test_y)
    state = state_after(result.aggregate, RUN, 1, fed.kits[NODES[0]], PLAN, network)
    insert(network.model, network.method, network.layout, state.vector)
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
    played: tuple[Federation, Mapping[int, Client], Played],
) -> None:
    fed, clients, result = played
    call = Call(RUN, 2, 1)
    digests = {client.evaluate(call, result.aggregate).payload for client in clients.values()}
    network = build_network(PLAN, (5,), 4)
    state = state_after(result.aggregate, RUN, 1, fed.kits[NODES[0]], PLAN, network)
    assert digests == {model_digest(state, call, fed.kits[NODES[0]])}


def test_scoring_alone_changes_nothing_on_disk(tmp_path: Path) -> None:
    client = one_client(tmp_path, federation(PLAN), PLAN)
    client.evaluate(FIRST, b"")
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
    with pytest.raises(Duplicate, match="attendance in attempt 1, or a later one"):
        client.train(FIRST, b"")
    client.train(Call(RUN, 1, 3), b"")
    with pytest.raises(Duplicate):
        client.train(Call(RUN, 1, 2), b"")


def test_a_client_trains_again_only_in_an_attempt_after_its_last_contribution(stage: Stage) -> None:
    client = stage.clients[2]
    client.contribute(Call(RUN, 1, 3), stage.cohort(*NODES))
    for attempt in (2, 3):
        with pytest.raises(Duplicate):
            client.train(Call(RUN, 1, attempt), b"")
    assert client.train(FIRST, b"").payload == stage.trained[2].payload
    assert client.train(Call(RUN, 1, 4), b"").payload != stage.trained[2].payload


def test_a_round_that_starts_over_does_not_forget_whom_it_was_summed_with(stage: Stage) -> None:
    """A second training from the same model differs too little to hide who is missing from its sum."""
    for client in stage.clients.values():
        client.contribute(FIRST, stage.cohort(*NODES))
    again = Call(RUN, 1, 2)
    fresh = {node: client.train(again, b"").payload for node, client in stage.clients.items()}
    assert [given.nodes for given in load_pending(stage.state(2)).given] == [frozenset(NODES)]
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
        node: Client(Settings(tmp_path / str(node), tmp_path / str(node) / "state", None, i, 4, 1), PLAN)
        for i, node in enumerate(fed.kits)
    }
    sent = {node: client.contribute(FIRST, cohort.encode()).payload for node, client in restarted.items()}
    aggregate = add_up(PLAN, fed.roster, cohort, 1, sent)
    layout = build_network(PLAN, (5,), 4).layout
    assert open_sum(aggregate, RUN, 1, fed.kits[NODES[0]], PLAN, layout).clients == 4


def test_a_node_with_its_own_data_uses_all_of_it(tmp_path: Path) -> None:
    plan = replace(PLAN, data="digits")
    fed = federation(plan)
    client = one_client(tmp_path, fed, plan, data="tests.edge_client.tiny:data", position=3)
    answer = client.train(FIRST, b"")
    assert decode_attendance(answer.payload, fed.roster).samples == 112
    assert answer.metrics["tested"] == 26


def test_the_aggregate_is_the_whole_state_so_a_node_that_joins_late_trains_with_the_others(
    played: tuple[Federation, Mapping[int, Client], Played], tmp_path: Path
) -> None:
    fed, _, result = played
    clients = fed.clients(tmp_path / "others")
    for node in (NODES[1], NODES[3]):
        clients[node].train(FIRST, b"")
    late = one_client(tmp_path, fed, PLAN)
    call = Call(RUN, 2, 1)
    said = {
        decode_attendance(client.train(call, result.aggregate).payload, fed.roster).model
        for client in (late, clients[NODES[1]], clients[NODES[3]])
    }
    assert len(said) == 1


def test_a_later_round_without_its_aggregate_is_refused(tmp_path: Path) -> None:
    client = one_client(tmp_path, federation(PLAN), PLAN)
    for handler in (client.train, client.evaluate):
        with pytest.raises(MalformedMessage, match="round 2 was announced without the aggregate of the round before"):
            handler(Call(RUN, 2, 1), b"")


@pytest.mark.parametrize(
    ("call", "field"), [(Call(RUN, 1, 1), "round"), (Call(RUN, 3, 1), "round"), (Call(bytes(16), 2, 1), "run")]
)
def test_the_aggregate_of_another_round_or_run_is_refused(
    call: Call, field: str, played: tuple[Federation, Mapping[int, Client], Played]
) -> None:
    _, clients, result = played
    with pytest.raises(PeerMismatch) as caught:
        clients[NODES[0]].evaluate(call, result.aggregate)
    assert caught.value.field == field


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


# --- contributing -------------------------------------------------------------------------------


def test_a_contribution_before_training_is_an_error(tmp_path: Path) -> None:
    client = one_client(tmp_path, federation(PLAN), PLAN)
    with pytest.raises(CheckpointError, match="has not answered `train`"):
        client.contribute(FIRST, b"")


def test_a_contribution_is_remembered_before_it_is_sent(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash after the answer has left must not make the client forget it."""
    cohort = gather_cohort([answer.payload for answer in stage.trained.values()], stage.fed.roster)
    assert load_pending(stage.state(2)).given == ()
    with monkeypatch.context() as patch:
        patch.delattr("edge_client.client.close_update")
        with pytest.raises(NameError):
            stage.clients[2].contribute(FIRST, cohort.encode())
    assert load_pending(stage.state(2)).given == (Given(1, cohort.digest(1), frozenset(NODES)),)


def test_a_contribution_comes_with_its_clipped_values_and_seconds(stage: Stage) -> None:
    answer = stage.clients[2].contribute(FIRST, stage.cohort(*NODES))
    assert answer.metrics["clipped"] == 0
    assert answer.metrics["seconds-encrypt"] > 0


def refused(
    stage: Stage, announced: bytes, error: type[PruneSealError], call: Call = FIRST, nodes: tuple[int, ...] = NODES
) -> None:
    """Every one of these nodes refuses, and keeps what it had."""
    for node in nodes:
        before = (stage.state(node) / "pending.npz").read_bytes()
        with pytest.raises(error):
            stage.clients[node].contribute(call, announced)
        assert (stage.state(node) / "pending.npz").read_bytes() == before


def test_a_cohort_without_the_nodes_own_attendance_is_refused(stage: Stage) -> None:
    refused(stage, stage.cohort(*NODES[1:]), CohortRefused, nodes=NODES[:1])


def test_a_cohort_below_the_minimum_is_refused(stage: Stage) -> None:
    refused(stage, stage.cohort(*NODES[:2]), CohortRefused, nodes=NODES[:2])


def test_an_attempt_that_was_answered_is_refused_for_another_cohort(stage: Stage) -> None:
    for client in stage.clients.values():
        client.contribute(FIRST, stage.cohort(*NODES))
    refused(stage, stage.cohort(*NODES[:4]), Duplicate, nodes=NODES[:4])
    for client in stage.clients.values():
        client.train(Call(RUN, 1, 2), b"")
    refused(stage, stage.cohort(*NODES), CohortRefused, Call(RUN, 1, 2))


def test_the_same_cohort_may_ask_again_and_gets_the_same_update_encrypted_anew(stage: Stage) -> None:
    cohort = gather_cohort([answer.payload for answer in stage.trained.values()], stage.fed.roster)
    layout = build_network(stage.fed.plan, (5,), 4).layout
    sums: list[list[int]] = []
    frames: list[bytes] = []
    for _ in range(2):
        sent = {node: client.contribute(FIRST, cohort.encode()).payload for node, client in stage.clients.items()}
        aggregate = add_up(stage.fed.plan, stage.fed.roster, cohort, 1, sent)
        sums.append(open_sum(aggregate, RUN, 1, stage.fed.kits[2], stage.fed.plan, layout).values.tolist())
        frames += sent.values()
    assert sums[0] == sums[1]
    assert len(set(frames)) == 12
    assert len(load_pending(stage.state(2)).given) == 1


@pytest.mark.parametrize("left_out", [1, 2, 3])
def test_no_smaller_cohort_may_follow_one_of_six(left_out: int, stage: Stage) -> None:
    """Of six, three could be left out, but then any two such cohorts would share too few members."""
    for client in stage.clients.values():
        client.contribute(FIRST, stage.cohort(*NODES))
    left = NODES[: 6 - left_out]
    refused(stage, stage.cohort(*left), CohortRefused, Call(RUN, 1, 2), left)


def test_a_refusal_is_remembered_by_a_client_that_restarts(stage: Stage) -> None:
    stage.clients[2].contribute(FIRST, stage.cohort(*NODES))
    settings = Settings(stage.folder / "2", stage.state(2), None, 0, 6, 1)
    restarted = Client(settings, stage.fed.plan)
    with pytest.raises(CohortRefused, match="must not follow"):
        restarted.contribute(Call(RUN, 1, 2), stage.cohort(*NODES[:5]))


def test_the_survivors_of_a_large_cohort_finish_the_round(tmp_path: Path) -> None:
    """Nine announce themselves, three are lost, and six may follow: the sum is theirs alone."""
    plan = tiny_plan(max_cohort=9, partition="iid")
    numbers = (1, 2, 3, 4, 5, 6, 7, 8, 9)
    fed = federation(plan, nodes=9, numbers=numbers)
    clients = fed.clients(tmp_path)
    trained = {node: client.train(FIRST, b"") for node, client in clients.items()}

    def announce(*nodes: int) -> Cohort:
        return gather_cohort([trained[node].payload for node in nodes], fed.roster)

    everybody, survivors = announce(*numbers), announce(*numbers[:6])
    for node in numbers[:6]:
        clients[node].contribute(FIRST, everybody.encode())
    again = Call(RUN, 1, 2)
    sent = {node: clients[node].contribute(again, survivors.encode()).payload for node in numbers[:6]}
    aggregate = add_up(plan, fed.roster, survivors, 2, sent)
    layout = build_network(plan, (5,), 4).layout
    assert open_sum(aggregate, RUN, 1, fed.kits[9], plan, layout).clients == 6


def test_another_round_is_refused(stage: Stage) -> None:
    refused(stage, stage.cohort(*NODES), PeerMismatch, Call(RUN, 2, 1))
    refused(stage, stage.cohort(*NODES), PeerMismatch, Call(bytes(16), 1, 1))


def test_a_tampered_attendance_is_refused(stage: Stage) -> None:
    announced = bytearray(stage.cohort(*NODES))
    announced[-100] ^= 1
    refused(stage, bytes(announced), SignatureRefused)


def test_an_aggregator_that_shows_two_models_is_found_out(tmp_path: Path) -> None:
    """It keeps two valid aggregates of round 1, from two attempts, and hands some clients the one, some the other."""
    fed = federation(PLAN)
    clients = fed.clients(tmp_path)
    one = play_round(clients, fed, 1, b"").aggregate
    other = play_round(clients, fed, 1, b"", attempt=2).aggregate
    call = Call(RUN, 2, 1)
    trained = [clients[node].train(call, one if node != 5 else other).payload for node in NODES[:4]]
    with pytest.raises(AgreementError) as caught:
        clients[2].contribute(call, b"".join(trained))
    assert (caught.value.field, caught.value.nodes) == ("model", (2, 5))


def test_clipped_values_are_reported(tmp_path: Path) -> None:
    """One step of this size throws the weights far beyond the clip, and the data still has a loss."""
    fed = federation(tiny_plan(learning_rate=1e3))
    clients = fed.clients(tmp_path)
    played = play_round(clients, fed, 1, b"")
    assert all(answer.metrics["clipped"] > 0 for answer in played.sent.values())


# --- what stays here ----------------------------------------------------------------------------


def test_methods_without_personal_tensors_leave_no_file_of_them(stage: Stage) -> None:
    assert [path.name for path in stage.state(2).iterdir()] == ["pending.npz"]
    assert FedAvg(PLAN).personal(build_network(PLAN, (5,), 4).model) == {}


def test_nothing_but_numbers_is_reported(played: tuple[Federation, Mapping[int, Client], Played]) -> None:
    _, clients, result = played
    answers: list[Answer] = [*result.trained.values(), *result.sent.values()]
    answers.append(clients[2].evaluate(Call(RUN, 2, 1), result.aggregate))
    names = {name for answer in answers for name in answer.metrics}
    assert names == {
        "loss", "correct", "tested", "test-loss", "parameters", "kept",
        "seconds-open", "seconds-train", "seconds-encrypt", "clipped",
    }  # fmt: skip
    assert all(type(value) in (int, float) for answer in answers for value in answer.metrics.values())


def test_a_wrong_aggregate_never_reaches_the_training(
    played: tuple[Federation, Mapping[int, Client], Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, clients, result = played
    aggregate = decode_aggregate(result.aggregate, PLAN.parameters)
    wrong = encode_aggregate(replace(aggregate, first=np.roll(aggregate.first, 1)), PLAN.parameters)
    trained: list[object] = []
    monkeypatch.setattr("edge_client.client.local_update", lambda *arguments: trained.append(arguments))
    with pytest.raises(MalformedMessage, match="does not decrypt"):
        clients[2].train(Call(RUN, 2, 1), wrong)
    assert trained == []
