"""The aggregator together with a client: everything that they can decrypt short of the whole cohort is noise.

The colluders hold every message, the cohort secret, and the client's own keys; and the seeds of all members, as after
the release of the sum. So they strip every member's own mask, and those of the client's pairs, from whatever they
decrypt. Keys and secrets are fixed here, hence every statistic has one value: its bound is a fact of the code, not a
chance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from edge_client.cipher import RoundCipher
from edge_client.client import Client
from edge_client.dealing import Secrets
from edge_client.keys import Kit
from edge_client.learning.network import build_network, first_state
from edge_client.round import Update, attend, close_update, dither_of, quantised
from edge_client.state import Pending, load_pending
from edge_client.sums import open_sum, tag_key
from protocol.bits import Words
from protocol.call import Call
from protocol.cohort import Cohort, gather_cohort
from protocol.errors import CohortRefused, Duplicate
from protocol.figures import NOTHING
from protocol.grid import Integers
from protocol.lanes import Slots, unpack
from protocol.pairwise import mask, pair_key, self_key
from protocol.parameters import DEGREE
from protocol.payload import pack_payload
from protocol.plan import Plan
from protocol.wire import decode_contribution
from tests import factories
from tests.edge_client.federation import (
    FIRST,
    NODES,
    RUN,
    add_up,
    announcement,
    cohort_of,
    federation,
    invitation,
    play_round,
    random_vector,
    release_of,
    tiny_plan,
)
from tests.edge_client.tampering import ciphertext_sum, claimed

PLAN = Plan(max_cohort=6)
P = PLAN.parameters
T = P.plain_modulus
USED = DEGREE - P.tags
SIZE = P.fields * USED - P.trailing
"""As many values as one ciphertext holds: with their tag 4096 slots to look at."""

COHORT = NODES[:5]
COLLUDER = COHORT[-1]
VICTIMS = COHORT[:-1]
BINS = 64
CHI_SQUARE_BOUND = 120.0
"""63 degrees of freedom: uniform residues exceed this once in 50,000 draws, and these are drawn once for all."""


@dataclass(frozen=True)
class Loot:
    """One announced cohort, what each member sent to it, and what each member had to say in the clear."""

    kits: Mapping[int, Kit]
    secrets: Mapping[int, Secrets]
    cohort: Cohort
    sent: Mapping[int, tuple[Words, tuple[bytes, ...]]]
    clear: Mapping[int, Integers]

    def slots(self, node: int) -> Slots:
        """The true slots of a member, before its masks."""
        member = self.cohort.members[0]
        key = tag_key(self.kits[node].secret, member, len(self.cohort.members), self.cohort.digest(1), 0)
        return pack_payload(self.clear[node], np.zeros(0, np.int64), NOTHING, key, P)

    def decrypt(self, nodes: Sequence[int]) -> Slots:
        """What the cohort secret makes of the sum of these contributions; a node may stand in it several times."""
        with RoundCipher(P, self.kits[COLLUDER].secret.bfv_seed(RUN, 1)) as cipher:
            return cipher.decrypt(ciphertext_sum(P, [self.sent[node] for node in nodes]))

    def strip(self, slots: Slots, nodes: Sequence[int]) -> Slots:
        """Take every mask that the colluders know off the sum of these contributions."""
        digest, ours = self.cohort.digest(1), self.secrets[COLLUDER]
        public = {member.node: member.exchange for member in self.cohort.members}
        for node in nodes:
            peers = set(COHORT) - {node} if node == COLLUDER else {COLLUDER}
            shared = {peer: ours.shared(public[peer if node == COLLUDER else node]) for peer in peers}
            keys = {peer: pair_key(secret, digest, (node, peer)) for peer, secret in shared.items()}
            known = mask(slots.size, node, self_key(self.secrets[node].seed, digest, node), keys, T)
            slots = (slots + np.uint64(T) - known) % np.uint64(T)
        return slots


@pytest.fixture
def fixed_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = iter(range(1_000))
    monkeypatch.setattr("edge_client.dealing.draw_secret", lambda: (b"%04d" % next(counter)) * 8)


@pytest.fixture
def loot(fixed_secrets: None) -> Loot:
    kits = federation(PLAN, nodes=5).kits
    layout = factories.layout(SIZE)
    state = first_state(random_vector(0, SIZE), layout)
    waiting: dict[int, Pending] = {}
    for node, kit in kits.items():
        trained = state.vector + random_vector(node, SIZE, 0.1)
        update = Update(trained, np.zeros(0, np.bool_), 100 + node)
        waiting[node] = attend(FIRST, kit, PLAN, layout, state, update, frozenset(kits))
    cohort = gather_cohort([pending.attendance for pending in waiting.values()], kits[COLLUDER].roster)
    sent, clear = {}, {}
    for member in cohort.members:
        kit, pending = kits[member.node], waiting[member.node]
        clear[member.node], _ = quantised(pending, cohort, member.node, PLAN, dither_of(PLAN, FIRST, member.node, SIZE))
        told = replace(pending, shares=(None,) * len(COHORT))
        data = close_update(clear[member.node], NOTHING, cohort, FIRST, kit, PLAN, told)
        contribution = decode_contribution(data, member, len(COHORT), P, kit.roster)
        sent[member.node] = (contribution.first, contribution.seeds)
    return Loot(kits, {node: pending.secrets for node, pending in waiting.items()}, cohort, sent, clear)


def chi_square(slots: Slots, modulus: int = T) -> float:
    """How far the residues are from uniform over ``BINS`` equal parts of [0, modulus)."""
    counts = np.bincount([int(slot) * BINS // modulus for slot in slots], minlength=BINS)
    expected = slots.size / BINS
    return float(((counts - expected) ** 2 / expected).sum())


def assert_noise(seen: Slots, truth: Slots) -> None:
    """Uniform, also relative to the truth and in every lane; equal to the truth nowhere beyond chance."""
    assert seen.shape == truth.shape == (DEGREE,)
    difference = (seen + np.uint64(T) - truth) % np.uint64(T)
    assert chi_square(seen) < CHI_SQUARE_BOUND
    assert chi_square(difference) < CHI_SQUARE_BOUND
    assert not (seen == truth).any()
    lanes, true_lanes = (unpack(slots[:USED], SIZE + P.trailing, P.values) for slots in (seen, truth))
    for lane in range(P.fields):
        column = (lanes[lane :: P.fields] - P.values.low).astype(np.uint64)
        assert chi_square(column, P.grid.radix) < CHI_SQUARE_BOUND
    # A lane hits by chance once in 65,548 tries; among 12,288 that is 0.19 on average.
    assert (lanes == true_lanes).sum() <= 3
    assert abs(np.corrcoef(lanes, true_lanes)[0, 1]) < 5 / SIZE**0.5


# --- the controls -------------------------------------------------------------------------------


def test_the_full_cohort_without_the_masks_of_its_members_decrypts_exactly(loot: Loot) -> None:
    truth = np.sum([loot.clear[node] for node in COHORT], axis=0)
    lanes = unpack(loot.strip(loot.decrypt(COHORT), COHORT)[:USED], SIZE + P.trailing, P.values)
    assert lanes[:SIZE].tolist() == truth.tolist()
    assert lanes[SIZE:].tolist() == [5, *[0] * (P.trailing - 1)]


def test_the_statistic_tells_true_slots_from_noise(loot: Loot) -> None:
    rng = np.random.default_rng(0)
    for node in COHORT:
        assert chi_square(loot.slots(node)) > 100 * CHI_SQUARE_BOUND
    assert chi_square(rng.integers(0, T, DEGREE, dtype=np.uint64)) < CHI_SQUARE_BOUND
    with pytest.raises(AssertionError):
        assert_noise(loot.slots(NODES[0]), loot.slots(NODES[1]))


def test_the_colluders_strip_what_is_theirs_to_strip(loot: Loot) -> None:
    """All victims together, without the colluder, give the sum of the victims: what the mean tells anyway."""
    seen = loot.strip(loot.decrypt(VICTIMS), VICTIMS)
    truth = np.sum([loot.clear[node] for node in VICTIMS], axis=0)
    assert unpack(seen[:USED], SIZE + P.trailing, P.values)[:SIZE].tolist() == truth.tolist()


def test_before_the_release_even_the_whole_cohort_decrypts_to_noise(loot: Loot) -> None:
    truth = np.sum([loot.slots(node) for node in COHORT], axis=0) % np.uint64(T)
    assert_noise(loot.decrypt(COHORT), truth)


# --- the attacks --------------------------------------------------------------------------------


@pytest.mark.parametrize("stripped", [False, True])
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_single_contribution_decrypts_to_noise(victim: int, stripped: bool, loot: Loot) -> None:
    seen = loot.decrypt([victim])
    assert_noise(loot.strip(seen, [victim]) if stripped else seen, loot.slots(victim))


@pytest.mark.parametrize("subset", [VICTIMS[:2], VICTIMS[1:], (VICTIMS[0], VICTIMS[3]), (*VICTIMS[:2], COLLUDER)])
@pytest.mark.parametrize("stripped", [False, True])
def test_a_subset_of_the_contributions_decrypts_to_noise(subset: tuple[int, ...], stripped: bool, loot: Loot) -> None:
    seen = loot.decrypt(subset)
    truth = np.sum([loot.slots(node) for node in subset], axis=0) % np.uint64(T)
    assert_noise(loot.strip(seen, subset) if stripped else seen, truth)


@pytest.mark.parametrize("times", [2, 3, 5])
def test_a_multiple_of_one_contribution_decrypts_to_noise(times: int, loot: Loot) -> None:
    victim = VICTIMS[1]
    seen = loot.decrypt([victim] * times)
    assert_noise(loot.strip(seen, [victim] * times), loot.slots(victim) * np.uint64(times) % np.uint64(T))


def test_a_contribution_counted_twice_in_the_whole_cohort_decrypts_to_noise(loot: Loot) -> None:
    seen = loot.decrypt([*COHORT, VICTIMS[2]])
    truth = np.sum([loot.slots(node) for node in (*COHORT, VICTIMS[2])], axis=0) % np.uint64(T)
    assert_noise(loot.strip(seen, [*COHORT, VICTIMS[2]]), truth)


def test_what_the_masks_leave_over_is_the_same_noise_for_an_empty_update(loot: Loot) -> None:
    """The sharpest form: a victim whose every slot is known cannot be told from its masks."""
    victim = VICTIMS[0]
    left = (loot.decrypt([victim]) + np.uint64(T) - loot.slots(victim)) % np.uint64(T)
    assert chi_square(left) < CHI_SQUARE_BOUND
    assert len(set(left.tolist())) == DEGREE
    assert chi_square(loot.strip(left, [victim])) < CHI_SQUARE_BOUND


# --- differencing -------------------------------------------------------------------------------


class PretendedLoss:
    """Four nodes have trained and contributed; the aggregator says that one of them, node 8, was lost."""

    def __init__(self, folder: Path) -> None:
        self.plan = tiny_plan(bits=20)
        self.fed = federation(self.plan)
        self.clients: Mapping[int, Client] = self.fed.clients(folder)
        self.whole = play_round(self.clients, self.fed, 1, b"")
        self.waiting = {node: load_pending(folder / str(node) / "state") for node in self.clients}
        self.rest = claimed(self.whole.total, frozenset({2, 3, 5}))


def test_the_survivors_of_a_pretended_loss_open_no_second_sum(tmp_path: Path) -> None:
    scene = PretendedLoss(tmp_path)
    for node in scene.rest.nodes:
        with pytest.raises(Duplicate, match="consent to sums of attempt 1"):
            scene.clients[node].release(FIRST, release_of(scene.rest))


@pytest.mark.parametrize("invited", [(2, 3, 5, 8), (2, 3, 5)])
def test_nor_do_they_in_another_attempt(invited: tuple[int, ...], tmp_path: Path) -> None:
    scene, again = PretendedLoss(tmp_path), Call(RUN, 1, 2)
    asked = {node: scene.clients[node] for node in invited}
    trained = {node: client.train(again, invitation(invited)) for node, client in asked.items()}
    cohort = cohort_of(trained, scene.fed.roster)
    sent = {
        node: client.contribute(again, announcement(cohort, trained, invited, node)).frames["contribution"]
        for node, client in asked.items()
    }
    total = add_up(scene.fed, cohort, again, trained, sent)
    for node in (2, 3, 5):
        with pytest.raises(CohortRefused, match="the difference of two sums from the same starting model"):
            asked[node].release(again, release_of(claimed(total, frozenset({2, 3, 5}))))


def test_the_second_sum_would_have_exposed_the_one_left_out(tmp_path: Path) -> None:
    """The control: with a sum of the others, two weighted sums give the missing client's model."""
    scene = PretendedLoss(tmp_path)
    plan, fed, cohort = scene.plan, scene.fed, scene.whole.cohort
    layout, secret = build_network(plan, (5,), 4, RUN).layout, scene.waiting[8]
    opened = open_sum(scene.whole.aggregate, RUN, 1, fed.kits[2], plan, layout).values
    rest = np.zeros_like(opened)
    for node in sorted(scene.rest.nodes):
        pending = scene.waiting[node]
        rest += quantised(pending, cohort, node, plan, dither_of(plan, FIRST, node, pending.values.size))[0]
    exposed = (opened - rest) * secret.step * cohort.samples / next(m.samples for m in cohort.members if m.node == 8)
    assert np.abs(exposed - secret.values).max() < 50 * secret.step.max()
