"""What a client does with an aggregate: decrypt the sum, and derive the state that every client derives from it.

No I/O happens here.
"""

import struct
from dataclasses import dataclass

import numpy as np

from edge_client.cipher import RoundCipher
from edge_client.keys import CohortSecret, Opener
from edge_client.learning.network import Network
from edge_client.sparsify.interface import GlobalState, Sparsifier
from protocol.attendance import Attendance
from protocol.errors import CohortRefused, MalformedMessage, PeerMismatch
from protocol.figures import Figures
from protocol.grid import Integers, dequantise, steps
from protocol.layout import Layout
from protocol.payload import unpack_payload
from protocol.plan import Plan
from protocol.support import scatter
from protocol.terms import Terms, decode_terms, support_digest
from protocol.wire import Aggregate, announced_sizes, decode_aggregate

_TAG_HEAD = struct.Struct("<16s5I32s32s")
_VOUCHED = struct.Struct("<16s4I2Q32s")


@dataclass(frozen=True, eq=False)
class Sum:
    """A decrypted sum.

    Attributes:
        terms: The terms under which it was made.
        clients: How many clients it holds.
        whole: By what its values have to be multiplied to stand for a mean: 1 where no member is missing.
        values: i64[n].
        votes: i64[n], or i64[0].
        figures: What its clients have measured, summed.
    """

    terms: Terms
    clients: int
    whole: float
    values: Integers
    votes: Integers
    figures: Figures


def open_sum(data: bytes, run: bytes, round_: int, kit: Opener, plan: Plan, layout: Layout) -> Sum:
    """Decrypt the aggregate of a round; the one after the last round of training holds figures alone.

    Args:
        data: The encoded aggregate.
        run: The run that it must belong to.
        round_: The round that it must be of.
        kit: Holds the cohort secret and the roster.
        plan: The plan that it must have been made under.
        layout: The layout of the model.

    Raises:
        MalformedMessage: It does not parse, or does not decrypt to the sum of one whole cohort.
        PeerMismatch: It belongs to another run, round, plan or key.
        CohortRefused: It is a sum of fewer clients than the plan allows.
    """
    announced = announced_sizes(data)
    if announced[0] > layout.size or announced[1] not in (0, announced[0]):
        raise PeerMismatch("values and votes", f"{layout.size} at most", f"{announced[0]} and {announced[1]}")
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
    ours = voucher(
        kit.secret,
        aggregate,
        aggregate.cohort,
        (aggregate.clients, aggregate.members),
        (aggregate.weight, aggregate.total),
    )
    if ours != aggregate.voucher:
        raise MalformedMessage("no member of the cohort vouches for what the aggregate says of itself")
    terms = decode_terms(kit.secret.unseal(aggregate.sealed, run, round_), layout)
    expected = len(terms.support) if round_ <= plan.rounds else 0
    if aggregate.values != expected:
        raise PeerMismatch("values", expected, aggregate.values)
    p = plan.parameters
    with RoundCipher(p, kit.secret.bfv_seed(run, round_)) as cipher:
        slots = cipher.decrypt(aggregate)
    key = tag_key(kit.secret, aggregate, aggregate.members, aggregate.cohort)
    values, votes, figures = unpack_payload(slots, aggregate.clients, aggregate.values, aggregate.votes, key, p)
    return Sum(terms, aggregate.clients, aggregate.total / aggregate.weight, values, votes, figures)


def tag_key(secret: CohortSecret, like: Attendance | Aggregate, members: int, cohort: bytes) -> bytes:
    """The key of the tags of one attempt, 64 bytes: it covers all of a sum's head that its members know beforehand.

    Args:
        secret: The cohort secret.
        like: Names the run, round, attempt, sizes and sealed terms: a member's attendance, or the sum.
        members: How many members the cohort has.
        cohort: Its digest, 32 bytes.
    """
    numbers = (like.round, like.attempt, members, like.values, like.votes)
    return secret.tag_key(_TAG_HEAD.pack(like.run, *numbers, cohort, like.support))


def voucher(
    secret: CohortSecret, like: Attendance | Aggregate, cohort: bytes, counts: tuple[int, int], weights: tuple[int, int]
) -> bytes:
    """What vouches for whose sum an aggregate is, 32 bytes; members make it when they consent to the release.

    Args:
        secret: The cohort secret.
        like: Names the run, round and attempt: a member's attendance, or the sum.
        cohort: The digest of the announced cohort.
        counts: How many clients are in the sum, and how many members the cohort has.
        weights: What the ones and the others count for, together.
    """
    return secret.voucher(_VOUCHED.pack(like.run, like.round, like.attempt, *counts, *weights, cohort))


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
