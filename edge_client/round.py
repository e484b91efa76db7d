"""The two halves of the palindrome that a client plays: opening a sum, and closing an update.

Law of the whole: for any members of an announced cohort that are enough, ``open_sum(unmask(add(close_update(x_k) for k
in them))) == sum_k quantise(x_k)``, exactly, as integers. No I/O happens here; randomness comes in as arguments, but
for nonces and SEAL's own seeds.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edge_client.cipher import RoundCipher
from edge_client.dealing import Secrets, deal
from edge_client.keys import Kit
from edge_client.ledger import Sent
from edge_client.sparsify.interface import GlobalState
from edge_client.state import Measured, Pending
from edge_client.sums import UNTOLD, Told, tag_key
from protocol.attendance import Attendance, encode_attendance, read_attendance
from protocol.call import Call
from protocol.cohort import Cohort, decode_cohort, require_groups, require_quorum
from protocol.errors import CohortRefused, PeerMismatch
from protocol.figures import Figures, in_units
from protocol.frame import signed
from protocol.grid import Integers, Reals, Share, clips, quantise, steps
from protocol.layout import Layout, Mask, Vector
from protocol.openings import MEMORY_LIMIT, Memory, Nodes, encode_memory, nodes_digest, require_openable
from protocol.pairwise import mask, pair_key, self_key
from protocol.payload import pack_payload
from protocol.plan import Plan
from protocol.sharing import commit, dealt_digest
from protocol.support import Support, gather
from protocol.terms import Terms, encode_terms, support_digest
from protocol.wire import Contribution, encode_contribution


@dataclass(frozen=True, eq=False)
class Update:
    """What a client gives to a round.

    Attributes:
        values: Its travelling tensors as its method submits them, float32[P]; float32[0] for none.
        votes: bool[P], or bool[0] for none.
        samples: Its weight in the mean: by most methods its training samples.
        told: What the sum that the round begins with says of its cohort.
    """

    values: Vector
    votes: Mask
    samples: int
    told: Told = UNTOLD


def terms_of(state: GlobalState, layout: Layout) -> Terms:
    """The terms of the round that begins with this state."""
    return Terms(Support.of(state.mask), clips(state.vector, layout))


def model_digest(state: GlobalState, call: Call, kit: Kit) -> bytes:
    """The keyed digest by which clients agree on a state, 32 bytes."""
    return kit.secret.model_digest(_bytes_of(state), call.run, call.round)


def state_digest(state: GlobalState) -> bytes:
    """The name of a starting state in a node's ledger, 32 bytes; the same in every run."""
    return hashlib.blake2b(_bytes_of(state), digest_size=32, person=b"pruneseal state").digest()


def _bytes_of(state: GlobalState) -> bytes:
    return state.vector.astype("<f4").tobytes() + np.packbits(state.mask).tobytes()


def require_invited(invited: Nodes, memory: Memory, kit: Kit, plan: Plan) -> None:
    """Refuse, before anybody trains, an invitation that could come to no sum.

    Args:
        invited: Who is invited.
        memory: What the node remembers of the same starting state.
        kit: The node's keys.
        plan: The plan.

    Raises:
        PeerMismatch: Somebody is invited who is not on the roster.
        CohortRefused: This node is not invited, the others are too few or too many, or others were invited before.
    """
    if strangers := invited - kit.roster.nodes.keys():
        raise PeerMismatch("invited", "nodes of the roster", f"node {min(strangers)}")
    if kit.node not in invited:
        raise CohortRefused("this node is asked to train, but not invited")
    if not plan.min_cohort <= len(invited) <= plan.max_cohort:
        raise CohortRefused(f"{len(invited)} are invited; the plan allows {plan.min_cohort} to {plan.max_cohort}")
    require_openable(memory, invited, (), plan.colluders)
    if len(encode_memory(memory)) > MEMORY_LIMIT:
        raise CohortRefused(
            "this node remembers more sums from the same starting model than an attendance can say; the run has to "
            "begin from another model"
        )


