"""The golden vectors of keys and secrets: what was derived, shared and dealt once is read for ever."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_client.dealing import take
from edge_client.keys import CohortSecret
from edge_client.sums import tag_key, voucher
from protocol.attendance import SHARE_BYTES, decode_attendance
from protocol.call import Call
from protocol.pairwise import keystream, mask, pair_key, self_key
from protocol.roster import Roster
from protocol.sharing import COMMITMENT_BYTES, SECRET_BYTES, commit, dealt_digest, join
from protocol.tag import tag
from tests import factories
from tests.protocol.replaying import Case, parameters, read, roster
from tests.vectors.golden_keys import KEYS


def replay_keys(case: Case) -> None:
    secret, run = CohortSecret(bytes.fromhex(case["secret"])), bytes.fromhex(case["run"])
    assert secret.id.hex() == case["cohort_id"]
    assert Roster(secret.id, {}).key_id(run, case["round"]).hex() == case["key_id"]
    assert secret.bfv_seed(run, case["round"]).hex() == case["bfv_seed"]


def replay_tag(case: Case) -> None:
    p, member = parameters(case), decode_attendance(bytes.fromhex(case["attendance"]), roster())
    secret, cohort = CohortSecret(bytes.fromhex(case["secret"])), bytes.fromhex(case["cohort"])
    key = tag_key(secret, member, case["members"], cohort, case["group"])
    assert (key.hex(), p.plain_modulus, p.tag_bits) == (case["key"], case["modulus"], case["factor_bits"])
    assert [tag(np.array(each), 1, key, p).tolist() for each in case["summands"]] == case["tags"]
    assert np.sum(case["summands"], axis=0).tolist() == case["sum"]
    assert tag(np.array(case["sum"]), case["clients"], key, p).tolist() == case["tag"]
    assert [sum(column) % p.plain_modulus for column in zip(*case["tags"], strict=True)] == case["tag"]


def replay_voucher(case: Case) -> None:
    secret, cohort = CohortSecret(bytes.fromhex(case["secret"])), bytes.fromhex(case["cohort"])
    member = decode_attendance(bytes.fromhex(case["attendance"]), roster())
    (clients, members), (weight, total) = case["counts"], case["weights"]
    assert voucher(secret, member, cohort, case["group"], (clients, members), (weight, total)).hex() == case["voucher"]


def replay_pairwise(case: Case) -> None:
    (one, other), cohort = case["nodes"], bytes.fromhex(case["cohort"])
    key = pair_key(bytes.fromhex(case["secret"]), cohort, (one, other))
    own = [self_key(bytes.fromhex(seed), cohort, node) for seed, node in zip(case["seeds"], (one, other), strict=True)]
    assert (key.hex(), [each.hex() for each in own]) == (case["key"], case["own_keys"])
    size, modulus = len(case["stream"]), case["modulus"]
    assert keystream(key, size, modulus).tolist() == case["stream"]
    assert mask(size, one, own[0], {other: key}, modulus).tolist() == case[f"mask_of_{one}"]
    assert mask(size, other, own[1], {one: key}, modulus).tolist() == case[f"mask_of_{other}"]


def replay_sharing(case: Case) -> None:
    shares = {node: bytes.fromhex(share) for node, share in zip(case["nodes"], case["shares"], strict=True)}
    for size in range(case["threshold"], len(shares) + 1):
        for chosen in combinations(shares, size):
            assert join({node: shares[node] for node in chosen}).hex() == case["secret"]
    prime, polynomial = (1 << 255) - 19, [int.from_bytes(bytes.fromhex(c), "little") for c in case["polynomial"]]
    assert len(polynomial) == case["threshold"]
    for node, share in shares.items():
        value = sum(coefficient * (node + 1) ** power for power, coefficient in enumerate(polynomial)) % prime
        assert share == value.to_bytes(SECRET_BYTES, "little")
    assert commit(bytes.fromhex(case["secret"])).hex() == case["commitment"]
    assert [commit(share, COMMITMENT_BYTES).hex() for share in shares.values()] == case["commitments"]


def replay_dealing(case: Case) -> None:
    member, dealt = decode_attendance(bytes.fromhex(case["attendance"]), roster()), bytes.fromhex(case["dealt"])
    kits, call = factories.kits(factories.plan(), roster().nodes), Call(member.run, member.round, member.attempt)
    one_each = [dealt[i : i + SHARE_BYTES] for i in range(0, len(dealt), SHARE_BYTES)]
    taken = {}
    for node, one in zip(case["invited"], one_each, strict=True):
        (taken[node],) = take(one, [member], call, kits[node])
    assert [share and share.hex() for share in taken.values()] == case["taken"]
    quorum = {node: share for node, share in taken.items() if share is not None}
    assert len(quorum) >= case["threshold"]
    exchange = join({node: share[:SECRET_BYTES] for node, share in quorum.items()})
    assert X25519PrivateKey.from_private_bytes(exchange).public_key().public_bytes_raw() == member.exchange
    assert commit(join({node: share[SECRET_BYTES:] for node, share in quorum.items()})) == member.seed
    assert dealt_digest(dealt).hex() == case["digest"]


REPLAYS: dict[str, Callable[[Case], None]] = {
    "keys": replay_keys,
    "tag": replay_tag,
    "voucher": replay_voucher,
    "pairwise": replay_pairwise,
    "sharing": replay_sharing,
    "dealing": replay_dealing,
}


@pytest.mark.parametrize("kind", KEYS)
def test_the_code_still_derives_and_shares_what_it_did(kind: str) -> None:
    cases = read(kind)
    assert cases
    for case in cases:
        REPLAYS[kind](case)
