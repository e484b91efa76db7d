"""``edge_client.client``: a spoiled sum is said to be one and forgotten; its round is played again, in groups."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from edge_client.client import Client
from edge_client.learning.network import build_network
from edge_client.ledger import Ledger
from edge_client.state import load_pending
from edge_client.sums import open_sum
from protocol.attendance import decode_attendance
from protocol.call import Call
from protocol.errors import Duplicate, Spoiled
from protocol.figures import NOTHING
from protocol.openings import MOST_SETS, Nodes, Opening
from tests.edge_client.federation import (
    FIRST,
    NODES,
    RUN,
    Federation,
    federation,
    figures_of,
    invitation,
    play_round,
    release_of,
    reports,
    tiny_plan,
)
from tests.edge_client.tampering import claimed

BAD = 13
GROUPS = (Nodes({2, 8, 21}), Nodes({3, 5, 13}))
WHOLE = frozenset(NODES)
AGAIN = Call(RUN, 1, 2)


@pytest.fixture
def fed() -> Federation:
    return federation(tiny_plan(partition="iid", rounds=2), nodes=6)


@pytest.fixture
def clients(fed: Federation, tmp_path: Path) -> dict[int, Client]:
    return fed.clients(tmp_path)


@pytest.fixture
def spoiled(fed: Federation, clients: dict[int, Client]) -> bytes:
    """The first round's sum, which is none."""
    return play_round(clients, fed, 1, b"", spoilers={BAD}).aggregate


