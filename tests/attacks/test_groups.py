"""Attack 6: one client signs random residues. And: an aggregator that says so of a good sum, to ask for groups.

The first stops no run: its group is left out. The second opens sums of groups beside that of all. Together they tell of
each member what the sum of its group tells, and nothing of anybody alone.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from aggregator.journal import Journal
from aggregator.rounds import Run
from edge_client.cipher import RoundCipher
from edge_client.sums import open_sum
from protocol.call import Call
from protocol.errors import CohortRefused, Spoiled
from protocol.grid import Integers
from protocol.lanes import unpack
from protocol.openings import Nodes
from protocol.pairwise import mask, pair_key, self_key
from protocol.wire import aggregates, decode_contribution
from tests.aggregator.stub_grid import CONTRIBUTE, StubGrid, Watch, spoils
from tests.attacks.hostile import COLLUDER, Hostile, correlation
from tests.attacks.test_killed_aggregator import RealClient
from tests.edge_client.federation import RUN, federation, invitation, release_of, tiny_plan
from tests.edge_client.tampering import ciphertext_sum, claimed, spoilt

pytestmark = pytest.mark.slow

NODES = (2, 3, 5, 8, 13, 21, 34, 55, 89)
VICTIM, LOST = 8, 55
GROUPS = (Nodes({2, 34, 89}), Nodes({3, 5, 8}), Nodes({13, 21, 55}))
FIRST, AGAIN = Call(RUN, 1, 1), Call(RUN, 1, 2)
PLAN = tiny_plan(model="digits-mlp", data="digits", partition="iid", bits=20, epochs=1, max_cohort=9)


@pytest.fixture
def hostile(tmp_path: Path) -> Hostile:
    return Hostile(tmp_path, PLAN, NODES)


# --- attack 6 ---------------------------------------------------------------------------------------


def test_all_say_that_the_sum_is_spoiled_and_the_sums_of_the_other_groups_open(hostile: Hostile) -> None:
    def round_(call: Call, groups: tuple[Nodes, ...]) -> bytes:
        trained = hostile.train(call, NODES)
        sent = hostile.contributions(call, trained, NODES, groups=groups)
        cohort = hostile.cohort(trained, NODES, groups)
        sent[VICTIM] = spoilt(sent[VICTIM], cohort, hostile.fed.kits[VICTIM], PLAN)
        return hostile.opened(call, hostile.added(call, trained, NODES, sent, groups))

    whole = round_(FIRST, ())
    for client in hostile.clients.values():
        with pytest.raises(Spoiled):
            client.train(Call(RUN, 2, 1), invitation(NODES, whole))
    sums = round_(AGAIN, GROUPS)
    layout = hostile.network(RUN).layout
    total = open_sum(sums, RUN, 1, hostile.fed.kits[COLLUDER], PLAN, layout)
    assert (total.clients, total.told.spoiled) == (6, 0b010)
    assert hostile.round(Call(RUN, 2, 1), NODES, sums)


def test_the_run_goes_on_without_the_group_of_one_that_signs_random_residues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real aggregator before real clients."""
    plan = tiny_plan(max_cohort=9, rounds=2, partition="iid")
    fed = federation(plan, nodes=9, numbers=NODES)
    clients = fed.clients(tmp_path / "nodes")
    real = [RealClient(fed.kits[node], plan, clients[node], tmp_path / "nodes" / str(node)) for node in NODES]
    grid = StubGrid(real)
    monkeypatch.setattr("aggregator.replies.time", SimpleNamespace(monotonic=grid.monotonic))
    for module in ("rounds", "selection", "releasing"):
        monkeypatch.setattr(f"aggregator.{module}._WAIT_SECONDS", 0.01)
    grid.when(CONTRIBUTE, spoils, VICTIM)
    watch = Watch(grid)
    Run(grid, plan, fed.roster, Journal(tmp_path / "run", plan, RUN), watch).run()
    assert watch.spoiled[0][0] == 1
    assert "round 1: 9 clients refuse its sum, which is spoiled" in watch.texts[0]
    assert [record.round for record in watch.records] == [1, 2]
    assert watch.sums[0][2].clients == 6
    assert VICTIM not in watch.sums[1][1].nodes


