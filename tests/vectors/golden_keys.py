"""The golden vectors of keys and secrets: what is derived, what is shared, and what masks are made from."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Final
from unittest.mock import patch

import numpy as np

from edge_client.dealing import deal, take
from edge_client.keys import CohortSecret
from edge_client.sums import tag_key, voucher
from protocol.attendance import SHARE_BYTES
from protocol.call import Call
from protocol.grid import Grid
from protocol.pairwise import keystream, mask, pair_key, self_key
from protocol.parameters import Parameters
from protocol.sharing import COMMITMENT_BYTES, commit, dealt_digest, threshold
from protocol.tag import tag
from tests import factories
from tests.vectors.scene import COHORT, DIVIDED, GROUPS, KITS, NODES, PLAN, Case

_PRIME: Final = (1 << 255) - 19
_SECRETS: Final = {node: factories.secrets(node) for node in NODES}


def keys_vectors() -> list[Case]:
    """The public names of the keys, and the seed of a round's BFV key."""
    secret = CohortSecret(factories.SECRET)
    return [
        {
            "secret": factories.SECRET.hex(),
            "cohort_id": secret.id.hex(),
            "run": factories.RUN.hex(),
            "round": round_,
            "key_id": KITS[1].roster.key_id(factories.RUN, round_).hex(),
            "bfv_seed": secret.bfv_seed(factories.RUN, round_).hex(),
        }
        for round_ in (1, 2, (1 << 32) - 1)
    ]


def tag_vectors() -> list[Case]:
    """The key of a tag, of a group too, and the tags of some clients and of their sum, modulo different numbers."""
    made = []
    for cohort, group, bits, clients in (
        (COHORT, 0, 16, 5),
        (COHORT, 0, 8, 10),
        (COHORT, 0, 24, 1000),
        (DIVIDED, 1, 16, 5),
    ):
        p, member = Parameters(Grid(bits, clients)), cohort.members[0]
        key = tag_key(CohortSecret(factories.SECRET), member, len(cohort.members), cohort.digest(1), group)
        third = p.grid.levels // 3
        summands = [[third, -third, 0, i, 1] for i in range(3)]
        total = np.sum(summands, axis=0)
        made.append(
            {
                "secret": factories.SECRET.hex(),
                "attendance": cohort.encoded[0].hex(),
                "members": len(cohort.members),
                "cohort": cohort.digest(1).hex(),
                "group": group,
                "clients": 3,
                "key": key.hex(),
                "bits": bits,
                "clients_at_most": clients,
                "modulus": p.plain_modulus,
                "factor_bits": p.tag_bits,
                "summands": summands,
                "tags": [tag(np.array(each), 1, key, p).tolist() for each in summands],
                "sum": total.tolist(),
                "tag": tag(total, 3, key, p).tolist(),
            }
        )
    return made


def voucher_vectors() -> list[Case]:
    """What vouches for a sum of all members of a cohort, of two of them, and of each of two groups."""
    secret, made = CohortSecret(factories.SECRET), []
    sums = ((COHORT, 0, NODES), (COHORT, 0, (1, 300)), *((DIVIDED, i, group) for i, group in enumerate(GROUPS)))
    for cohort, group, inside in sums:
        weights, digest = cohort.weights(PLAN.max_share), cohort.digest(1)
        counts, sizes = (len(inside), len(weights)), (sum(weights[node] for node in inside), sum(weights.values()))
        made.append(
            {
                "secret": factories.SECRET.hex(),
                "attendance": cohort.encoded[0].hex(),
                "cohort": digest.hex(),
                "group": group,
                "counts": list(counts),
                "weights": list(sizes),
                "voucher": voucher(secret, cohort.members[0], digest, group, counts, sizes).hex(),
            }
        )
    return made


