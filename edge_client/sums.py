"""What a client does with an aggregate: decrypt the sum, and derive the state that every client derives from it.

No I/O happens here.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from edge_client.cipher import RoundCipher
from edge_client.keys import CohortSecret, Opener
from edge_client.learning.network import Network
from edge_client.sparsify.interface import GlobalState, Sparsifier
from protocol.attendance import Attendance
from protocol.errors import CohortRefused, MalformedMessage, PeerMismatch, Spoiled
from protocol.figures import NOTHING, Figures
from protocol.grid import Integers, dequantise, steps
from protocol.layout import Layout
from protocol.payload import unpack_payload
from protocol.plan import Plan
from protocol.support import scatter
from protocol.terms import Terms, decode_terms, support_digest
from protocol.wire import Aggregate, aggregates, decode_aggregate

_TAG_HEAD = struct.Struct("<16s6I32s32s")
_VOUCHED = struct.Struct("<16s5I2Q32s")


@dataclass(frozen=True)
class Told:
    """What a client says of the sum that a round begins with.

    Attributes:
        figures: What the clients in it have measured.
        spoiled: Which of its groups' sums are none, a bit for each.
    """

    figures: Figures = NOTHING
    spoiled: int = 0


UNTOLD: Final = Told()
"""What there is to say in the first round."""


@dataclass(frozen=True, eq=False)
class Sum:
    """A decrypted sum, of a whole cohort or of those of its groups whose sums are not spoiled.

    Attributes:
        terms: The terms under which it was made.
        clients: How many clients it holds.
        whole: By what its values have to be multiplied to stand for a mean: 1 where no member is missing.
        values: i64[n].
        votes: i64[n], or i64[0].
        told: What its clients have measured, summed, and which groups are missing.
    """

    terms: Terms
    clients: int
    whole: float
    values: Integers
    votes: Integers
    told: Told


def open_sum(data: bytes, run: bytes, round_: int, kit: Opener, plan: Plan, layout: Layout) -> Sum:
    """Decrypt the aggregates of a round; the one after the last round of training holds figures alone.

    Where a cohort was divided, the sums of its groups are added up, all but those that are spoiled.

    Args:
        data: The encoded aggregate, or those of groups end to end.
        run: The run that it must belong to.
        round_: The round that it must be of.
        kit: Holds the cohort secret and the roster.
        plan: The plan that it must have been made under.
        layout: The layout of the model.

    Raises:
        MalformedMessage: It does not parse, or nobody vouches for it.
        Spoiled: It does not decrypt to a sum of its clients, and neither does that of another group.
        PeerMismatch: It belongs to another run, round, plan or key, or not all of them do to one cohort.
        CohortRefused: It is a sum of fewer clients than the plan allows.
    """
    admitted = [_admitted(each, run, round_, kit, plan) for each in _bounded(data, layout)]
    if not admitted:
        raise MalformedMessage("there is no aggregate")
    first = admitted[0]
    for one, other in pairwise(admitted):
        for field in ("attempt", "cohort", "members", "total", "support"):
            if getattr(one, field) != getattr(other, field):
                raise PeerMismatch(field, getattr(one, field), getattr(other, field))
        if one.group >= other.group:
            raise PeerMismatch("group", f"one after {one.group}", other.group)
    terms = decode_terms(kit.secret.unseal(first.sealed, run, round_), layout)
    expected = len(terms.support) if round_ <= plan.rounds else 0
    if wrong := [one.values for one in admitted if one.values != expected]:
        raise PeerMismatch("values", expected, wrong[0])
    opened, spoiled = [], 0
    for place, aggregate in enumerate(admitted):
        try:
            opened.append((aggregate, _decrypted(aggregate, kit, plan)))
        except Spoiled:
            if place + 1 == len(admitted) and not opened:
                raise
            spoiled |= 1 << place
    return Sum(
        terms,
        sum(aggregate.clients for aggregate, _ in opened),
        first.total / sum(aggregate.weight for aggregate, _ in opened),
        np.sum([values for _, (values, _, _) in opened], axis=0),
        np.sum([votes for _, (_, votes, _) in opened], axis=0),
        Told(sum((figures for _, (_, _, figures) in opened), NOTHING), spoiled),
    )


def _bounded(data: bytes, layout: Layout) -> Iterator[bytes]:
    """The aggregates, none of which says that it holds more than the model does."""
    for each, head in aggregates(data):
        if head["values"] > layout.size or head["votes"] not in (0, head["values"]):
            raise PeerMismatch("values and votes", f"{layout.size} at most", f"{head['values']} and {head['votes']}")
        yield each


def _admitted(data: bytes, run: bytes, round_: int, kit: Opener, plan: Plan) -> Aggregate:
    """An aggregate whose head is as it must be."""
    aggregate = decode_aggregate(data, plan.parameters)
    for field, ours, theirs in (
        ("run", run, aggregate.run),
        ("round", round_, aggregate.round),
        ("plan", plan.digest, aggregate.plan),
        ("key", kit.roster.key_id(run, round_), aggregate.key),
        ("support", support_digest(aggregate.sealed), aggregate.support),
    ):
        if ours != theirs:
            raise PeerMismatch(field, ours, theirs)
    if aggregate.clients < plan.min_cohort:
        raise CohortRefused(f"the aggregate holds {aggregate.clients} clients; the plan asks for {plan.min_cohort}")
    counts, weights = (aggregate.clients, aggregate.members), (aggregate.weight, aggregate.total)
    if voucher(kit.secret, aggregate, aggregate.cohort, aggregate.group, counts, weights) != aggregate.voucher:
        raise MalformedMessage("no member of the cohort vouches for what the aggregate says of itself")
    return aggregate


def _decrypted(aggregate: Aggregate, kit: Opener, plan: Plan) -> tuple[Integers, Integers, Figures]:
    """The values, votes and figures of one aggregate."""
    p = plan.parameters
    with RoundCipher(p, kit.secret.bfv_seed(aggregate.run, aggregate.round)) as cipher:
        slots = cipher.decrypt(aggregate)
    key = tag_key(kit.secret, aggregate, aggregate.members, aggregate.cohort, aggregate.group)
    return unpack_payload(slots, aggregate.clients, aggregate.values, aggregate.votes, key, p)


def tag_key(secret: CohortSecret, like: Attendance | Aggregate, members: int, cohort: bytes, group: int) -> bytes:
    """The key of the tags of one group in one attempt, 64 bytes: all of a sum's head that its members know beforehand.

    Args:
        secret: The cohort secret.
        like: Names the run, round, attempt, sizes and sealed terms: a member's attendance, or the sum.
        members: How many members the cohort has.
        cohort: Its digest, 32 bytes.
        group: The place of the group; 0 where the cohort is not divided.
    """
    numbers = (like.round, like.attempt, members, group, like.values, like.votes)
    return secret.tag_key(_TAG_HEAD.pack(like.run, *numbers, cohort, like.support))


def voucher(
    secret: CohortSecret,
    like: Attendance | Aggregate,
    cohort: bytes,
    group: int,
    counts: tuple[int, int],
    weights: tuple[int, int],
) -> bytes:
    """What vouches for whose sum an aggregate is, 32 bytes; members make it when they consent to the release.

    Args:
        secret: The cohort secret.
        like: Names the run, round and attempt: a member's attendance, or the sum.
        cohort: The digest of the announced cohort.
        group: The place of the group; 0 where the cohort is not divided.
        counts: How many clients are in the sum, and how many members the cohort has.
        weights: What the ones and the others count for, together.
    """
    return secret.voucher(_VOUCHED.pack(like.run, like.round, like.attempt, *counts, group, *weights, cohort))


def next_state(total: Sum, round_: int, plan: Plan, layout: Layout, method: Sparsifier) -> GlobalState:
    """The state after a round, from its sum: merge, then purge. The same on every client."""
    support = total.terms.support
    step = steps(total.terms.clips, layout, support, plan.parameters.grid) * total.whole
    mean = scatter(dequantise(total.values, step), support)
    votes = np.zeros(layout.size, np.int64)
    if total.votes.size:
        votes[support.positions] = total.votes
    merged = GlobalState(round_, mean, support.mask)
    kept = method.survivors(mean, votes, total.clients, layout, merged)
    return GlobalState(round_, np.where(kept, mean, np.float32(0)), kept)


def state_after(aggregate: bytes, run: bytes, round_: int, kit: Opener, plan: Plan, network: Network) -> GlobalState:
    """Open the aggregate of a round: the state that every client derives from it."""
    total = open_sum(aggregate, run, round_, kit, plan, network.layout)
    return next_state(total, round_, plan, network.layout, network.method)