# --- a good sum that is said to be none -------------------------------------------------------------


def test_groups_that_leave_the_victim_over_are_not_opened(hostile: Hostile) -> None:
    hostile.round(FIRST, NODES)
    total = hostile.masked(AGAIN, hostile.train(AGAIN, NODES), NODES, groups=GROUPS)
    without = GROUPS[1] - {VICTIM}, GROUPS[1] | {LOST}
    for sets in ((GROUPS[0], without[0], GROUPS[2]), (GROUPS[0], without[1], GROUPS[2] - {LOST})):
        for node in (3, 13, 34):
            with pytest.raises(CohortRefused):
                hostile.clients[node].release(AGAIN, release_of(claimed(total, *sets)))


@pytest.mark.parametrize("last", [Nodes({13, 21, 55}), Nodes({13, 21, 34, 55})])
def test_neither_are_those_of_a_cohort_that_leaves_it_out(last: Nodes, hostile: Hostile) -> None:
    hostile.round(FIRST, NODES)
    others, groups = [node for node in NODES if node != VICTIM], (Nodes({2, 3, 5, 89} | ({34} - last)), last)
    total = hostile.masked(AGAIN, hostile.train(AGAIN, others, invited=NODES), others, groups=groups)
    for node in others:
        with pytest.raises(CohortRefused, match="the difference of two sums from the same starting model"):
            hostile.clients[node].release(AGAIN, release_of(total))


class Stripped:
    """The victim's contribution to its group, without all masks that the aggregator and the colluder know."""

    def __init__(self, hostile: Hostile, group: tuple[Nodes, ...]) -> None:
        hostile.round(FIRST, NODES)
        self.hostile, self.trained, self.groups = hostile, hostile.train(AGAIN, NODES), group
        sent = hostile.contributions(AGAIN, self.trained, NODES, groups=group)
        self.cohort = hostile.cohort(self.trained, NODES, group)
        self.aggregate = hostile.opened(AGAIN, hostile.added(AGAIN, self.trained, NODES, sent, group))
        self.pending, p = hostile.pending(VICTIM), PLAN.parameters
        own = next(member for member in self.cohort.members if member.node == VICTIM)
        read = decode_contribution(sent[VICTIM], own, len(NODES), p, hostile.fed.roster)
        with RoundCipher(p, hostile.fed.kits[COLLUDER].secret.bfv_seed(RUN, 1)) as cipher:
            self.slots = cipher.decrypt(ciphertext_sum(p, [(read.first, read.seeds)]))

    def values(self, *peers: int) -> Integers:
        """What is left without the victim's own mask, whose seed is known, and those that it shares with these."""
        p, digest, public = PLAN.parameters, self.cohort.digest(2), {m.node: m.exchange for m in self.cohort.members}
        secrets = self.pending.secrets
        keys = {node: pair_key(secrets.shared(public[node]), digest, (VICTIM, node)) for node in peers}
        known = mask(self.slots.size, VICTIM, self_key(secrets.seed, digest, VICTIM), keys, p.plain_modulus)
        bare = (self.slots + np.uint64(p.plain_modulus) - known) % np.uint64(p.plain_modulus)
        count = self.pending.values.size
        return unpack(bare[: p.values.slots(count + p.trailing)], count + p.trailing, p.values)[:count]


@pytest.mark.parametrize(
    "groups", [GROUPS, (Nodes({2, 3, 8}), Nodes({5, 34, 89}), Nodes({13, 21, 55}))], ids=["elsewhere", "in its group"]
)
def test_the_sums_of_groups_beside_that_of_all_tell_no_single_update(
    groups: tuple[Nodes, ...], hostile: Hostile
) -> None:
    seen = Stripped(hostile, groups)
    peers = next(group for group in groups if VICTIM in group) - {VICTIM}
    assert len([*aggregates(seen.aggregate)]) == 3
    assert correlation(seen.values(*peers & {COLLUDER}), seen.pending.values) < 0.05
    assert correlation(seen.values(*peers), seen.pending.values) > 0.99, "the control: with all masks of its group"