def files(folder: Path) -> dict[Path, bytes]:
    """All that the clients have on disk."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def updates(folder: Path) -> list[list[float]]:
    """The update that waits at each node."""
    return [load_pending(folder / str(node) / "state").values.tolist() for node in NODES]


def refuse(clients: Mapping[int, Client], call: Call, aggregate: bytes) -> None:
    for client in clients.values():
        with pytest.raises(Spoiled):
            client.train(call, invitation(NODES, aggregate))


def test_all_say_that_a_sum_is_spoiled_and_write_nothing_down(
    clients: dict[int, Client], spoiled: bytes, tmp_path: Path
) -> None:
    before = files(tmp_path)
    for attempt in (1, 2):
        refuse(clients, Call(RUN, 2, attempt), spoiled)
    assert files(tmp_path) == before


def test_its_round_is_played_again_in_groups_with_the_same_updates(
    fed: Federation, clients: dict[int, Client], spoiled: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(clients, Call(RUN, 2, 1), spoiled)
    before = updates(tmp_path)
    with monkeypatch.context() as patch:
        patch.delattr("edge_client.client.local_update")
        played = play_round(clients, fed, 1, b"", attempt=2, groups=GROUPS, spoilers={BAD})
    assert updates(tmp_path) == before
    layout = build_network(fed.plan, (5,), 4, RUN).layout
    for answer in played.trained.values():
        said = decode_attendance(answer.frames["attendance"], fed.roster)
        assert (said.spoiled, said.figures) == (0, NOTHING)
        assert said.memory == {Opening(WHOLE, frozenset({WHOLE}))}
    total = open_sum(played.aggregate, RUN, 1, fed.kits[2], fed.plan, layout)
    assert (total.clients, total.told.spoiled) == (3, 0b10)
    for client in clients.values():
        answer = client.train(Call(RUN, 2, 1), invitation(NODES, played.aggregate))
        said = decode_attendance(answer.frames["attendance"], fed.roster)
        assert (said.spoiled, said.figures) == (0b10, total.told.figures)


def test_a_round_that_begins_with_groups_can_be_asked_again_in_groups_itself(
    fed: Federation, clients: dict[int, Client], spoiled: bytes, tmp_path: Path
) -> None:
    refuse(clients, Call(RUN, 2, 1), spoiled)
    first = play_round(clients, fed, 1, b"", attempt=2, groups=GROUPS, spoilers={BAD}).aggregate
    second = play_round(clients, fed, 2, first, spoilers={2}).aggregate
    before = updates(tmp_path)
    refuse(clients, Call(RUN, 3, 1), second)
    played = play_round(clients, fed, 2, first, attempt=2, groups=GROUPS, spoilers={2})
    assert updates(tmp_path) == before
    for answer in played.trained.values():
        said = decode_attendance(answer.frames["attendance"], fed.roster)
        assert said.spoiled == 0b10
        assert said.memory == {Opening(WHOLE, frozenset({WHOLE}))}
    call = Call(RUN, 3, 1)
    last = {node: client.train(call, invitation(NODES, played.aggregate)) for node, client in clients.items()}
    assert {decode_attendance(answer.frames["attendance"], fed.roster).spoiled for answer in last.values()} == {0b01}


def test_the_sums_that_were_consented_to_are_remembered_and_no_others_follow(
    fed: Federation, clients: dict[int, Client], spoiled: bytes, tmp_path: Path
) -> None:
    refuse(clients, Call(RUN, 2, 1), spoiled)
    played = play_round(clients, fed, 1, b"", attempt=2, groups=GROUPS, spoilers={BAD})
    for node, client in clients.items():
        given = Ledger.open(tmp_path / str(node) / "state", AGAIN, AGAIN, node).given
        assert [sent.opened for sent in given] == [{WHOLE}, frozenset(GROUPS)]
        assert client.release(AGAIN, release_of(played.total)).frames["consent"]
    wider = play_round(clients, fed, 1, b"", attempt=3, groups=GROUPS)
    assert wider.total.sets == GROUPS
    opening = decode_attendance(wider.trained[2].frames["attendance"], fed.roster).memory
    assert opening == {Opening(WHOLE, frozenset({WHOLE})), Opening(WHOLE, frozenset(GROUPS))}


def test_of_an_attempt_no_sums_of_other_groups_are_consented_to(tmp_path: Path) -> None:
    numbers = (*NODES, 34, 55, 89)
    fed = federation(tiny_plan(partition="iid", max_cohort=9), nodes=9, numbers=numbers)
    clients, groups = fed.clients(tmp_path), tuple(Nodes(numbers[start::3]) for start in range(3))
    played = play_round(clients, fed, 1, b"", groups=groups)
    assert played.total.sets == groups
    for group in groups[1:]:
        for node in sorted(groups[0]):
            with pytest.raises(Duplicate, match="consent to sums of attempt 1"):
                clients[node].release(FIRST, release_of(claimed(played.total, groups[0], group)))


# --- the report -----------------------------------------------------------------------------------


def test_a_report_says_which_of_the_last_sums_are_spoiled(fed: Federation, clients: dict[int, Client]) -> None:
    last = b""
    for round_ in (1, 2):
        last = play_round(clients, fed, round_, last).aggregate
    call = Call(RUN, 3, 1)
    scores = play_round(clients, fed, 3, last, spoilers={BAD}).aggregate
    for client in clients.values():
        with pytest.raises(Spoiled):
            client.report(call, {"aggregate": last, "scores": scores})
    scores = play_round(clients, fed, 3, last, attempt=2, groups=GROUPS, spoilers={BAD}).aggregate
    answers = [client.report(call, {"aggregate": last, "scores": scores}) for client in clients.values()]
    layout = build_network(fed.plan, (5,), 4, RUN).layout
    told = open_sum(scores, RUN, 3, fed.kits[2], fed.plan, layout).told
    assert {answer.frames["spoiled"] for answer in answers} == {(0b10).to_bytes(MOST_SETS // 8, "little")}
    assert {figures_of(answer) for answer in answers} == {told.figures}
    assert told.figures.parameters == 3 * 64, "of the members of the good group"


def test_a_report_on_good_sums_says_that_none_is_spoiled(fed: Federation, clients: dict[int, Client]) -> None:
    last = b""
    for round_ in (1, 2):
        last = play_round(clients, fed, round_, last).aggregate
    assert {answer.frames["spoiled"] for answer in reports(clients, fed, last).values()} == {bytes(8)}
