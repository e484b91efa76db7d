"""The two halves of the palindrome that a client plays: opening a sum, and closing an update.

Law of the whole: for any announced cohort, ``open_sum(add(close_update(x_k) for k in cohort)) == sum_k quantise(x_k)``,
exactly, as integers. No I/O happens here; randomness comes in as arguments, but for nonces and SEAL's own seeds.
"""

import secrets
import struct
from dataclasses import dataclass

import numpy as np

from edge_client.cipher import RoundCipher
from edge_client.keys import CohortSecret, Kit, Opener
from edge_client.learning.network import Network
from edge_client.sparsify.interface import GlobalState, Sparsifier
from edge_client.state import Pending
from protocol.call import Call
from protocol.cohort import Cohort, decode_cohort, require_quorum, require_successor
from protocol.errors import CohortRefused, Duplicate, PeerMismatch
from protocol.grid import Integers, Reals, Share, clips, dequantise, quantise, steps
from protocol.layout import Layout, Mask, Vector
from protocol.pairwise import blind, pair_key
from protocol.payload import pack_payload, unpack_payload
from protocol.plan import Plan
from protocol.support import Support, gather, scatter
from protocol.terms import Terms, decode_terms, encode_terms, support_digest
from protocol.wire import (
    NONCE_BYTES,
    Aggregate,
    Attendance,
    Contribution,
    announced_sizes,
    decode_aggregate,
    decode_attendance,
    encode_attendance,
    encode_contribution,
    signed,
)

_TAG_HEAD = struct.Struct("<16s5I32s32s")


@dataclass(frozen=True, eq=False)
class Update:
    """What a client gives to a sum.

    Attributes:
        values: Its travelling tensors as its method submits them, float32[P].
        votes: bool[P], or bool[0] for none.
        samples: Its weight in the mean: by most methods its training samples.
    """

    values: Vector
    votes: Mask
    samples: int


@dataclass(frozen=True, eq=False)
class Sum:
    """A decrypted sum.

    Attributes:
        terms: The terms under which it was made.
        clients: How many clients it holds.
        values: i64[n].
        votes: i64[n], or i64[0].
    """

    terms: Terms
    clients: int
    values: Integers
    votes: Integers


