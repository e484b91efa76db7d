"""Attack 11: record every frame, and steal a kit later, with the cohort secret and the state folder in it.

The round keys follow from the cohort secret, so whoever has it decrypts every contribution. What is left then is the
masks, which were made from secrets of that attempt alone.
"""

from pathlib import Path

import numpy as np
import pytest

from edge_client.cipher import RoundCipher
from edge_client.dealing import Secrets
from edge_client.keys import Kit
from protocol.call import Call
from protocol.grid import Integers
from protocol.lanes import Slots, unpack
from protocol.pairwise import mask, pair_key, self_key
from protocol.wire import decode_contribution
from tests.attacks.hostile import NODES, VICTIM, Hostile, correlation, loud_plan
from tests.edge_client.federation import RUN
from tests.edge_client.tampering import ciphertext_sum

FIRST, SECOND = Call(RUN, 1, 1), Call(RUN, 2, 1)


@pytest.fixture
def hostile(tmp_path: Path) -> Hostile:
    return Hostile(tmp_path, loud_plan())


class Recorded:
    """The victim's contribution to the first round, and what a holder of the cohort secret makes of it."""

    def __init__(self, hostile: Hostile) -> None:
        self.trained = hostile.train(FIRST, NODES)
        self.cohort = hostile.cohort(self.trained, NODES)
        announced = hostile.announced(FIRST, self.trained, NODES, VICTIM)
        self.frame = hostile.clients[VICTIM].contribute(FIRST, announced).frames["contribution"]
        self.secret = hostile.pending(VICTIM)
        self.p = hostile.plan.parameters

    def decrypted(self, hostile: Hostile, kit: Kit) -> Slots:
        member = next(member for member in self.cohort.members if member.node == VICTIM)
        read = decode_contribution(self.frame, member, len(NODES), self.p, hostile.fed.roster)
        with RoundCipher(self.p, kit.secret.bfv_seed(RUN, 1)) as cipher:
            return cipher.decrypt(ciphertext_sum(self.p, [(read.first, read.seeds)]))

    def values(self, slots: Slots) -> Integers:
        size = self.secret.values.size
        return unpack(slots[: self.p.values.slots(size + self.p.trailing)], size + self.p.trailing, self.p.values)[
            :size
        ]

    def masks(self, secrets: Secrets) -> Slots:
        """What hides the contribution, from the secrets that made it."""
        digest = self.cohort.digest(1)
        others = [member for member in self.cohort.members if member.node != VICTIM]
        keys = {m.node: pair_key(secrets.shared(m.exchange), digest, (VICTIM, m.node)) for m in others}
        size = self.p.slots(self.secret.values.size, 0)
        return mask(size, VICTIM, self_key(secrets.seed, digest, VICTIM), keys, self.p.plain_modulus)


@pytest.mark.parametrize("stolen", NODES)
def test_a_kit_that_is_stolen_after_the_next_round_has_begun_opens_no_recorded_update(
    stolen: int, hostile: Hostile
) -> None:
    """Not even that of the client whose kit it is."""
    recorded = Recorded(hostile)
    last = hostile.sum_of(FIRST, recorded.trained, NODES)
    hostile.train(SECOND, NODES, last)
    seen = recorded.values(recorded.decrypted(hostile, hostile.fed.kits[stolen]))
    assert correlation(seen, recorded.secret.values) < 0.05 + 3 / seen.size**0.5
    left = b"".join(path.read_bytes() for path in hostile.state_folder(stolen).rglob("*") if path.is_file())
    for one in (recorded.secret.secrets.exchange, recorded.secret.secrets.seed):
        assert one not in left
        assert one.hex().encode() not in left


def test_one_whose_state_is_stolen_during_the_round_is_exposed(hostile: Hostile) -> None:
    """The control: with the secrets of the attempt, what was recorded is the update."""
    recorded = Recorded(hostile)
    masked = recorded.decrypted(hostile, hostile.fed.kits[VICTIM])
    t = np.uint64(recorded.p.plain_modulus)
    seen = recorded.values((masked + t - recorded.masks(hostile.pending(VICTIM).secrets)) % t)
    assert correlation(seen, recorded.secret.values) > 0.99
