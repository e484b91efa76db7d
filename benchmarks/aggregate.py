"""Bytes and CPU time of one encrypted sum: PruneSeal beside TenSEAL's CKKS with NVIDIA FLARE's parameters.

Both add up the same float32 vectors, one per client. PruneSeal runs its own code from end to end: signed attendances,
the announced cohort, blinding for every peer, BFV, signed frames, the aggregator's running sum and the opened sum. The
other side is what FLARE's filters ask of TenSEAL (degree 8192, primes of 60, 40 and 40 bits, scale 2^40, symmetric):
encrypt, serialise, load, add, decrypt. It gets one flat vector and a context that both ends hold already, which favours
it: FLARE encrypts every tensor on its own and sends its context with each.

Every repetition walks through all settings and runs both systems in turn, in one process, so that whatever else the
machine does falls on both. Times are CPU times of the process, medians over the repetitions; bytes are exact. A client
pays for the blinding of all its K - 1 peers. The sum of ten clients is made of ten blinded contributions; larger sums
repeat ten unblinded ones, since nobody needs two hundred clients to time one. Every sum is compared with the clear
integers, by ``==``.

Protocol 1 had a client agree with its cohort, quantise, pack, blind for its peers, encrypt, encode and sign. Its code
is gone; these steps are done alike today and are timed one by one, so their sum stands for it, beside what protocol 2
adds: shares dealt and taken, the members' new keys checked, the tag, a mask of the client's own, the consent.

Last comes one large cohort through the aggregator (`benchmarks/throughput.py`).
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import throughput
from benchmarks.ckks import Ckks
from benchmarks.pruneseal import PruneSeal
from benchmarks.stopwatch import AGREE, COLUMNS, CONSENT, CONTRIBUTE, DEAL, FIRST, OWN, TAG, TAKE, UPDATE
from fleet.results.machine import machine, versions

CLIENTS: Final = (10, 100, 200)
BITS: Final = (8, 12, 16)
VALUES: Final = 118_282
"""The parameters of FedSparsify's network for Fashion-MNIST."""

OUT: Final = Path("benchmarks/results/aggregate.json")

HEADLINE: Final = (10, 16)
"""The K and b that the limits speak of."""

BYTES_RATIO: Final = 20.0
TIME_RATIO: Final = 4.0
"""PruneSeal must need this many times fewer bytes, and this many times less of a client's time."""

PROTOCOL_RATIO: Final = 1.2
"""What a client's time in protocol 2 may be of that in protocol 1."""

UPLINK: Final = {16: 2.3, 12: 1.75}
"""By b, the bytes per value that a contribution to a sum of ten may have."""


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
    """What has a limit, at the K and b that the limits speak of, and what stands beside it."""
    k, b = HEADLINE
    by_bits = {row["bits"]: row for row in rows if row["clients"] == k}
    ours, theirs = by_bits[b]["pruneseal"], by_bits[b]["tenseal_ckks"]
    own, other = ours["us_per_value"], theirs["us_per_value"]
    update, everything = sum(own[step] for step in UPDATE), own[CONTRIBUTE] + own[AGREE] + own[TAKE] + own[CONSENT]
    before = update + own[AGREE] - own[DEAL]  # dealing is a part of agreeing
    added = sum(own[step] for step in (DEAL, TAKE, TAG, OWN, CONSENT))
    return {
        "clients": k,
        "bits": b,
        "client_time_ratio_in_a_new_process": (other[CONTRIBUTE] + other[FIRST]) / (own[CONTRIBUTE] + own[FIRST]),
        "client_time_ratio_with_all_that_a_round_takes": other[CONTRIBUTE] / everything,
        "protocol_1_us_per_value": before,
        "protocol_2_us_per_value": before + added,
        "protocol_ratio_of_the_contribution_alone": (update + own[TAG] + own[OWN]) / update,
        "checks": [
            _least(
                "bytes, CKKS over PruneSeal",
                theirs["uplink_bytes_per_value"] / ours["uplink_bytes_per_value"],
                BYTES_RATIO,
            ),
            _least("client time, CKKS over PruneSeal", other[CONTRIBUTE] / own[CONTRIBUTE], TIME_RATIO),
            _most("client time, protocol 2 over protocol 1", (before + added) / before, PROTOCOL_RATIO),
            *(
                _most(f"bytes per value up, b = {bits}", by_bits[bits]["pruneseal"]["uplink_bytes_per_value"], limit)
                for bits, limit in UPLINK.items()
            ),
        ],
    }


