"""``edge_client.client``: a contribution is for one cohort, remembered before it is sent, and refused to others."""

from pathlib import Path

import pytest

from edge_client.client import Client
from edge_client.learning.network import build_network
from edge_client.ledger import LEDGER_FILE, Ledger, Sent
from edge_client.settings import NodeSettings
from edge_client.state import load_pending
from edge_client.sums import open_sum
from protocol.attendance import SHARE_BYTES
from protocol.call import Call
from protocol.errors import (
    AgreementError,
    CheckpointError,
    CohortRefused,
    Duplicate,
    MalformedMessage,
    PeerMismatch,
    PruneSealError,
    SignatureRefused,
)
from protocol.wire import decode_contribution
from tests.edge_client.federation import (
    FIRST,
    NODES,
    PLAN,
    RUN,
    Stage,
    add_up,
    announced,
    federation,
    invitation,
    one_client,
    open_up,
    play_round,
    tiny_plan,
)


def test_a_contribution_before_training_is_an_error(tmp_path: Path) -> None:
    client = one_client(tmp_path, federation(PLAN), PLAN)
    with pytest.raises(CheckpointError, match="has not answered `train`"):
        client.contribute(FIRST, {})


def remembered(stage: Stage) -> list[Sent]:
    """What the first node remembers to have contributed to."""
    return Ledger.open(stage.state(2), FIRST, None, 2).given