def attend(
    call: Call,
    kit: Kit,
    plan: Plan,
    layout: Layout,
    state: GlobalState,
    update: Update,
    invited: Nodes,
    memory: Memory = frozenset(),
) -> Pending:
    """Sign that a trained update is ready, and keep it until its cohort is announced.

    Args:
        call: The `train` message that this answers.
        kit: The node's keys.
        plan: The plan.
        layout: The layout of the model.
        state: What the round began with.
        update: What the client gives.
        invited: Who is invited; each is dealt shares of what will mask the update.
        memory: What the node remembers of this starting state.
    """
    terms = terms_of(state, layout)
    sealed = kit.secret.seal(encode_terms(terms), call.run, call.round)
    values = gather(update.values, terms.support) if update.values.size else update.values
    chosen = update.votes[terms.support.positions] if update.votes.size else update.votes
    step = steps(terms.clips, layout, terms.support, plan.parameters.grid)[: values.size]
    head: dict[str, Any] = {
        "node": kit.node,
        "samples": update.samples,
        "values": values.size,
        "votes": chosen.size,
        "plan": plan.digest,
        "key": kit.roster.key_id(call.run, call.round),
        "model": model_digest(state, call, kit),
        "support": support_digest(sealed),
        "figures": update.told.figures,
        "spoiled": update.told.spoiled,
    }
    kept: dict[str, Any] = {
        "values": values,
        "votes": chosen,
        "step": step,
        "sealed": sealed,
        "state": state_digest(state),
    }
    return Pending(**_sign_on(head, call, kit, plan, invited, memory), **kept)


def attend_again(
    pending: Pending, call: Call, kit: Kit, plan: Plan, invited: Nodes, told: Told, memory: Memory
) -> Pending:
    """Attend with an update that waits already, in another attempt of its round: with new keys for its masks."""
    own = read_attendance(pending.attendance)
    same = ("node", "samples", "values", "votes", "plan", "key", "model", "support")
    head: dict[str, Any] = {field: getattr(own, field) for field in same}
    head |= {"figures": told.figures, "spoiled": told.spoiled}
    fresh = _sign_on(head, call, kit, plan, invited, memory)
    return replace(pending, **fresh, cohort=b"", shares=())


def _sign_on(
    head: Mapping[str, Any], call: Call, kit: Kit, plan: Plan, invited: Nodes, memory: Memory
) -> dict[str, Any]:
    """What is new in each attempt: secrets, their shares, and the signed attendance that names both."""
    secret = Secrets.draw()
    dealt = deal(secret, invited, call, kit, plan.colluders)
    attendance = encode_attendance(
        Attendance(
            run=call.run,
            round=call.round,
            attempt=call.attempt,
            invited=nodes_digest(invited),
            exchange=secret.public,
            seed=commit(secret.seed),
            dealt=dealt_digest(dealt),
            memory=memory,
            **head,
        )
    )
    signature = kit.sign(attendance)
    return {"attendance": signed(attendance, signature), "dealt": dealt, "secrets": secret, "invited": invited}


def admit_cohort(announced: bytes, call: Call, pending: Pending, kit: Kit, plan: Plan) -> Cohort:
    """Check an announced cohort before anything is sent to it.

    Args:
        announced: The encoded cohort.
        call: The `contribute` message.
        pending: The update that waits.
        kit: The node's keys.
        plan: The plan.

    Raises:
        MalformedMessage, SignatureRefused, AgreementError: The announcement is not a cohort that agrees.
        PeerMismatch: It is of another attempt than the update that waits.
        CohortRefused: It leaves this node out, is too small or too large, or a sum of it must not follow earlier ones.
    """
    require_attempt(pending, call)
    cohort = decode_cohort(announced, kit.roster)
    if pending.attendance not in cohort.encoded:
        raise CohortRefused("the announced cohort does not hold the attendance that this node has just signed")
    if strangers := cohort.nodes - pending.invited:
        raise CohortRefused(f"node {min(strangers)} is in the announced cohort, but was not invited")
    require_quorum(len(cohort.members), len(pending.invited), plan)
    require_groups(cohort.parts, plan)
    require_openable(cohort.memory, pending.invited, (), plan.colluders)
    return cohort


