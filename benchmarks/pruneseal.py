"""One encrypted sum by the product's own code, from keys to the opened sum, timed step by step."""

import contextlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import process_time
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from aggregator.admission import ContributionAdmission
from aggregator.summation import CohortSum, dealt_to
from benchmarks.stopwatch import (
    ADD,
    ADDED,
    AGREE,
    BLIND,
    CLOSE,
    CONSENT,
    CONTRIBUTE,
    DEAL,
    DECRYPT,
    ENCRYPT,
    FIRST,
    OWN,
    PACK,
    SETUP,
    TAG,
    TAKE,
    Stopwatch,
)
from edge_client.cipher import RoundCipher
from edge_client.consenting import admit_release, consent
from edge_client.dealing import Secrets, deal, take
from edge_client.keys import SECRET_BYTES, CohortSecret, Kit
from edge_client.learning.network import first_state
from edge_client.round import Update, admit_cohort, attend, close_update, dither_of, quantised, terms_of
from edge_client.sparsify import GlobalState
from edge_client.state import Pending
from edge_client.sums import Sum, open_sum, tag_key, voucher
from protocol.attendance import ATTENDANCE_BYTES
from protocol.call import Call
from protocol.cohort import Cohort, gather_cohort
from protocol.figures import NOTHING, encode_figures
from protocol.frame import RUN_BYTES, signed
from protocol.grid import Grid, Integers, dequantise, steps
from protocol.lanes import Slots, pack
from protocol.layout import Layout, TensorSpec, Vector
from protocol.pairwise import keystream, mask, pair_key, self_key, streams
from protocol.plan import Plan
from protocol.release import Release
from protocol.roster import Node, Roster
from protocol.tag import tag
from protocol.terms import Terms
from protocol.wire import Contribution, decode_contribution, encode_aggregate, encode_contribution

_DISTINCT = 10  # clients whose updates are made for real
_SAMPLES = 6000
_SPREAD = 0.05
_NO_VOTES = np.zeros(0, np.bool_)
_NOTHING = np.zeros(0, np.float32)


@dataclass(frozen=True, eq=False)
class Federation:
    """A cohort that has trained, at one setting of K and b.

    Attributes:
        plan: Its plan.
        layout: One tensor of n values.
        call: The round that it is in.
        state: What the round began with.
        terms: The terms that follow from it.
        kits: Every client's keys.
        cohort: The announced cohort, all K of them.
        trained: The values of the first `_DISTINCT` clients, float32[n] each.
        pending: The same, as they wait for the cohort, with the shares that they were dealt.
        secrets: What every client is masked with.
        dealt: What each client has dealt the others.
    """

    plan: Plan
    layout: Layout
    call: Call
    state: GlobalState
    terms: Terms
    kits: Sequence[Kit]
    cohort: Cohort
    trained: Sequence[Vector]
    pending: Sequence[Pending]
    secrets: Sequence[Secrets]
    dealt: Mapping[int, bytes]

    def attend(self, node: int) -> Pending:
        """What a client does before the cohort is known: seal the terms, digest the model, sign."""
        vector = self.trained[node % len(self.trained)]
        update = Update(vector, _NO_VOTES, _SAMPLES + node)
        return attend(self.call, self.kits[node], self.plan, self.layout, self.state, update, self.invited)

    @property
    def invited(self) -> frozenset[int]:
        """All of them."""
        return frozenset(range(len(self.kits)))

    @property
    def digest(self) -> bytes:
        """The digest of the announced cohort."""
        return self.cohort.digest(self.call.attempt)

    def integers(self, node: int) -> Integers:
        """Dither and quantised values, i64[n]; the steps wait beside the trained values, as in `Client.contribute`."""
        dither = dither_of(self.plan, self.call, node, self.pending[node].values.size)
        return quantised(self.pending[node], self.cohort, node, self.plan, dither)[0]


def federate(clients: int, bits: int, values: int) -> Federation:
    """Make the keys, the updates and the signed attendances of a cohort, all in memory."""
    plan = Plan(bits=bits, max_cohort=clients)
    layout = Layout((TensorSpec("weights", (values,), trainable=True),))
    secret = CohortSecret(secrets.token_bytes(SECRET_BYTES))
    pairs = [(Ed25519PrivateKey.generate(), X25519PrivateKey.generate()) for _ in range(clients)]
    nodes = {
        number: Node(f"node-{number}", sign.public_key().public_bytes_raw(), pair.public_key().public_bytes_raw())
        for number, (sign, pair) in enumerate(pairs)
    }
    roster = Roster(secret.id, nodes)
    kits = [Kit(number, secret, roster, plan.digest, sign, pair) for number, (sign, pair) in enumerate(pairs)]
    rng = np.random.default_rng([clients, bits, values])
    state = first_state(_normal(rng, values), layout)
    trained = [state.vector + _normal(rng, values) for _ in range(min(clients, _DISTINCT))]
    call, terms = Call(secrets.token_bytes(RUN_BYTES), 1, 1), terms_of(state, layout)
    forming = Federation(plan, layout, call, state, terms, kits, Cohort((), ()), trained, (), (), {})
    attended = [_forget(forming.attend(node), node) for node in range(clients)]
    cohort = gather_cohort([each.attendance for each in attended], roster)
    dealt = {node: each.dealt for node, each in enumerate(attended)}
    announced = cohort.encode()
    pending = [
        replace(
            waiting,
            cohort=announced,
            shares=tuple(take(dealt_to(node, cohort, forming.invited, dealt), cohort.members, call, kits[node])),
        )
        for node, waiting in enumerate(attended[:_DISTINCT])
    ]
    secret_of = [waiting.secrets for waiting in attended]
    return Federation(plan, layout, call, state, terms, kits, cohort, trained, pending, secret_of, dealt)


