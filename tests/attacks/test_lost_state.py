"""Attack 3: a node whose state was put back from a copy, lost, or damaged, is asked again without the victim.

Two of the three others are honest. What is lost of one of them costs nothing, for the other says what it remembers.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_client.ledger import LEDGER_FILE
from edge_client.state import PENDING_FILE
from protocol.call import Call
from protocol.errors import CohortRefused, LedgerLost, PeerMismatch
from tests.attacks.hostile import COLLUDER, NODES, VICTIM, Hostile, correlation, loud_plan
from tests.edge_client.federation import RUN, invitation, release_of

pytestmark = pytest.mark.slow

HONEST = tuple(node for node in NODES if node not in (VICTIM, COLLUDER))
OTHERS = tuple(node for node in NODES if node != VICTIM)
SECOND_SUM = "the difference of two sums from the same starting model could expose a member"
FIRST, SECOND, AGAIN = Call(RUN, 1, 1), Call(RUN, 2, 1), Call(RUN, 2, 2)


class Round:
    """The second round, of which the sum of all was opened."""

    def __init__(self, folder: Path) -> None:
        self.hostile = Hostile(folder, loud_plan())
        self.last = self.hostile.round(FIRST, NODES)
        self.before = folder / "before"
        for node in NODES:
            shutil.copytree(self.hostile.state_folder(node), self.before / str(node))
        self.attendances = self.hostile.train(SECOND, NODES, self.last)
        self.sum = self.hostile.sum_of(SECOND, self.attendances, NODES)

    def put_back(self, node: int) -> None:
        shutil.rmtree(self.hostile.state_folder(node))
        shutil.copytree(self.before / str(node), self.hostile.state_folder(node))

    def put_back_ledger(self, node: int) -> None:
        shutil.copy(self.before / str(node) / LEDGER_FILE, self.hostile.state_folder(node))

    def lose(self, node: int) -> None:
        shutil.rmtree(self.hostile.state_folder(node))

    def lose_ledger(self, node: int) -> None:
        (self.hostile.state_folder(node) / LEDGER_FILE).unlink()

    def damage(self, node: int) -> None:
        path = self.hostile.state_folder(node) / LEDGER_FILE
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


Loss = Callable[[Round, int], None]
LOSSES: dict[str, Loss] = {
    "one byte damaged": Round.damage,
    "ledger lost": Round.lose_ledger,
    "all lost": Round.lose,
    "an old ledger put back": Round.put_back_ledger,
}


@pytest.fixture
def scene(tmp_path: Path) -> Round:
    return Round(tmp_path)


@pytest.mark.parametrize("loss", LOSSES)
def test_honest_clients_that_cannot_remember_sit_the_round_out(loss: str, scene: Round) -> None:
    for node in HONEST:
        LOSSES[loss](scene, node)
    for node in HONEST:
        client, announced = (
            scene.hostile.clients[node],
            scene.hostile.announced(SECOND, scene.attendances, OTHERS, node),
        )
        for call in (SECOND, AGAIN, Call(RUN, 2, 3)):
            with pytest.raises(LedgerLost):
                client.train(call, invitation(NODES, scene.last))
            with pytest.raises(LedgerLost):
                client.contribute(call, announced)
            with pytest.raises(LedgerLost):
                client.release(call, {})
    third = scene.hostile.round(Call(RUN, 3, 1), NODES, scene.sum)
    assert scene.hostile.clients[VICTIM].train(Call(RUN, 4, 1), invitation(NODES, third)).frames["attendance"]


@pytest.mark.parametrize("loss", ["one byte damaged", "ledger lost", "an old ledger put back"])
@pytest.mark.parametrize("decoy", [Call(bytes(16), 1, 1), Call(bytes(16), 2, 1), FIRST])
def test_a_made_up_question_first_does_not_help(loss: str, decoy: Call, scene: Round) -> None:
    for node in HONEST:
        LOSSES[loss](scene, node)
        with pytest.raises((LedgerLost, PeerMismatch)):
            scene.hostile.clients[node].train(decoy, invitation(NODES, scene.last if decoy.round > 1 else b""))
        with pytest.raises(LedgerLost):
            scene.hostile.clients[node].train(AGAIN, invitation(NODES, scene.last))


@pytest.mark.parametrize("forgetful", HONEST)
def test_one_that_has_forgotten_all_is_told_by_one_that_has_not(forgetful: int, scene: Round) -> None:
    scene.put_back(forgetful)
    total = scene.hostile.masked(AGAIN, scene.hostile.train(AGAIN, OTHERS, scene.last, invited=NODES), OTHERS)
    for node in HONEST:
        with pytest.raises(CohortRefused, match=SECOND_SUM):
            scene.hostile.clients[node].release(AGAIN, release_of(total))


def test_where_all_but_the_victim_have_whole_old_states_put_back_it_is_exposed(tmp_path: Path) -> None:
    """What is not held; the protocol's page says so. An old state that is whole looks like one that never went on."""
    hostile = Hostile(tmp_path, loud_plan())
    attendances = hostile.train(FIRST, NODES)
    whole = hostile.updates(FIRST, hostile.sum_of(FIRST, attendances, NODES), attendances, NODES)
    secret = hostile.pending(VICTIM).values - hostile.start(RUN).vector
    for node in OTHERS:
        shutil.rmtree(hostile.state_folder(node))
    again = Call(RUN, 1, 1)
    attendances = hostile.train(again, OTHERS)
    rest = hostile.updates(again, hostile.sum_of(again, attendances, OTHERS), attendances, OTHERS)
    assert correlation(whole - rest, secret) > 0.95


def test_a_damaged_update_that_waits_costs_the_round_and_opens_nothing(scene: Round) -> None:
    for node in HONEST:
        (scene.hostile.state_folder(node) / PENDING_FILE).write_bytes(b"damaged")
    total = scene.hostile.masked(AGAIN, scene.hostile.train(AGAIN, OTHERS, scene.last, invited=NODES), OTHERS)
    for node in HONEST:
        with pytest.raises(CohortRefused, match=SECOND_SUM):
            scene.hostile.clients[node].release(AGAIN, release_of(total))