def _least(what: str, found: float, limit: float) -> dict[str, Any]:
    return {"check": what, "found": found, "least": limit, "holds": found >= limit}


def _most(what: str, found: float, limit: float) -> dict[str, Any]:
    return {"check": what, "found": found, "most": limit, "holds": found <= limit}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    head = ("K", "b", "system", "up B", "down B", *COLUMNS)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        for key, name in (("pruneseal", "PruneSeal"), ("tenseal_ckks", "TenSEAL CKKS")):
            system = row[key]
            times = [
                f"{system['us_per_value'][step]:.4f}" if step in system["us_per_value"] else "" for step in COLUMNS
            ]
            sizes = [f"{system[f'{way}_bytes_per_value']:.3f}" for way in ("uplink", "downlink")]
            lines.append("| " + " | ".join([str(row["clients"]), str(row["bits"]), name, *sizes, *times]) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 where a limit is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aggregate", description=__doc__.splitlines()[0])
    parser.add_argument("--values", type=int, default=VALUES, help="values in a vector (default: %(default)s)")
    parser.add_argument("--repeats", type=int, help="timed repetitions (default: 15, or 5 with --quick)")
    parser.add_argument("--quick", action="store_true", help="K = 10 only, no large cohort; no file without --out")
    parser.add_argument("--cohort", action="store_true", help="the large cohort only; no file without --out")
    parser.add_argument("--out", type=Path, help=f"the JSON file (default: {OUT})")
    options = parser.parse_args(arguments)
    repeats = options.repeats or (5 if options.quick or options.cohort else 15)
    chosen = " --quick" * options.quick + " --cohort" * options.cohort
    result: dict[str, Any] = {
        "command": f"python -m benchmarks.aggregate --values {options.values} --repeats {repeats}{chosen}",
        "machine": machine(),
        "versions": versions("numpy", "tenseal", "cryptography", "pruneseal"),
    }
    checks: list[Mapping[str, Any]] = []
    print(f"{result['command']}\n{result['machine']}\n{result['versions']}\n")
    if not options.cohort:
        rows = measure(CLIENTS[:1] if options.quick else CLIENTS, BITS, options.values, repeats)
        best = headline(rows)
        result |= {"values": options.values, "repeats": repeats, "headline": best, "rows": rows}
        checks += best["checks"]
        print("bytes per value; CPU microseconds per value, medians; decode+add is for one contribution\n")
        print(table(rows))
        print(f"\nK = {HEADLINE[0]}, b = {HEADLINE[1]}")
        for name in (name for name in best if name.startswith(("client_time", "protocol"))):
            print(f"  {name}: {best[name]:.3f}")
    if not options.quick:
        print("the large cohort", file=sys.stderr, flush=True)
        large = throughput.measure(throughput.CLIENTS, throughput.VALUES, min(repeats, 5))
        result["large_cohort"] = large
        steps = large["us_per_value_and_client"]
        what = f"aggregator, us per value and client, {large['clients']} clients x {large['values']:,} values"
        checks.append(_most(what, steps["all"], large["limit"]))
        print("\n" + what + ": " + ", ".join(f"{step} {value:.4f}" for step, value in steps.items()))
        print(f"  the fastest of {large['repeats']}: {large['least']:.4f}; load average {large['load']:.1f}")
    out = options.out or (None if options.quick or options.cohort else OUT)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
    print()
    for check in checks:
        side, limit = ("at least", check["least"]) if "least" in check else ("at most", check["most"])
        print(f"{check['check']}: {check['found']:.4g} ({side} {limit:g}: {'reached' if check['holds'] else 'MISSED'})")
    return 0 if all(check["holds"] for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
