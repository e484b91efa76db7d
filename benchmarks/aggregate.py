"""Bytes and CPU time of one encrypted sum: PruneSeal beside TenSEAL's CKKS with NVIDIA FLARE's parameters.

Both add up the same float32 vectors, one a client. PruneSeal runs its own code from end to end: signed attendances, the
announced cohort, masks for every peer, BFV, signed frames, the aggregator's running sum and the opened sum. The other
side is what FLARE's filters ask of TenSEAL (degree 8192, primes of 60, 40 and 40 bits, scale 2^40, symmetric): encrypt,
serialise, load, add, decrypt. It gets one flat vector and a context that both ends hold already, which favours it:
FLARE encrypts every tensor on its own and sends its context with each.

Every repetition walks through all settings and runs both systems in turn, in one process, so that whatever else the
machine does falls on both. Times are CPU times of the process, medians over the repetitions; bytes are exact. A client
pays for the masks of all its K - 1 peers. The sum of ten clients is made of ten masked contributions; larger sums
repeat ten unmasked ones, since nobody needs a thousand clients to time one. Every sum is compared with the clear
integers, by ``==``.
"""

import argparse
import contextlib
import io
import json
import secrets
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any, Final

import numpy as np
import tenseal as ts
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from aggregator.admission import ContributionDesk
from aggregator.summation import CohortSum
from edge_client.cipher import RoundCipher
from edge_client.keys import SECRET_BYTES, CohortSecret, Kit
from edge_client.round import (
    Call,
    Sum,
    admit_cohort,
    attend,
    close_update,
    dither_of,
    first_state,
    open_sum,
    quantised,
    terms_of,
)
from edge_client.sparsify import GlobalState
from edge_client.state import Pending
from fleet.machine import machine, versions
from protocol.cohort import Cohort, gather_cohort
from protocol.grid import Grid, Integers, dequantise, steps
from protocol.lanes import pack
from protocol.layout import Layout, TensorSpec, Vector
from protocol.pairwise import mask, pair_key
from protocol.parameters import CHECKS
from protocol.plan import Plan
from protocol.roster import Node, Roster
from protocol.terms import Terms
from protocol.wire import (
    ATTENDANCE_BYTES,
    RUN_BYTES,
    Contribution,
    decode_contribution,
    encode_aggregate,
    encode_contribution,
    signed,
)

CLIENTS: Final = (10, 100, 1000)
BITS: Final = (8, 12, 16)
VALUES: Final = 118_282
"""The parameters of FedSparsify's network for Fashion-MNIST."""

OUT: Final = Path("benchmarks/results/aggregate.json")

HEADLINE: Final = (10, 16)
"""The K and b that the limits speak of."""

BYTES_RATIO: Final = 20.0
TIME_RATIO: Final = 5.0
"""PruneSeal must need this many times fewer bytes, and this many times less of a client's time."""

_DISTINCT = 10  # clients whose updates are made for real
_ADDED = 4  # contributions that one repetition adds
_SAMPLES = 6000
_SPREAD = 0.05
_NO_VOTES = np.zeros(0, np.bool_)

_AGREE, _FIRST, _SETUP, _PACK, _MASK, _ENCRYPT = (
    "agree",
    "first set up",
    "set up",
    "quantise+pack",
    "mask",
    "encrypt+encode",
)
_CONTRIBUTE, _ADD, _CLOSE, _DECRYPT = "contribute", "decode+add", "close sum", "decrypt"
_LAZY = "decode+add, lazy"
_COLUMNS = (_AGREE, _FIRST, _SETUP, _PACK, _MASK, _ENCRYPT, _CONTRIBUTE, _ADD, _LAZY, _CLOSE, _DECRYPT)


@dataclass
class Stopwatch:
    """CPU seconds of this process, by the name of the step."""

    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @contextlib.contextmanager
    def lap(self, step: str) -> Iterator[None]:
        """Time what happens inside."""
        start = process_time()
        yield
        self.seconds[step].append(process_time() - start)

    def per_value(self, values: int) -> dict[str, float]:
        """The median of each step, microseconds a value."""
        return {step: median(laps) / values * 1e6 for step, laps in self.seconds.items()}


