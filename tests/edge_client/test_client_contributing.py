"""``edge_client.client``: a contribution is for one cohort, remembered before it is sent, and refused to others."""

from pathlib import Path

import pytest

from edge_client.client import Client
from edge_client.learning.network import build_network
from edge_client.ledger import LEDGER_FILE, Ledger, Sent
from edge_client.round import open_sum
from edge_client.settings import NodeSettings
from edge_client.state import load_pending
from protocol.call import Call
from protocol.cohort import Cohort, gather_cohort
from protocol.errors import (
    AgreementError,
    CheckpointError,
    CohortRefused,
    Duplicate,
    PeerMismatch,
    PruneSealError,
    SignatureRefused,
)
from tests.edge_client.federation import (
    FIRST,
    NODES,
    PLAN,
    RUN,
    Stage,
    add_up,
    federation,
    one_client,
    play_round,
    tiny_plan,
)


def test_a_contribution_before_training_is_an_error(tmp_path: Path) -> None:
    client = one_client(tmp_path, federation(PLAN), PLAN)
    with pytest.raises(CheckpointError, match="has not answered `train`"):
        client.contribute(FIRST, b"")


def remembered(stage: Stage) -> list[Sent]:
    """What the first node remembers to have contributed to."""
    return Ledger.open(stage.state(2), FIRST, None, 2).given


def test_a_contribution_is_remembered_before_it_is_sent(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash after the answer has left must not make the client forget it."""
    cohort = gather_cohort([answer.payload for answer in stage.trained.values()], stage.fed.roster)
    assert remembered(stage) == []
    with monkeypatch.context() as patch:
        patch.delattr("edge_client.client.close_update")
        with pytest.raises(NameError):
            stage.clients[2].contribute(FIRST, cohort.encode())
    state = load_pending(stage.state(2)).state
    assert remembered(stage) == [Sent(RUN, 1, 1, state, cohort.digest(1), frozenset(NODES))]


def test_a_contribution_comes_with_its_clipped_values_and_seconds(stage: Stage) -> None:
    answer = stage.clients[2].contribute(FIRST, stage.cohort(*NODES))
    assert answer.metrics["clipped"] == 0
    assert answer.metrics["seconds-encrypt"] > 0


def refused(
    stage: Stage, announced: bytes, error: type[PruneSealError], call: Call = FIRST, nodes: tuple[int, ...] = NODES
) -> None:
    """Every one of these nodes refuses, and keeps what it had."""
    for node in nodes:
        files = [stage.state(node) / name for name in ("pending.npz", LEDGER_FILE)]
        before = [file.read_bytes() for file in files]
        with pytest.raises(error):
            stage.clients[node].contribute(call, announced)
        assert [file.read_bytes() for file in files] == before


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
    layout = build_network(stage.fed.plan, (5,), 4, RUN).layout
    sums: list[list[int]] = []
    frames: list[bytes] = []
    for _ in range(2):
        sent = {node: client.contribute(FIRST, cohort.encode()).payload for node, client in stage.clients.items()}
        aggregate = add_up(stage.fed.plan, stage.fed.roster, cohort, 1, sent)
        sums.append(open_sum(aggregate, RUN, 1, stage.fed.kits[2], stage.fed.plan, layout).values.tolist())
        frames += sent.values()
    assert sums[0] == sums[1]
    assert len(set(frames)) == 12
    assert len(remembered(stage)) == 1


@pytest.mark.parametrize("left_out", [1, 2, 3])
def test_no_smaller_cohort_may_follow_one_of_six(left_out: int, stage: Stage) -> None:
    """Of six, three could be left out, but then any two such cohorts would share too few members."""
    for client in stage.clients.values():
        client.contribute(FIRST, stage.cohort(*NODES))
    left = NODES[: 6 - left_out]
    refused(stage, stage.cohort(*left), CohortRefused, Call(RUN, 1, 2), left)


def test_a_refusal_is_remembered_by_a_client_that_restarts(stage: Stage) -> None:
    stage.clients[2].contribute(FIRST, stage.cohort(*NODES))
    settings = NodeSettings(stage.folder / "2", stage.state(2), None, 0, 6, 1)
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
    layout = build_network(plan, (5,), 4, RUN).layout
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
