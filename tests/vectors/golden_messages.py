"""The golden vectors of messages, and of what stands in them."""

from typing import Final

import numpy as np

from protocol.attendance import decode_attendance
from protocol.frame import signed
from protocol.openings import Memory, Opening, encode_memory, nodes_digest
from protocol.parameters import DEGREE
from protocol.release import Consent, Release, encode_consent, encode_release
from protocol.wire import encode_aggregate
from tests import factories
from tests.vectors.scene import (
    COHORT,
    DIVIDED,
    GROUPS,
    KITS,
    MEMORY,
    NODES,
    PLAN,
    Case,
    aggregate_of,
    blake2b,
    fields,
)


def memory_vectors() -> list[Case]:
    """What nodes remember: nothing, one attempt without a sum, and more."""
    alone = Opening(frozenset(NODES), frozenset())
    nested = Opening(frozenset(range(10)), frozenset({frozenset(range(10)), frozenset(range(7))}))
    memories: list[Memory] = [frozenset(), frozenset({alone}), MEMORY, frozenset({nested})]
    return [
        {
            "openings": [
                {
                    "invited": sorted(opening.invited),
                    "digest": nodes_digest(opening.invited).hex(),
                    "sets": sorted(map(sorted, opening.sets)),
                }
                for opening in sorted(memory, key=lambda one: sorted(one.invited))
            ],
            "encoded": encode_memory(memory).hex(),
        }
        for memory in memories
    ]


def attendance_vectors() -> list[Case]:
    """One attendance per node, one of a node that remembers two attempts, and one that names spoiled sums."""
    later = factories.attend(KITS[2], votes=7, attempt=3, memory=MEMORY)
    spoiled = factories.attend(KITS[1], round=2, spoiled=1 << 63 | 0b10)
    return [
        {"fields": fields(made), "memory": encode_memory(made.memory).hex(), "encoded": data.hex()}
        for data in (*COHORT.encoded, later, spoiled)
        for made in [decode_attendance(data, KITS[1].roster)]
    ]


def cohort_vectors() -> list[Case]:
    """An announced cohort, whole and divided, what its members count for, and its name in two attempts."""
    return [
        {
            "encoded": cohort.encode().hex(),
            "nodes": sorted(cohort.nodes),
            "groups": [sorted(group) for group in cohort.groups],
            "samples": cohort.samples,
            "most": most,
            "weights": list(cohort.weights(most).values()),
            "attempt": attempt,
            "digest": cohort.digest(attempt).hex(),
        }
        for cohort, attempt, most in ((COHORT, 1, 0.5), (COHORT, 2, 0.335), (DIVIDED, 1, 0.5), (DIVIDED, 2, 0.335))
    ]


def contribution_vectors() -> list[Case]:
    """One contribution per node, with residues and seeds that count up; each lacks the shares of a later member."""
    made = []
    for place, (member, data) in enumerate(zip(COHORT.members, COHORT.encoded, strict=True)):
        held = tuple(other != place + 1 for other in range(len(COHORT.members)))
        sent = factories.contribution(KITS[member.node], COHORT, PLAN.parameters, held=held)
        made.append(
            {
                "attendance": data.hex(),
                "bits": PLAN.bits,
                "clients_at_most": PLAN.max_cohort,
                "fields": fields(sent),
                "held": list(held),
                "residues": sent.first.tolist(),
                "encoded": factories.contribute(KITS[member.node], COHORT, PLAN.parameters, held=held).hex(),
            }
        )
    return made


def release_vectors() -> list[Case]:
    """The release of all members of a cohort and of two of them, with terms and without; of two groups and of one."""
    whole, fewer, part = frozenset(NODES), frozenset({1, 300}), frozenset({70_000})
    made = []
    for cohort, sets, terms in (
        (COHORT, (whole,), True),
        (COHORT, (whole,), False),
        (COHORT, (fewer,), True),
        (DIVIDED, GROUPS, True),
        (DIVIDED, (part, GROUPS[1]), False),
        (DIVIDED, GROUPS[1:], False),
    ):
        release = Release(factories.RUN, 1, 1, len(cohort.members), cohort.digest(1), terms, sets)
        listed = [sorted(one) for one in sets]
        made.append({"fields": fields(release), "sets": listed, "encoded": encode_release(release).hex()})
    return made


def consent_vectors() -> list[Case]:
    """One consent per node, with shares that count up, and one to two sums; the first node's carry the sealed terms."""
    vouchers, made = (bytes(range(0x60, 0x80)), bytes(range(0x80, 0xA0))), []
    for node, cohort, sums in (*((node, COHORT, 1) for node in NODES), (NODES[0], DIVIDED, 2)):
        shares = [bytes(range(start, start + 32)) for start in range(len(cohort.members) - 1)]
        consent = Consent(
            run=factories.RUN,
            round=1,
            attempt=1,
            node=node,
            members=len(cohort.members),
            cohort=cohort.digest(1),
            vouchers=vouchers[:sums],
            shares=(*shares, bytes(32)),
            sealed=factories.SEALED if node == NODES[0] else b"",
        )
        body = encode_consent(consent)
        made.append(
            {
                "fields": fields(consent),
                "vouchers": [voucher.hex() for voucher in consent.vouchers],
                "shares": [share.hex() for share in consent.shares],
                "encoded": signed(body, KITS[node].sign(body)).hex(),
            }
        )
    return made


def aggregate_vectors() -> list[Case]:
    """Both forms of the second half, of which the longer one is named by its digest; and two groups end to end."""
    p = PLAN.parameters
    first = factories.dummy_words(p.slots(7, 7), p.width_down)
    summed = (np.arange(DEGREE, dtype=np.uint64) << np.uint64(48)).reshape(1, DEGREE)
    whole = [(aggregate_of(first, second, factories.SEALED),) for second in ((factories.dummy_seeds(3),), summed)]
    seeds = ((factories.dummy_seeds(2),), (factories.dummy_seeds(4)[2:],))
    groups = tuple(aggregate_of(first, second, factories.SEALED, DIVIDED, i) for i, second in enumerate(seeds))
    made = []
    for sums in (*whole, groups):
        encoded, second = b"".join(encode_aggregate(each, p) for each in sums), sums[0].second
        vector = {
            "bits": PLAN.bits,
            "clients_at_most": PLAN.max_cohort,
            "sums": [{"fields": fields(each), "residues": each.first.tolist()} for each in sums],
        }
        if isinstance(second, tuple):
            vector["encoded"] = encoded.hex()
        else:
            vector |= {"second": "word i is i * 2^48", "bytes": len(encoded), "blake2b": blake2b(encoded)}
        made.append(vector)
    return made


MESSAGES: Final = {
    "memory": memory_vectors,
    "attendance": attendance_vectors,
    "cohort": cohort_vectors,
    "contribution": contribution_vectors,
    "release": release_vectors,
    "consent": consent_vectors,
    "aggregate": aggregate_vectors,
}