# --- PruneSeal -------------------------------------------------------------------------------------


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
        pending: The same, as they wait for the cohort.
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

    def attend(self, node: int) -> Pending:
        """What a client does before the cohort is known: seal the terms, digest the model, sign."""
        vector = self.trained[node % len(self.trained)]
        return attend(
            self.call, self.kits[node], self.plan, self.layout, self.state, vector, _NO_VOTES, _SAMPLES + node
        )

    def integers(self, node: int) -> Integers:
        """Dither and quantised values, i64[n]; the steps wait beside the trained values, as in `Client.contribute`."""
        dither = dither_of(self.plan, self.call.round, self.call.attempt, node, self.pending[node].values.size)
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
    forming = Federation(plan, layout, call, state, terms, kits, Cohort((), ()), trained, ())
    attended = [_forget(forming.attend(node), node) for node in range(clients)]
    cohort = gather_cohort([attendance for attendance, _ in attended], roster)
    pending = [waiting for _, waiting in attended if waiting]
    return Federation(plan, layout, call, state, terms, kits, cohort, trained, pending)


def _normal(rng: np.random.Generator, values: int) -> Vector:
    return rng.normal(0, _SPREAD, values).astype(np.float32)


def _forget(pending: Pending, node: int) -> tuple[bytes, Pending | None]:
    """The attendance, and the update if it is one of those that are kept."""
    return pending.attendance, pending if node < _DISTINCT else None


