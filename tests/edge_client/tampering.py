"""What somebody who does not keep to the protocol makes of contributions and of their sums."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from aggregator.summation import MaskedSum
from edge_client.dealing import Secrets
from edge_client.keys import Kit
from protocol.bits import Words
from protocol.ciphertext import Seal, Summer, restore, truncate
from protocol.cohort import Cohort
from protocol.frame import signed
from protocol.openings import Nodes
from protocol.pairwise import mask, self_key
from protocol.parameters import MODULUS, Parameters
from protocol.plan import Plan
from protocol.wire import Aggregate, Contribution, decode_contribution, encode_contribution
from tests.factories import RUN


def spoilt(contribution: bytes, cohort: Cohort, kit: Kit, plan: Plan) -> bytes:
    """Random residues in place of a node's own, signed by it."""
    p, own = plan.parameters, next(member for member in cohort.members if member.node == kit.node)
    sent = decode_contribution(contribution, own, len(cohort.members), p, kit.roster)
    noise = np.random.default_rng(kit.node).integers(MODULUS >> p.drop_up, size=sent.first.size, dtype=np.uint64)
    body = encode_contribution(replace(sent, first=noise), p)
    return signed(body, kit.sign(body))


def claimed(total: MaskedSum, *sets: Nodes) -> MaskedSum:
    """The same sum as if these were whose contributions are in it, one set for each of the first groups."""
    parts = tuple(replace(total.parts[0], group=group, nodes=nodes) for group, nodes in enumerate(sets))
    return replace(total, parts=parts)


def ciphertext_sum(
    parameters: Parameters, parts: Iterable[tuple[Words, tuple[bytes, ...]]], **fields: Any
) -> Aggregate:
    """The bare sum of encrypted slots as an aggregate, in the form that any number of summands takes."""
    machine = Seal(parameters)
    total, count, size = Summer(machine), 0, 0
    for first, seeds in parts:
        total.add(restore(first, parameters.drop_up), seeds)
        count, size = count + 1, first.size
    first_half, second_half = total.halves()
    machine.close()
    head: dict[str, Any] = {
        "run": RUN, "round": 1, "attempt": 1, "clients": count, "members": count, "group": 0, "weight": 1, "total": 1,
        "voucher": bytes(32), "values": 1, "votes": 0, "plan": bytes(32), "key": bytes(16), "cohort": bytes(32),
        "support": bytes(32), "sealed": b"",
    }  # fmt: skip
    used = truncate(first_half.ravel()[:size], parameters.drop_down)
    return Aggregate(**{**head, "first": used, "second": second_half, **fields})


def unmasked(
    parameters: Parameters, parts: Sequence[tuple[int, Contribution]], secrets: Mapping[int, Secrets], digest: bytes
) -> tuple[Words, Words]:
    """What contributions add up to without the masks of their own, as an aggregator knows them after the release.

    Args:
        parameters: The plan's.
        parts: Nodes and their contributions; one may stand in it several times.
        secrets: What each node masked it with.
        digest: Of the cohort that it was masked for.
    """
    p, machine = parameters, Seal(parameters)
    total, size = Summer(machine), parts[0][1].first.size
    left = np.zeros(size, np.uint64)
    for node, each in parts:
        total.add(restore(each.first, p.drop_up), each.seeds)
        own = mask(size, node, self_key(secrets[node].seed, digest, node), {}, p.plain_modulus)
        left = (left + own) % np.uint64(p.plain_modulus)
    total.unmask(left)
    first, second = total.halves()
    machine.close()
    return truncate(first.ravel()[:size], p.drop_down), second