def _normal(rng: np.random.Generator, values: int) -> Vector:
    return rng.normal(0, _SPREAD, values).astype(np.float32)


def _forget(pending: Pending, node: int) -> Pending:
    """All of it if it is one of those that are kept, else without the update."""
    return pending if node < _DISTINCT else replace(pending, values=_NOTHING, step=_NOTHING.astype(np.float64))


def contribution(f: Federation, node: int, integers: Integers, peers: Sequence[int], watch: Stopwatch) -> bytes:
    """What `close_update` does, step by step: the frame of one client, masked for ``peers``."""
    p, kit, member = f.plan.parameters, f.kits[node], f.cohort.members[node]
    digest = f.cohort.digest(f.call.attempt)
    with watch.lap(SETUP):
        cipher = RoundCipher(p, kit.secret.bfv_seed(f.call.run, f.call.round))
    own, t = f.secrets[node], p.plain_modulus
    with watch.lap(PACK):
        counted = np.concatenate([integers, np.ones(1, np.int64), encode_figures(NOTHING, p.grid)])
        packed = pack(counted, p.values)
    with watch.lap(TAG):
        key = tag_key(kit.secret, member, len(f.cohort.members), digest, 0)
        slots = np.concatenate([packed, tag(counted, 1, key, p)])
    with watch.lap(BLIND):
        shared = {peer: own.shared(f.cohort.members[peer].exchange) for peer in peers}
        keys = [(pair_key(secret, digest, (node, peer)), node > peer) for peer, secret in shared.items()]
        slots += streams(slots.size, keys, t)
    with watch.lap(OWN):
        slots += keystream(self_key(own.seed, digest, node), slots.size, t)
    with cipher, watch.lap(ENCRYPT):
        first, seeds = cipher.encrypt(slots % np.uint64(t))
        body = encode_contribution(
            Contribution(
                run=f.call.run, round=f.call.round, attempt=f.call.attempt, node=node,
                values=member.values, votes=member.votes, plan=f.plan.digest, key=member.key,
                cohort=digest, support=member.support, held=(True,) * len(f.cohort.members), seeds=seeds, first=first,
            ),
            p,
        )  # fmt: skip
        return signed(body, kit.sign(body))