def require_attempt(pending: Pending, call: Call) -> None:
    """Refuse a message of another attempt than the update that waits.

    Raises:
        PeerMismatch: It is.
    """
    own = read_attendance(pending.attendance)
    for field, ours, theirs in (
        ("run", own.run, call.run),
        ("round", own.round, call.round),
        ("attempt", own.attempt, call.attempt),
    ):
        if ours != theirs:
            raise PeerMismatch(field, ours, theirs)


def sent_to(cohort: Cohort, call: Call, pending: Pending) -> Sent:
    """What a node's ledger says of its contribution to a cohort."""
    return Sent(call.run, call.round, call.attempt, pending.state, cohort.digest(call.attempt), pending.invited)


def quantised(pending: Pending, cohort: Cohort, node: int, plan: Plan, dither: Reals) -> tuple[Integers, int]:
    """The integers that a node adds to the sum, i64[n], and how many values were clipped."""
    weights = cohort.weights(plan.max_share)
    share = Share(weights[node], sum(weights.values()))
    return quantise(pending.values, pending.step, share, plan.parameters.grid, dither)


def figures_of(measured: Measured, clipped: int, cohort: Cohort, node: int, plan: Plan) -> Figures:
    """What a node adds to the figures of a sum."""
    return Figures(
        loss=in_units(measured.loss * cohort.weights(plan.max_share)[node]),
        clipped=clipped,
        correct=measured.correct,
        tested=measured.tested,
        test_loss=in_units(measured.test_loss),
        parameters=measured.parameters,
        kept=measured.kept,
    )


def close_update(
    integers: Integers, figures: Figures, cohort: Cohort, call: Call, kit: Kit, plan: Plan, pending: Pending
) -> bytes:
    """Pack, mask for exactly this cohort, encrypt and sign: the contribution's bytes.

    Args:
        integers: The quantised values, i64[n].
        figures: What the client has measured.
        cohort: The announced cohort.
        call: The `contribute` message.
        kit: The node's keys.
        plan: The plan.
        pending: The update, with the shares that were dealt to this node.
    """
    p, secret = plan.parameters, pending.secrets
    own = next(member for member in cohort.members if member.node == kit.node)
    digest, group = cohort.digest(call.attempt), cohort.part_of(kit.node)
    key = tag_key(kit.secret, own, len(cohort.members), digest, group)
    slots = pack_payload(integers, pending.votes.astype(np.int64), figures, key, p)
    keys = {
        peer.node: pair_key(secret.shared(peer.exchange), digest, (kit.node, peer.node))
        for peer in cohort.members
        if peer.node in cohort.parts[group] - {kit.node}
    }
    slots += mask(slots.size, kit.node, self_key(secret.seed, digest, kit.node), keys, p.plain_modulus)
    with RoundCipher(p, kit.secret.bfv_seed(call.run, call.round)) as cipher:
        first, seeds = cipher.encrypt(slots % np.uint64(p.plain_modulus))
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
            held=tuple(share is not None for share in pending.shares),
            seeds=seeds,
            first=first,
        ),
        p,
    )
    return signed(body, kit.sign(body))


def dither_of(plan: Plan, call: Call, node: int, count: int) -> Reals:
    """Uniform in [0, 1), float64[count]: like the training, the same in all attempts, so that a run repeats exactly."""
    return np.random.default_rng([plan.run_seed(call.run), call.round, node, 0x44495448]).random(count)


def training_seed(plan: Plan, call: Call, node: int) -> int:
    """What a node's training of a round is drawn from, 31 bits; the same in all attempts."""
    return int(np.random.default_rng([plan.run_seed(call.run), call.round, node]).integers(1 << 31))