def pairwise_vectors() -> list[Case]:
    """The key of a pair and of a node's own mask, the stream of the pair, and the masks of both."""
    one, other = _SECRETS[1], _SECRETS[300]
    secret, digest = one.shared(other.public), COHORT.digest(1)
    key = pair_key(secret, digest, (1, 300))
    own = {node: self_key(_SECRETS[node].seed, digest, node) for node in (1, 300)}
    return [
        {
            "secret": secret.hex(),
            "seeds": [one.seed.hex(), other.seed.hex()],
            "cohort": digest.hex(),
            "nodes": [1, 300],
            "key": key.hex(),
            "own_keys": [own[1].hex(), own[300].hex()],
            "modulus": modulus,
            "stream": keystream(key, 5, modulus).tolist(),
            "mask_of_1": mask(5, 1, own[1], {300: key}, modulus).tolist(),
            "mask_of_300": mask(5, 300, own[300], {1: key}, modulus).tolist(),
        }
        for modulus in (2, 3, 65_557**3, 3 << 57, (1 << 59) - 1)
    ]


def sharing_vectors() -> list[Case]:
    """The shares of secrets whose polynomials are known, and what names them."""
    made = []
    for secret, least, nodes in (
        (_SECRETS[1].exchange, 3, (1, 2, 300)),
        (_SECRETS[1].seed, 4, (0, 1, 2, 300, 70_000, (1 << 32) - 1)),
        (bytes(32), 2, (1, 2, 3)),
        ((_PRIME - 1).to_bytes(32, "little"), 1, (7, 8)),
    ):
        shares = _split(secret, least, nodes)
        made.append(
            {
                "secret": secret.hex(),
                "polynomial": [number.to_bytes(32, "little").hex() for number in _polynomial(secret, least)],
                "threshold": least,
                "nodes": list(nodes),
                "shares": [shares[node].hex() for node in nodes],
                "commitment": commit(secret).hex(),
                "commitments": [commit(shares[node], COMMITMENT_BYTES).hex() for node in nodes],
            }
        )
    return made


def _polynomial(secret: bytes, least: int) -> list[int]:
    """Coefficients that anybody can compute from a secret, which is the first of them."""
    digests = [hashlib.blake2b(secret + bytes([power]), digest_size=32).digest() for power in range(1, least)]
    return [int.from_bytes(number, "little") % _PRIME for number in (secret, *digests)]


def _split(secret: bytes, least: int, nodes: Iterable[int]) -> dict[int, bytes]:
    """As `protocol.sharing.split`, without chance."""
    polynomial = _polynomial(secret, least)
    values = {node: sum(c * (node + 1) ** power for power, c in enumerate(polynomial)) % _PRIME for node in nodes}
    return {node: value.to_bytes(32, "little") for node, value in values.items()}


def dealing_vectors() -> list[Case]:
    """What each node of a cohort deals the others, and what they take from it."""
    call, made = Call(factories.RUN, 1, 1), []
    for place, node in enumerate(NODES):
        with patch("edge_client.dealing.split", _split):
            dealt = deal(_SECRETS[node], frozenset(NODES), call, KITS[node], PLAN.colluders)
        made.append(
            {
                "attendance": COHORT.encoded[place].hex(),
                "invited": list(NODES),
                "threshold": threshold(len(NODES), PLAN.colluders),
                "dealt": dealt.hex(),
                "digest": dealt_digest(dealt).hex(),
                "taken": _taken(dealt, place, call),
            }
        )
    return made


def _taken(dealt: bytes, dealer: int, call: Call) -> Sequence[Any]:
    one_each = [dealt[i * SHARE_BYTES : (i + 1) * SHARE_BYTES] for i in range(len(NODES))]
    members = COHORT.members[dealer : dealer + 1]
    taken = [next(take(one, members, call, KITS[node])) for node, one in zip(NODES, one_each, strict=True)]
    return [share.hex() if share else None for share in taken]


KEYS: Final = {
    "keys": keys_vectors,
    "tag": tag_vectors,
    "voucher": voucher_vectors,
    "pairwise": pairwise_vectors,
    "sharing": sharing_vectors,
    "dealing": dealing_vectors,
}