class PruneSeal:
    """One setting's federation, its finished sum, and the time of every step.

    Args:
        clients: K.
        bits: b.
        values: n.
    """

    def __init__(self, clients: int, bits: int, values: int) -> None:
        self.federation = f = federate(clients, bits, values)
        self.watch, first = Stopwatch(), Stopwatch()
        with first.lap(FIRST):
            self._prepare()
        self._first = first.per_value(values)
        self._frames, expected = self._contributions()
        total = CohortSum(f.cohort, f.plan)
        read = [self._decoded(node) for node in range(len(self._frames))]
        for turn in range(clients):
            total.add(replace(read[turn % len(read)], node=turn))
        self._total = total.masked(f.call.attempt, f.invited, f.dealt)
        total.close()
        self._masks = self._left()
        self.aggregate = self._closed()
        opened = self._open()
        assert opened.clients == clients
        assert np.array_equal(opened.values, expected), "the decrypted sum differs from the clear one"
        self.mean = dequantise(opened.values, steps(opened.terms.clips, f.layout, opened.terms.support, self._grid))

    def repeat(self) -> None:
        """Time every step once more."""
        f, watch, node = self.federation, self.watch, 0
        self._prepare()
        with watch.lap(AGREE):
            admit_cohort(f.cohort.encode(), f.call, f.pending[node], f.kits[node], f.plan)
            f.attend(node)
        mine = dealt_to(node, f.cohort, f.invited, f.dealt)
        with watch.lap(DEAL):
            deal(f.secrets[node], f.invited, f.call, f.kits[node], f.plan.colluders)
            for member in f.cohort.members:  # as when their attendances are read
                f.secrets[node].shared(member.exchange)
        with watch.lap(TAKE):
            tuple(take(mine, f.cohort.members, f.call, f.kits[node]))
        with watch.lap(CONSENT):
            self._consent(node)
        start = process_time()
        integers = f.integers(node)
        quantising = process_time() - start
        frame = contribution(f, node, integers, sorted(f.cohort.nodes - {node}), watch)
        watch.seconds[PACK][-1] += quantising
        assert len(frame) == len(self._frames[node])
        with watch.lap(CONTRIBUTE):
            self._contribute(node)
        self._add()
        with watch.lap(CLOSE):
            self._left()
            self._closed()
        with watch.lap(DECRYPT):
            opened = self._open()
            dequantise(opened.values, steps(opened.terms.clips, f.layout, opened.terms.support, self._grid))

    def row(self) -> dict[str, Any]:
        """What was measured."""
        p, values = self.federation.plan.parameters, self.federation.layout.size
        return {
            "uplink_bytes_per_value": len(self._frames[0]) / values,
            "downlink_bytes_per_value": len(self.aggregate) / values,
            "announcement_bytes_per_value": len(self.federation.cohort.encode()) / values,
            "attendance_bytes_per_value": (ATTENDANCE_BYTES + len(self.federation.dealt[0])) / values,
            "values_per_coefficient": p.fields,
            "bits_up": p.width_up,
            "bits_down": p.width_down,
            "us_per_value": {**self._first, **self.watch.per_value(values)},
        }

    def _prepare(self) -> None:
        """Let the process have SEAL's context; once it has, and does not work on too many settings, it keeps it."""
        f = self.federation
        with RoundCipher(f.plan.parameters, f.kits[0].secret.bfv_seed(f.call.run, f.call.round)):
            pass

    @property
    def _grid(self) -> Grid:
        return self.federation.plan.parameters.grid

    def _contribute(self, node: int) -> bytes:
        """The product's own way from trained values to a signed frame."""
        f = self.federation
        return close_update(f.integers(node), NOTHING, f.cohort, f.call, f.kits[node], f.plan, f.pending[node])

    def _contributions(self) -> tuple[list[bytes], Integers]:
        """The frames of the first clients, and the sum that K of them in turn must decrypt to."""
        f, clients = self.federation, len(self.federation.cohort.members)
        integers = [f.integers(node) for node in range(len(f.pending))]
        watch, whole = Stopwatch(), clients == len(integers)
        frames = []
        for node, own in enumerate(integers):
            peers = sorted(f.cohort.nodes - {node}) if whole else ()
            # The product's own function and its steps one by one take turns: the sum proves both.
            frames.append(self._contribute(node) if whole and node % 2 else contribution(f, node, own, peers, watch))
        expected = np.sum([integers[turn % len(integers)] for turn in range(clients)], axis=0)
        return frames, expected

    def _decoded(self, node: int) -> Contribution:
        f = self.federation
        member, p = f.cohort.members[node], f.plan.parameters
        return decode_contribution(self._frames[node], member, len(f.cohort.members), p, f.kits[0].roster)

    def _left(self) -> Slots:
        """The masks that are left in the sum, u64[slots] below t: one stream for each contribution."""
        f, p, size = self.federation, self.federation.plan.parameters, self._total_slots
        left, digest = np.zeros(size, np.uint64), f.cohort.digest(f.call.attempt)
        for turn in range(len(f.cohort.members)):
            node = turn % len(f.pending)
            left += mask(size, node, self_key(f.pending[node].secrets.seed, digest, node), {}, p.plain_modulus)
            left %= np.uint64(p.plain_modulus)
        return left

    @property
    def _total_slots(self) -> int:
        return self.federation.plan.parameters.slots(self.federation.layout.size, 0)

    def _closed(self) -> bytes:
        """The aggregate of the sum without its masks."""
        f, total = self.federation, self._total
        weights = f.cohort.weights(f.plan.max_share)
        vouched = voucher(
            f.kits[0].secret,
            f.cohort.members[0],
            f.cohort.digest(f.call.attempt),
            0,
            (len(weights), len(weights)),
            (sum(weights.values()),) * 2,
        )
        (aggregate,) = total.aggregates([self._masks], f.plan, [vouched], f.pending[0].sealed)
        return encode_aggregate(aggregate, f.plan.parameters)

    def _consent(self, node: int) -> bytes:
        """What a client does when it is asked to release the sum."""
        f = self.federation
        asked = Release(
            f.call.run, f.call.round, f.call.attempt, len(f.kits), f.digest, terms=False, sets=(f.cohort.nodes,)
        )
        cohort = admit_release(asked, f.pending[node], f.call, f.kits[node], f.plan)
        return consent(asked, cohort, f.call, f.kits[node], f.plan, f.pending[node])

    def _add(self) -> None:
        """Admit and add a few contributions; the first only founds the sum and is not timed."""
        f = self.federation
        admission = ContributionAdmission(f.cohort, f.call.attempt, f.plan, f.kits[0].roster)
        with contextlib.closing(CohortSum(f.cohort, f.plan)) as total:
            total.add(admission.admit(0, self._frames[0]))
            for node in range(1, 1 + ADDED):
                with self.watch.lap(ADD):
                    total.add(admission.admit(node, self._frames[node]))

    def _open(self) -> Sum:
        f = self.federation
        return open_sum(self.aggregate, f.call.run, f.call.round, f.kits[-1], f.plan, f.layout)