def contribution(f: Federation, node: int, integers: Integers, peers: Sequence[int], watch: Stopwatch) -> bytes:
    """What `close_update` does, step by step: the frame of one client, masked for ``peers``."""
    p, kit, member = f.plan.parameters, f.kits[node], f.cohort.members[node]
    digest = f.cohort.digest(f.call.attempt)
    with watch.lap(_SETUP):
        cipher = RoundCipher(p, kit.secret.bfv_seed(f.call.run, f.call.round))
    with watch.lap(_PACK):
        slots = pack(np.concatenate([integers, np.ones(CHECKS, np.int64)]), p.values)
    with watch.lap(_MASK):
        keys = {peer: pair_key(kit.pair_secret(peer), digest, (node, peer)) for peer in peers}
        hidden = mask(slots, node, keys, p.plain_modulus)
    with cipher, watch.lap(_ENCRYPT):
        first, seeds = cipher.encrypt(hidden)
        sealed = f.pending[node].sealed if node == f.cohort.bearer else b""
        body = encode_contribution(
            Contribution(
                run=f.call.run, round=f.call.round, attempt=f.call.attempt, node=node,
                values=member.values, votes=member.votes, plan=f.plan.digest, key=member.key,
                cohort=digest, support=member.support, sealed=sealed, seeds=seeds, first=first,
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
        with first.lap(_FIRST):
            self._prepare()
        self._first = first.per_value(values)
        self._frames, expected = self._contributions()
        self._total = CohortSum(f.cohort, f.call.attempt, f.plan)
        read = [self._decoded(node) for node in range(len(self._frames))]
        for turn in range(clients):
            self._total.add(read[turn % len(read)])
        self.aggregate = encode_aggregate(self._total.aggregate(), f.plan.parameters)
        opened = self._open()
        assert opened.clients == clients
        assert np.array_equal(opened.values, expected), "the decrypted sum differs from the clear one"
        self.mean = dequantise(opened.values, steps(opened.terms.clips, f.layout, opened.terms.support, self._grid))

    def repeat(self) -> None:
        """Time every step once more."""
        f, watch, node = self.federation, self.watch, 0
        self._prepare()
        with watch.lap(_AGREE):
            admit_cohort(f.cohort.encode(), f.call, f.pending[node], f.kits[node], f.plan)
            f.attend(node)
        start = process_time()
        integers = f.integers(node)
        quantising = process_time() - start
        frame = contribution(f, node, integers, sorted(f.cohort.nodes - {node}), watch)
        watch.seconds[_PACK][-1] += quantising
        assert len(frame) == len(self._frames[node])
        with watch.lap(_CONTRIBUTE):
            self._contribute(node)
        self._add()
        with watch.lap(_CLOSE):
            encode_aggregate(self._total.aggregate(), f.plan.parameters)
        with watch.lap(_DECRYPT):
            opened = self._open()
            dequantise(opened.values, steps(opened.terms.clips, f.layout, opened.terms.support, self._grid))

    def row(self) -> dict[str, Any]:
        """What was measured."""
        p, values = self.federation.plan.parameters, self.federation.layout.size
        return {
            "uplink_bytes_per_value": len(self._frames[0]) / values,
            "downlink_bytes_per_value": len(self.aggregate) / values,
            "announcement_bytes_per_value": len(self.federation.cohort.encode()) / values,
            "attendance_bytes_per_value": ATTENDANCE_BYTES / values,
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
        sealed = f.pending[node].sealed
        return close_update(f.integers(node), _NO_VOTES, f.cohort, f.call, f.kits[node], f.plan, sealed)

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
        return decode_contribution(self._frames[node], f.cohort.members[node], f.plan.parameters, f.kits[0].roster)

    def _add(self) -> None:
        """Admit and add a few contributions; the first only founds the sum and is not timed."""
        f = self.federation
        desk = ContributionDesk(f.cohort, f.call.attempt, f.plan, f.kits[0].roster)
        with contextlib.closing(CohortSum(f.cohort, f.call.attempt, f.plan)) as total:
            total.add(desk.admit(0, self._frames[0]))
            for node in range(1, 1 + _ADDED):
                with self.watch.lap(_ADD):
                    total.add(desk.admit(node, self._frames[node]))

    def _open(self) -> Sum:
        f = self.federation
        return open_sum(self.aggregate, f.call.run, f.call.round, f.kits[-1], f.plan, f.layout)


# --- TenSEAL ---------------------------------------------------------------------------------------


class Ckks:
    """TenSEAL's CKKS with FLARE's parameters on the same vectors, and the time of every step.

    Args:
        trained: The values of some clients, float32[n] each.
    """

    def __init__(self, trained: Sequence[Vector]) -> None:
        self.watch = Stopwatch()
        self._vector = trained[0]
        self._key = ts.context(
            ts.SCHEME_TYPE.CKKS,
            8192,
            coeff_mod_bit_sizes=[60, 40, 40],
            encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
        )
        self._key.global_scale = 2**40
        self._stored = self._key.serialize(save_secret_key=True)
        self._server = ts.context_from(self._key.serialize(save_relin_keys=False, save_galois_keys=False))
        self._frame = self._encrypt(self._vector)[0].serialize()
        self._sum = self._add_eager(self._add_eager(None)).serialize()

    def mean(self, shares: Mapping[int, float], trained: Sequence[Vector]) -> Vector:
        """The decrypted weighted mean of all these vectors, float32[n]."""
        total = self._encrypt(trained[0] * np.float32(shares[0]))[0]
        for node, vector in enumerate(trained[1:], start=1):
            total.add_(self._encrypt(vector * np.float32(shares[node]))[0])
        return np.array(total.decrypt(), np.float32)

    def repeat(self) -> None:
        """Time every step once more."""
        with self.watch.lap(_FIRST):
            ts.context_from(self._stored)
        vector, seconds = self._encrypt(self._vector)
        start = process_time()
        self._frame = vector.serialize()
        self.watch.seconds[_ENCRYPT].append(seconds + process_time() - start)
        eager, lazy = self._add_eager(None), self._add_eager(None)
        for _ in range(_ADDED):
            with self.watch.lap(_ADD):
                self._add_eager(eager)
            with self.watch.lap(_LAZY):
                self._add_lazy(lazy)
        with self.watch.lap(_CLOSE):
            eager.serialize()
        with self.watch.lap(_DECRYPT):
            np.array(ts.ckks_vector_from(self._key, self._sum).decrypt(), np.float32)

    def row(self) -> dict[str, Any]:
        """What was measured."""
        values = self._vector.size
        times = self.watch.per_value(values)
        return {
            "uplink_bytes_per_value": len(self._frame) / values,
            "downlink_bytes_per_value": len(self._sum) / values,
            "us_per_value": {**times, _CONTRIBUTE: times[_ENCRYPT]},
        }

    def _encrypt(self, values: Vector) -> tuple[Any, float]:
        """A ciphertext and its CPU seconds; TenSEAL's warning about long vectors is kept from the console."""
        with contextlib.redirect_stdout(io.StringIO()):
            start = process_time()
            vector = ts.ckks_vector(self._key, values)
            return vector, process_time() - start

    def _add_eager(self, total: Any) -> Any:
        vector = ts.ckks_vector_from(self._server, self._frame)
        return vector if total is None else total.add_(vector)

    def _add_lazy(self, total: Any) -> Any:
        vector = ts.lazy_ckks_vector_from(self._frame)
        vector.link_context(self._server)
        return total.add_(vector)


# --- both --------------------------------------------------------------------------------------------


class Setting:
    """Both systems at one K and b.

    Args:
        clients: K.
        bits: b.
        values: n.
    """

    def __init__(self, clients: int, bits: int, values: int) -> None:
        self._clients, self._bits = clients, bits
        self._pruneseal = PruneSeal(clients, bits, values)
        self._ckks = Ckks(self._pruneseal.federation.trained)

    def repeat(self, turn: int) -> None:
        """Time both once more; every other time in the other order."""
        both = [self._pruneseal.repeat, self._ckks.repeat]
        for repeat in both[:: 1 if turn % 2 else -1]:
            repeat()

    def forget_times(self) -> None:
        """Drop what was timed while caches and memory pools were still cold."""
        self._pruneseal.watch.seconds.clear()
        self._ckks.watch.seconds.clear()

    def row(self) -> dict[str, Any]:
        """What was measured."""
        ours, theirs = self._pruneseal.row(), self._ckks.row()
        f = self._pruneseal.federation
        if self._clients == len(f.trained):
            shares = {member.node: member.samples / f.cohort.samples for member in f.cohort.members}
            clear = np.sum([shares[node] * vector.astype(np.float64) for node, vector in enumerate(f.trained)], axis=0)
            ours["largest_error"] = float(np.abs(self._pruneseal.mean - clear).max())
            theirs["largest_error"] = float(np.abs(self._ckks.mean(shares, f.trained) - clear).max())
        return {"clients": self._clients, "bits": self._bits, "pruneseal": ours, "tenseal_ckks": theirs}


def measure(clients: Sequence[int], bits: Sequence[int], values: int, repeats: int) -> list[dict[str, Any]]:
    """Run every setting in turn, ``repeats`` times over, after one round that does not count."""
    settings = []
    for k in clients:
        for b in bits:
            print(f"preparing K = {k}, b = {b}", file=sys.stderr, flush=True)
            settings.append(Setting(k, b, values))
    for turn in range(repeats + 1):
        print(f"repetition {turn} of {repeats}", file=sys.stderr, flush=True)
        for setting in settings:
            setting.repeat(turn)
            if turn == 0:
                setting.forget_times()
    return [setting.row() for setting in settings]


def headline(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The two ratios that have a limit, and the second once more with the contexts that both ends build only once."""
    row = next(row for row in rows if (row["clients"], row["bits"]) == HEADLINE)
    ours, theirs = row["pruneseal"], row["tenseal_ckks"]
    own, other = ours["us_per_value"], theirs["us_per_value"]
    return {
        "clients": HEADLINE[0],
        "bits": HEADLINE[1],
        "bytes_ratio": theirs["uplink_bytes_per_value"] / ours["uplink_bytes_per_value"],
        "bytes_ratio_limit": BYTES_RATIO,
        "client_time_ratio": other[_CONTRIBUTE] / own[_CONTRIBUTE],
        "client_time_ratio_limit": TIME_RATIO,
        "client_time_ratio_in_a_new_process": (other[_CONTRIBUTE] + other[_FIRST]) / (own[_CONTRIBUTE] + own[_FIRST]),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    head = ("K", "b", "system", "up B", "down B", *_COLUMNS)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        for key, name in (("pruneseal", "PruneSeal"), ("tenseal_ckks", "TenSEAL CKKS")):
            system = row[key]
            times = [
                f"{system['us_per_value'][step]:.4f}" if step in system["us_per_value"] else "" for step in _COLUMNS
            ]
            sizes = [f"{system[f'{way}_bytes_per_value']:.3f}" for way in ("uplink", "downlink")]
            lines.append("| " + " | ".join([str(row["clients"]), str(row["bits"]), name, *sizes, *times]) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 where a limit is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aggregate", description=__doc__.splitlines()[0])
    parser.add_argument("--values", type=int, default=VALUES, help="values in a vector (default: %(default)s)")
    parser.add_argument("--repeats", type=int, help="timed repetitions (default: 15, or 5 with --quick)")
    parser.add_argument("--quick", action="store_true", help="K = 10 only; no file without --out")
    parser.add_argument("--out", type=Path, help=f"the JSON file (default: {OUT})")
    options = parser.parse_args(arguments)
    repeats = options.repeats or (5 if options.quick else 15)
    rows = measure(CLIENTS[:1] if options.quick else CLIENTS, BITS, options.values, repeats)
    best = headline(rows)
    result = {
        "command": f"python -m benchmarks.aggregate --values {options.values} --repeats {repeats}"
        + (" --quick" if options.quick else ""),
        "machine": machine(),
        "versions": versions("numpy", "tenseal", "cryptography", "pruneseal"),
        "values": options.values,
        "repeats": repeats,
        "headline": best,
        "rows": rows,
    }
    out = options.out or (None if options.quick else OUT)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['command']}\n{result['machine']}\n{result['versions']}\n")
    print("bytes a value; CPU microseconds a value, medians; decode+add is for one contribution\n")
    print(table(rows))
    reached = True
    print(f"\nK = {HEADLINE[0]}, b = {HEADLINE[1]}: CKKS over PruneSeal")
    for name in ("bytes_ratio", "client_time_ratio"):
        good = best[name] >= best[f"{name}_limit"]
        reached &= good
        print(f"  {name}: {best[name]:.2f} (at least {best[f'{name}_limit']:g}: {'reached' if good else 'MISSED'})")
    name = "client_time_ratio_in_a_new_process"
    print(f"  {name}: {best[name]:.2f}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