def open_sum(data: bytes, run: bytes, round_: int, kit: Opener, plan: Plan, layout: Layout) -> Sum:
    """Decrypt the aggregate of a round.

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
    terms = decode_terms(kit.secret.unseal(aggregate.sealed, run, round_), layout)
    if len(terms.support) != aggregate.values:
        raise PeerMismatch("values", len(terms.support), aggregate.values)
    p = plan.parameters
    with RoundCipher(p, kit.secret.bfv_seed(run, round_)) as cipher:
        slots = cipher.decrypt(aggregate)
    key = tag_key(kit.secret, aggregate, aggregate.attempt, aggregate.clients, aggregate.cohort)
    values, votes = unpack_payload(slots, aggregate.clients, aggregate.values, aggregate.votes, key, p)
    return Sum(terms, aggregate.clients, values, votes)


def tag_key(secret: CohortSecret, like: Attendance | Aggregate, attempt: int, clients: int, cohort: bytes) -> bytes:
    """The key of the tags of one attempt, 64 bytes. It covers all that a reader takes from the head of the sum.

    Args:
        secret: The cohort secret.
        like: Names the run, the round, the sizes and the sealed terms: a member's attendance, or the sum.
        attempt: The number of the `contribute` message.
        clients: How many clients the cohort has.
        cohort: Its digest, 32 bytes.
    """
    numbers = (like.round, attempt, clients, like.values, like.votes)
    return secret.tag_key(_TAG_HEAD.pack(like.run, *numbers, cohort, like.support))


def next_state(total: Sum, round_: int, plan: Plan, layout: Layout, method: Sparsifier) -> GlobalState:
    """The state after a round, from its sum: merge, then purge. The same on every client."""
    support = total.terms.support
    mean = scatter(dequantise(total.values, steps(total.terms.clips, layout, support, plan.parameters.grid)), support)
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


def terms_of(state: GlobalState, layout: Layout) -> Terms:
    """The terms of the round that begins with this state."""
    return Terms(Support.of(state.mask), clips(state.vector, layout))


def model_digest(state: GlobalState, call: Call, kit: Kit) -> bytes:
    """The keyed digest by which clients agree on a state, 32 bytes."""
    data = state.vector.astype("<f4").tobytes() + np.packbits(state.mask).tobytes()
    return kit.secret.model_digest(data, call.run, call.round)


def attend(call: Call, kit: Kit, plan: Plan, layout: Layout, state: GlobalState, update: Update) -> Pending:
    """Sign that a trained update is ready, and keep it until its cohort is announced.

    Args:
        call: The `train` message that this answers.
        kit: The node's keys.
        plan: The plan.
        layout: The layout of the model.
        state: What the round began with.
        update: What the client gives.
    """
    terms = terms_of(state, layout)
    sealed = kit.secret.seal(encode_terms(terms), call.run, call.round)
    values = gather(update.values, terms.support)
    chosen = update.votes[terms.support.positions] if update.votes.size else update.votes
    attendance = encode_attendance(
        Attendance(
            run=call.run,
            round=call.round,
            attempt=call.attempt,
            node=kit.node,
            samples=update.samples,
            values=values.size,
            votes=chosen.size,
            plan=plan.digest,
            key=kit.roster.key_id(call.run, call.round),
            model=model_digest(state, call, kit),
            support=support_digest(sealed),
            nonce=secrets.token_bytes(NONCE_BYTES),
        )
    )
    step = steps(terms.clips, layout, terms.support, plan.parameters.grid)
    return Pending(signed(attendance, kit.sign(attendance)), values, chosen, step, sealed)


def admit_cohort(announced: bytes, call: Call, pending: Pending, kit: Kit, plan: Plan) -> Cohort:
    """Check an announced cohort before anything is sent to it. One that was contributed to may ask again.

    Raises:
        MalformedMessage, SignatureRefused, AgreementError: The announcement is not a cohort that agrees.
        PeerMismatch: It is of another round than the update that waits.
        Duplicate: This attempt, or a later one, was already answered for another cohort.
        CohortRefused: It leaves this node out, is too small or too large, or must not follow the last one.
    """
    own = decode_attendance(pending.attendance, kit.roster)
    for field, ours, theirs in (("run", own.run, call.run), ("round", own.round, call.round)):
        if ours != theirs:
            raise PeerMismatch(field, ours, theirs)
    cohort = decode_cohort(announced, kit.roster)
    if pending.attendance not in cohort.encoded:
        raise CohortRefused("the announced cohort does not hold the attendance that this node has just signed")
    require_quorum(cohort, plan.min_cohort, plan.max_cohort)
    digest = cohort.digest(call.attempt)
    if any((given.attempt, given.cohort) == (call.attempt, digest) for given in pending.given):
        return cohort
    if pending.given:
        if call.attempt <= pending.given[-1].attempt:
            raise Duplicate(kit.node, f"contribution to attempt {call.attempt}")
        require_successor([given.nodes for given in pending.given], cohort.nodes, plan.min_cohort)
    return cohort


def quantised(pending: Pending, cohort: Cohort, node: int, plan: Plan, dither: Reals) -> tuple[Integers, int]:
    """The integers that a node adds to the sum, i64[n], and how many values were clipped."""
    samples = next(member.samples for member in cohort.members if member.node == node)
    return quantise(pending.values, pending.step, Share(samples, cohort.samples), plan.parameters.grid, dither)


def close_update(
    integers: Integers, votes: Mask, cohort: Cohort, call: Call, kit: Kit, plan: Plan, sealed: bytes
) -> bytes:
    """Pack, blind for exactly this cohort, encrypt and sign: the contribution's bytes."""
    p = plan.parameters
    own = next(member for member in cohort.members if member.node == kit.node)
    digest = cohort.digest(call.attempt)
    key = tag_key(kit.secret, own, call.attempt, len(cohort.members), digest)
    slots = pack_payload(integers, votes.astype(np.int64), key, p)
    keys = {
        peer: pair_key(kit.pair_secret(peer), digest, (kit.node, peer)) for peer in sorted(cohort.nodes - {kit.node})
    }
    with RoundCipher(p, kit.secret.bfv_seed(call.run, call.round)) as cipher:
        first, seeds = cipher.encrypt(blind(slots, kit.node, keys, p.plain_modulus))
    body = encode_contribution(
        Contribution(
            run=call.run,
            round=call.round,
            attempt=call.attempt,
            node=kit.node,
            values=own.values,
            votes=own.votes,
            plan=plan.digest,
            key=own.key,
            cohort=digest,
            support=own.support,
            sealed=sealed if kit.node == cohort.bearer else b"",
            seeds=seeds,
            first=first,
        ),
        p,
    )
    return signed(body, kit.sign(body))


def dither_of(plan: Plan, round_: int, attempt: int, node: int, count: int) -> Reals:
    """Uniform in [0, 1), float64[count]: fixed by the plan's seed, so that a run repeats exactly."""
    return np.random.default_rng([plan.seed, round_, attempt, node, 0x44495448]).random(count)
