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
from tests.vectors.scene import COHORT, KITS, MEMORY, NODES, PLAN, Case, aggregate_of, blake2b, fields


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
    """One attendance per node, and one of a node that remembers two attempts."""
    later = factories.attend(KITS[2], votes=7, attempt=3, memory=MEMORY)
    return [
        {"fields": fields(made), "memory": encode_memory(made.memory).hex(), "encoded": data.hex()}
        for data in (*COHORT.encoded, later)
        for made in [decode_attendance(data, KITS[1].roster)]
    ]


def cohort_vectors() -> list[Case]:
    """An announced cohort, what its members count for, and its name in two attempts."""
    return [
        {
            "encoded": COHORT.encode().hex(),
            "nodes": sorted(COHORT.nodes),
            "samples": COHORT.samples,
            "most": most,
            "weights": list(COHORT.weights(most).values()),
            "attempt": attempt,
            "digest": COHORT.digest(attempt).hex(),
        }
        for attempt, most in ((1, 0.5), (2, 0.335))
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
    """The release of all members of a cohort, and of two of them, with the terms and without."""
    made = []
    for nodes, terms in ((NODES, True), (NODES, False), ((1, 300), True)):
        release = Release(factories.RUN, 1, 1, len(NODES), COHORT.digest(1), terms, frozenset(nodes))
        made.append({"fields": fields(release), "nodes": list(nodes), "encoded": encode_release(release).hex()})
    return made


def consent_vectors() -> list[Case]:
    """One consent per node, with shares that count up; the first node's carries the sealed terms."""
    made = []
    for node in NODES:
        consent = Consent(
            run=factories.RUN,
            round=1,
            attempt=1,
            node=node,
            members=len(NODES),
            cohort=COHORT.digest(1),
            voucher=bytes(range(0x60, 0x80)),
            shares=(bytes(range(32)), bytes(range(1, 33)), bytes(32)),
            sealed=factories.SEALED if node == NODES[0] else b"",
        )
        body = encode_consent(consent)
        made.append(
            {
                "fields": fields(consent),
                "shares": [share.hex() for share in consent.shares],
                "encoded": signed(body, KITS[node].sign(body)).hex(),
            }
        )
    return made


def aggregate_vectors() -> list[Case]:
    """Both forms of the second half; the longer one is named by its digest."""
    p = PLAN.parameters
    summed = (np.arange(DEGREE, dtype=np.uint64) << np.uint64(48)).reshape(1, DEGREE)
    made = []
    for second in ((factories.dummy_seeds(3),), summed):
        aggregate = aggregate_of(factories.dummy_words(p.slots(7, 7), p.width_down), second, factories.SEALED)
        encoded = encode_aggregate(aggregate, p)
        vector = {
            "bits": PLAN.bits,
            "clients_at_most": PLAN.max_cohort,
            "fields": fields(aggregate),
            "residues": aggregate.first.tolist(),
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