def test_a_contribution_is_remembered_before_it_is_sent(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash after the answer has left must not make the client forget it."""
    cohort = stage.cohort(*NODES)
    assert remembered(stage) == []
    with monkeypatch.context() as patch:
        patch.delattr("edge_client.client.close_update")
        with pytest.raises(NameError):
            stage.clients[2].contribute(FIRST, stage.announcement(2, *NODES))
    state = load_pending(stage.state(2)).state
    assert remembered(stage) == [Sent(RUN, 1, 1, state, cohort.digest(1), frozenset(NODES))]


def refused(
    stage: Stage,
    cohort: bytes,
    error: type[PruneSealError],
    call: Call = FIRST,
    nodes: tuple[int, ...] = NODES,
    shares: bytes | None = None,
) -> None:
    """Every one of these nodes refuses, and keeps what it had."""
    for node in nodes:
        files = [stage.state(node) / name for name in ("pending.npz", LEDGER_FILE)]
        before = [file.read_bytes() for file in files]
        dealt = stage.announcement(node, *NODES)["shares"] if shares is None else shares
        with pytest.raises(error):
            stage.clients[node].contribute(call, {"cohort": cohort, "shares": dealt})
        assert [file.read_bytes() for file in files] == before


def test_a_cohort_without_the_nodes_own_attendance_is_refused(stage: Stage) -> None:
    refused(stage, stage.cohort(*NODES[1:]).encode(), CohortRefused, nodes=NODES[:1])


@pytest.mark.parametrize("members", [2, 3])
def test_a_cohort_below_the_quorum_is_refused(members: int, stage: Stage) -> None:
    refused(stage, stage.cohort(*NODES[:members]).encode(), CohortRefused, nodes=NODES[:members])


def test_a_cohort_comes_with_one_deal_of_shares_from_each_member(stage: Stage) -> None:
    whole = stage.announcement(2, *NODES)["shares"]
    for shares in (b"", whole[:-1], whole + bytes(1), whole[SHARE_BYTES:]):
        refused(stage, stage.cohort(*NODES).encode(), MalformedMessage, nodes=(2,), shares=shares)


def test_an_attempt_that_was_answered_is_refused_for_another_cohort(stage: Stage) -> None:
    for node, client in stage.clients.items():
        client.contribute(FIRST, stage.announcement(node, *NODES))
    for node in NODES[:4]:
        with pytest.raises(Duplicate, match="contribution to attempt 1"):
            stage.clients[node].contribute(FIRST, stage.announcement(node, *NODES[:4]))
    for client in stage.clients.values():
        client.train(Call(RUN, 1, 2), invitation(NODES))
    refused(stage, stage.cohort(*NODES).encode(), Duplicate, FIRST)
    refused(stage, stage.cohort(*NODES).encode(), CohortRefused, Call(RUN, 1, 2))


def test_the_same_cohort_may_ask_again_and_gets_the_same_update_encrypted_anew(stage: Stage) -> None:
    layout = build_network(stage.fed.plan, (5,), 4, RUN).layout
    sums: list[list[int]] = []
    frames: list[bytes] = []
    for _ in range(2):
        sent = {
            node: client.contribute(FIRST, stage.announcement(node, *NODES)).frames["contribution"]
            for node, client in stage.clients.items()
        }
        total = add_up(stage.fed, stage.cohort(*NODES), FIRST, stage.trained, sent)
        aggregate = open_up(stage.fed, total, stage.consents(total))
        sums.append(open_sum(aggregate, RUN, 1, stage.fed.kits[2], stage.fed.plan, layout).values.tolist())
        frames += sent.values()
    assert sums[0] == sums[1]
    assert len(set(frames)) == 12
    assert len(remembered(stage)) == 1


def test_shares_that_cannot_be_used_are_told_and_the_client_contributes_all_the_same(stage: Stage) -> None:
    frames = stage.announcement(2, *NODES)
    spoilt = bytearray(frames["shares"])
    spoilt[SHARE_BYTES + 5] ^= 1
    answer = stage.clients[2].contribute(FIRST, {**frames, "shares": bytes(spoilt)})
    own = next(member for member in stage.cohort(*NODES).members if member.node == 2)
    p, roster = stage.fed.plan.parameters, stage.fed.roster
    read = decode_contribution(answer.frames["contribution"], own, len(NODES), p, roster)
    assert read.held == (True, False, True, True, True, True)


def test_a_refusal_is_remembered_by_a_client_that_restarts(stage: Stage) -> None:
    stage.clients[2].contribute(FIRST, stage.announcement(2, *NODES))
    settings = NodeSettings(stage.folder / "2", stage.state(2), None, 0, 6, 1)
    restarted = Client(settings, stage.fed.plan)
    with pytest.raises(Duplicate):
        restarted.contribute(FIRST, stage.announcement(2, *NODES[:5]))


def test_another_round_is_refused(stage: Stage) -> None:
    for call in (Call(RUN, 2, 1), Call(bytes(16), 1, 1), Call(RUN, 1, 2)):
        refused(stage, stage.cohort(*NODES).encode(), PeerMismatch, call)


def test_a_tampered_attendance_is_refused(stage: Stage) -> None:
    announced = bytearray(stage.cohort(*NODES).encode())
    announced[-100] ^= 1
    refused(stage, bytes(announced), SignatureRefused)


def test_an_aggregator_that_shows_two_models_is_found_out(tmp_path: Path) -> None:
    """It has two valid aggregates of round 1, of different sets, and hands some clients the one, some the other."""
    fed = federation(PLAN)
    clients = fed.clients(tmp_path)
    one = play_round(clients, fed, 1, b"").aggregate
    forged = fed.clients(tmp_path / "elsewhere")  # the same nodes with other folders: they remember nothing
    other = play_round(forged, fed, 1, b"", lost={"contribute": (5,)}).aggregate
    call = Call(RUN, 2, 1)
    trained = {node: clients[node].train(call, invitation(clients, one if node != 5 else other)) for node in NODES[:4]}
    encoded = announced(answer.frames["attendance"] for answer in trained.values())
    with pytest.raises(AgreementError) as caught:
        clients[2].contribute(call, {"cohort": encoded, "shares": b""})
    assert (caught.value.field, caught.value.nodes) == ("model", (2, 5))


def test_clipped_values_are_counted_in_the_sum(tmp_path: Path) -> None:
    """One step of this size throws the weights far beyond the clip, and the data still has a loss."""
    fed = federation(tiny_plan(learning_rate=1e3))
    clients = fed.clients(tmp_path)
    played = play_round(clients, fed, 1, b"")
    layout = build_network(fed.plan, (5,), 4, RUN).layout
    assert open_sum(played.aggregate, RUN, 1, fed.kits[2], fed.plan, layout).told.figures.clipped > len(clients)
