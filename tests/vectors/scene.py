"""What the vectors are made of: a plan, a federation of four nodes, cohorts of three and of all of them, and terms."""

import hashlib
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from edge_client.keys import CohortSecret
from edge_client.sums import voucher
from protocol.cohort import Cohort
from protocol.figures import Figures
from protocol.lanes import Slots
from protocol.openings import Memory, Nodes, Opening
from protocol.payload import pack_payload, unpack_payload
from protocol.plan import Plan
from protocol.support import Support
from protocol.terms import Terms
from protocol.wire import Aggregate
from tests import factories

Case = dict[str, Any]
"""One case of a vector, as JSON holds it."""
Bad = dict[str, tuple[str, Case]]
"""By name, the error that is expected, and of what."""
NODES: Final = (1, 2, 300)
"""The members of the cohort; one node more is on the roster."""
PLAN: Final = Plan(
    method="fedsparsify-global",
    sparsity=0.95,
    granularity="weight",
    rounds=40,
    fraction=1.0,
    min_cohort=3,
    max_cohort=5,
    colluders=1,
    max_share=0.5,
    bits=16,
    model="digits-mlp",
    data="digits",
    partition="iid",
    epochs=4,
    batch_size=16,
    learning_rate=0.1,
    momentum=0.0,
    proximal=0.0,
    seed=1990,
    deadline=600.0,
    attempts=10,
    options=(("exponent", 3.0), ("first-prune", 1), ("allocation", "global"), ("layer-floor", 0.01)),
)
KITS: Final = factories.kits(PLAN, (*NODES, 70_000))
COHORT: Final = factories.cohort({node: KITS[node] for node in NODES}, votes=7)
GROUPS: Final = (Nodes({1, 70_000}), Nodes({2, 300}))
DIVIDED: Final = factories.cohort(KITS, GROUPS, votes=7)
"""A cohort of all four; no plan has groups so small, but their bytes are like those of larger ones."""
MEMORY: Final[Memory] = frozenset(
    {
        Opening(frozenset(NODES), frozenset()),
        Opening(frozenset({*NODES, 70_000}), frozenset({frozenset(NODES)})),
    }
)
SHAPES: Final = (3, 5)
TERMS: Final = Terms(Support(np.array([0, 1, 2, 3, 5, 6, 7], np.int64), 8), np.array([0.5, 3.0], np.float32))


def aggregate_of(first: Slots, second: Any, sealed: bytes, cohort: Cohort = COHORT, group: int = 0) -> Aggregate:
    """The sum of all members of a cohort, or of one of its groups."""
    member, weights, digest = cohort.members[0], cohort.weights(PLAN.max_share), cohort.digest(1)
    counts = len(cohort.parts[group]), len(weights)
    weight, total = sum(weights[node] for node in cohort.parts[group]), sum(weights.values())
    return Aggregate(
        run=member.run,
        round=member.round,
        attempt=1,
        clients=counts[0],
        members=counts[1],
        group=group,
        weight=weight,
        total=total,
        values=member.values,
        votes=member.votes,
        plan=member.plan,
        key=member.key,
        cohort=digest,
        support=member.support,
        voucher=voucher(CohortSecret(factories.SECRET), member, digest, group, counts, (weight, total)),
        first=first,
        second=second,
        sealed=sealed,
    )


def fields(message: object) -> Case:
    """The fields of a message that JSON can hold, bytes in hex."""
    return {
        name: value.hex() if isinstance(value, bytes) else asdict(value) if isinstance(value, Figures) else value
        for name, value in vars(message).items()
        if isinstance(value, bytes | int | Figures)
    }


def blake2b(data: bytes) -> str:
    """What names data that is too long for a vector."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def payloads(votes: int) -> Case:
    """What three clients give, as slots, and what the slots of their sum hold."""
    p, key, total = PLAN.parameters, bytes(range(64)), np.zeros(PLAN.parameters.slots(7, votes), np.uint64)
    made = []
    for i in range(3):
        integers, chosen = np.arange(7) * 1000 - 3000 * i, (np.arange(votes) + i) % 2
        figures = Figures(-7 * i, i, 10 + i, 20 + i, 123_456_789 * i, 64, 60 - i)
        slots = pack_payload(integers, chosen, figures, key, p)
        given = {"integers": integers.tolist(), "votes": chosen.tolist(), "figures": asdict(figures)}
        made.append({**given, "slots": slots.tolist()})
        total = (total + slots) % np.uint64(p.plain_modulus)
    integers, chosen, figures = unpack_payload(total, 3, 7, votes, key, p)
    return {
        "key": key.hex(),
        "bits": PLAN.bits,
        "clients_at_most": PLAN.max_cohort,
        "clients": 3,
        "payloads": made,
        "slots": total.tolist(),
        "values": integers.tolist(),
        "votes": chosen.tolist(),
        "figures": asdict(figures),
    }
