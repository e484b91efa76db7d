"""Bytes and CPU time of one encrypted sum: PruneSeal beside TenSEAL's CKKS with NVIDIA FLARE's parameters.

Both add up the same float32 vectors, one per client. PruneSeal runs its own code from end to end: signed attendances,
the announced cohort, blinding for every peer, BFV, signed frames, the aggregator's running sum and the opened sum. The
other side is what FLARE's filters ask of TenSEAL (degree 8192, primes of 60, 40 and 40 bits, scale 2^40, symmetric):
encrypt, serialise, load, add, decrypt. It gets one flat vector and a context that both ends hold already, which favours
it: FLARE encrypts every tensor on its own and sends its context with each.

Every repetition walks through all settings and runs both systems in turn, in one process, so that whatever else the
machine does falls on both. Times are CPU times of the process, medians over the repetitions; bytes are exact. A client
pays for the blinding of all its K - 1 peers. The sum of ten clients is made of ten blinded contributions; larger sums
repeat ten unblinded ones, since nobody needs a thousand clients to time one. Every sum is compared with the clear
integers, by ``==``.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.ckks import Ckks
from benchmarks.pruneseal import PruneSeal
from benchmarks.stopwatch import COLUMNS, CONTRIBUTE, FIRST
from fleet.results.machine import machine, versions

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
        "client_time_ratio": other[CONTRIBUTE] / own[CONTRIBUTE],
        "client_time_ratio_limit": TIME_RATIO,
        "client_time_ratio_in_a_new_process": (other[CONTRIBUTE] + other[FIRST]) / (own[CONTRIBUTE] + own[FIRST]),
    }


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
    print("bytes per value; CPU microseconds per value, medians; decode+add is for one contribution\n")
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
