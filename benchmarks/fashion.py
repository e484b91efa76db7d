"""FedSparsify's setting on Fashion-MNIST: the encrypted product beside plain dense FedAvg.

Ten clients train the paper's 784-128-128-10 network with SGD 0.02, batches of 32 and four local epochs a round, on
equal random shares (IID) and on two classes each (``shards:2``), as in Stripelis et al., arXiv:2204.12430.

* *encrypted* is the product itself, as ``pruneseal run --verify`` runs it: FedSparsify-Global to S = 0.95, every sum
  encrypted and compared with the clear integers. One more IID run, on a coarser grid, shows what fewer bits cost.
* *plain* is a loop of this file over the product's own local training and the sample-weighted mean of floats: no
  quantisation, no encryption. Initial weights, shares and the order of the rows are the same, seed by seed. *Dense* is
  plain FedAvg, what there is to lose to; plain FedSparsify-Global shows which part of the loss is the method's.

Accuracies are those of the global model on all 10,000 test images after each round; nothing is chosen by them. Every
part is kept in ``--work`` and not run again; an interrupted encrypted run goes on where it stopped.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from matplotlib.axes import Axes

from benchmarks.federation import encrypted_run, submission, weighted_mean
from benchmarks.page import check_table, drawing, head, publish
from edge_client import data as datasets
from edge_client.client import Network, build_network
from edge_client.partition import partition
from edge_client.sparsify import GlobalState
from edge_client.train import evaluate, insert
from fleet.machine import machine, versions
from protocol.errors import ConfigError, PruneSealError
from protocol.files import replace_file
from protocol.layout import Vector
from protocol.plan import Plan

CLIENTS: Final = 10
PARTITIONS: Final = {"iid": "IID", "shards:2": "two classes a client"}
BITS: Final = (16, 12)
"""The grids; the second, and any further one, is tried on IID shares alone."""

LARGEST_GAP: Final = 1.5
"""Points of test accuracy that the encrypted IID run may end below the dense one."""

LARGEST_RATIO: Final = 0.20
"""Of the bytes that dense FedAvg sends in float32."""

LARGEST_BYTES: Final = {16: 2.3, 12: 1.7}
"""Uplink bytes a value, by bits of the grid."""

_LAST = 5  # rounds of the mean that stands beside the last accuracy
_COLOURS = {"dense": "#777777", "sparse": "#e08a1e", "encrypted": "#1b6ca8"}


@dataclass(frozen=True)
class Options:
    """What the benchmark was asked for.

    Attributes:
        data: Fashion-MNIST, as ``idx:DIR``.
        rounds: Of every run.
        partitions: Which of `PARTITIONS`.
        bits: The grids.
        seed: Of everything but the keys.
        workers: Processes; 0 for one a processor.
        work: Where the parts are kept.
        out: Where the results go.
        fresh: Whether finished parts are run again.
    """

    data: str
    rounds: int
    partitions: tuple[str, ...]
    bits: tuple[int, ...]
    seed: int
    workers: int
    work: Path
    out: Path
    fresh: bool

    @property
    def command(self) -> str:
        """The command that repeats this; where the data lies is left out."""
        partitions, bits = " ".join(self.partitions), " ".join(str(b) for b in self.bits)
        return (
            f"python -m benchmarks.fashion --data idx:DIR --rounds {self.rounds} --partitions {partitions} "
            f"--bits {bits} --seed {self.seed}"
        )


def plan_for(options: Options, division: str, bits: int) -> Plan:
    """The plan of one encrypted run; the plain runs train by the same one."""
    return Plan(
        method="fedsparsify-global",
        sparsity=0.95,
        rounds=options.rounds,
        max_cohort=CLIENTS,
        bits=bits,
        model="fashion-mlp",
        data=options.data,
        partition=division,
        epochs=4,
        batch_size=32,
        learning_rate=0.02,
        seed=options.seed,
    )


# --- the two systems ---------------------------------------------------------------------------------


def encrypted(plan: Plan, folder: Path, options: Options) -> dict[str, Any]:
    """Run the product, or read what it has left in the folder; its curves and summary.

    Raises:
        ConfigError: The folder holds a run of another plan.
        PruneSealError: The run failed.
    """
    run = encrypted_run(plan, folder, options.workers, fresh=options.fresh)
    summary, lines = run["summary"], run["lines"]
    kept = ("parameters", "kept", "uplink_bytes", "downlink_bytes", "dense_fedavg_uplink_bytes", "verified")
    return {
        "bits": plan.bits,
        "accuracy": [line["accuracy"] for line in lines],
        "sparsity": [line["sparsity"] for line in lines],
        **{key: summary[key] for key in kept},
        "uplink_bytes_per_value": summary["uplink_bytes_per_value"],
        "uplink_ratio": summary["uplink_bytes"] / summary["dense_fedavg_uplink_bytes"],
    }


def plain(plan: Plan, file: Path, options: Options) -> dict[str, Any]:
    """A method in plain floats, or what an earlier run of it has left; its accuracies before and after each purge.

    Raises:
        ConfigError: The file was made under another plan.
    """
    if file.exists() and not options.fresh:
        stored: dict[str, Any] = json.loads(file.read_text())
        if stored.pop("plan") != plan.to_config():
            raise ConfigError(f"{file} was made under another plan; use --fresh or another --work")
        return stored
    torch.set_num_threads(1)
    data = datasets.load(plan.data)
    network = build_network(plan, data.input_shape, data.classes)
    layout, state = network.layout, network.initial
    votes = np.zeros(layout.size, np.int64)
    merged, accuracy = [], []
    with ProcessPoolExecutor(options.workers or None, multiprocessing.get_context("spawn")) as pool:
        for round_ in range(1, plan.rounds + 1):
            mean = weighted_mean(list(pool.map(_tune, [(plan, state, node) for node in range(CLIENTS)])))
            kept = network.method.survivors(mean, votes, CLIENTS, layout, GlobalState(round_, mean, state.mask))
            state = GlobalState(round_, np.where(kept, mean, np.float32(0)), kept)
            merged.append(_accuracy(network, mean, data))
            accuracy.append(_accuracy(network, state.vector, data))
            print(f"plain {plan.method}, {plan.partition}, round {round_}: {accuracy[-1]:.4f}", flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    found = {"merged": merged, "accuracy": accuracy}
    replace_file(file, json.dumps({"plan": plan.to_config(), **found}).encode())
    return found


def _tune(task: tuple[Plan, GlobalState, int]) -> tuple[Vector, int]:
    """One client's round: the trained vector, float32[P], and its number of samples."""
    plan, state, node = task
    torch.set_num_threads(1)
    data = datasets.load(plan.data)
    rows = partition(plan.partition, data.train_y, data.groups, CLIENTS, plan.seed)[node]
    share = datasets.part(data, rows, node, CLIENTS)
    network = build_network(plan, data.input_shape, data.classes)
    values, _ = submission(plan, network, share, state, node)
    return values, len(share.y)


def _accuracy(network: Network, vector: Vector, data: datasets.DataSet) -> float:
    """The share of all test rows that the model of this vector, float32[P], gets right."""
    insert(network.model, network.method, network.layout, vector)
    score = evaluate(network.model, data.test_x.copy(), data.test_y.copy())
    return score.correct / score.tested


# --- results -----------------------------------------------------------------------------------------


def measure(options: Options) -> dict[str, Any]:
    """Run, or read, every part."""
    parts: dict[str, Any] = {}
    for division in options.partitions:
        name = division.replace(":", "-")
        grids = options.bits if division == "iid" else options.bits[:1]
        plans = [plan_for(options, division, bits) for bits in grids]
        parts[division] = {
            "dense": plain(replace(plans[0], method="fedavg"), options.work / f"{name}-dense.json", options),
            "sparse": plain(plans[0], options.work / f"{name}-sparse.json", options),
            "encrypted": [encrypted(plan, options.work / f"{name}-b{plan.bits}", options) for plan in plans],
        }
    plan = plan_for(options, options.partitions[0], options.bits[0])
    left_out = {"data", "partition", "bits"}
    return {
        "command": options.command,
        "machine": machine(),
        "versions": versions("numpy", "torch", "flwr", "tenseal", "pruneseal"),
        "settings": {
            "clients": CLIENTS,
            **{key: value for key, value in asdict(plan).items() if key not in left_out},
        },
        "parts": parts,
        "checks": [check for division, part in parts.items() for check in _checks(division, part, options.rounds)],
    }


def _checks(division: str, part: Mapping[str, Any], rounds: int) -> list[dict[str, Any]]:
    """What must hold, and whether it does."""
    checks = []
    for run in part["encrypted"]:
        where = f"{PARTITIONS[division]}, {run['bits']} bits"
        found: list[tuple[str, float, bool, str]] = [
            ("rounds verified", run["verified"]["rounds"], run["verified"]["rounds"] == rounds, f"{rounds}"),
            (
                "uplink of dense FedAvg's",
                run["uplink_ratio"],
                run["uplink_ratio"] <= LARGEST_RATIO,
                f"<= {LARGEST_RATIO}",
            ),
        ]
        if (limit := LARGEST_BYTES.get(run["bits"])) is not None:
            size = run["uplink_bytes_per_value"]
            found.append(("uplink bytes a value", size, size <= limit, f"<= {limit}"))
        if division == "iid":
            gap = _gap(part, run)
            found.append(("points below dense at the end", gap, gap <= LARGEST_GAP, f"<= {LARGEST_GAP}"))
        checks += [
            {"check": f"{what} ({where})", "found": value, "limit": limit, "holds": holds}
            for what, value, holds, limit in found
        ]
    return checks


def _gap(part: Mapping[str, Any], run: Mapping[str, Any]) -> float:
    """How many points of accuracy a run ends below the dense one."""
    return 100.0 * float(part["dense"]["accuracy"][-1] - run["accuracy"][-1])


def markdown(result: Mapping[str, Any]) -> str:
    """The results as a page."""
    columns = (
        "| clients' data | system | sparsity | accuracy at the end | mean of the last 5 | points below dense "
        "| uplink, bytes a value | uplink of dense | sums verified |"
    )
    lines = [
        *head("Encrypted FedSparsify-Global beside plain dense FedAvg, Fashion-MNIST", result),
        "; ".join(f"{key.replace('_', ' ')} {value}" for key, value in result["settings"].items()) + ".",
        "",
        columns,
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for division, part in result["parts"].items():
        name, curve = PARTITIONS[division], part["dense"]["accuracy"]
        lines.append(
            f"| {name} | dense FedAvg, plain | 0 | {curve[-1]:.4f} | {np.mean(curve[-_LAST:]):.4f} | | 4 | 1 | |"
        )
        curve, sparsity = part["sparse"]["accuracy"], part["encrypted"][0]["sparsity"][-1]
        lines.append(
            f"| {name} | FedSparsify-Global, plain | {sparsity:.4f} | {curve[-1]:.4f} | {np.mean(curve[-_LAST:]):.4f} "
            f"| {_gap(part, part['sparse']):+.2f} | | | |"
        )
        for run in part["encrypted"]:
            curve = run["accuracy"]
            lines.append(
                f"| {name} | FedSparsify-Global, encrypted, {run['bits']} bits | {run['sparsity'][-1]:.4f} "
                f"| {curve[-1]:.4f} | {np.mean(curve[-_LAST:]):.4f} | {_gap(part, run):+.2f} "
                f"| {run['uplink_bytes_per_value']:.3f} "
                f"| {run['uplink_ratio']:.3f} | {run['verified']['rounds']} rounds, "
                f"{run['verified']['values']:,} integers |"
            )
    lines += ["", *check_table(result["checks"])]
    return "\n".join([*lines, "", "![accuracy and sparsity by round](fashion.svg)", ""])


def figure(result: Mapping[str, Any], path: Path) -> None:
    """Accuracy by round of both systems, above the sparsity of the encrypted one."""
    parts = result["parts"]
    with drawing(path, 4.2 * len(parts) + 0.6, 4.6) as drawn:
        grid: Any = drawn.subplots(
            2, len(parts), sharex=True, sharey="row", squeeze=False, gridspec_kw={"height_ratios": [3, 1]}
        )
        for column, (division, part) in enumerate(parts.items()):
            _curves(grid[0, column], PARTITIONS[division], part)
            _sparsity(grid[1, column], part)
        grid[0, 0].set_ylabel("test accuracy")
        grid[1, 0].set_ylabel("sparsity")
        grid[0, 0].legend(loc="lower right", frameon=False)


def _curves(axes: Axes, title: str, part: Mapping[str, Any]) -> None:
    accuracy = part["dense"]["accuracy"]
    axes.plot(range(1, len(accuracy) + 1), accuracy, color=_COLOURS["dense"], label="dense FedAvg, plain")
    merged = part["sparse"]["merged"]
    label = "FedSparsify, plain, before each purge"
    axes.plot(range(1, len(merged) + 1), merged, color=_COLOURS["sparse"], linewidth=1, label=label)
    for run, line in zip(part["encrypted"], ("-", ":", "--", "-."), strict=False):
        label = f"FedSparsify, encrypted, {run['bits']} bits"
        rounds = range(1, len(run["accuracy"]) + 1)
        axes.plot(rounds, run["accuracy"], line, color=_COLOURS["encrypted"], label=label)
    axes.set_title(title)
    axes.grid(alpha=0.3)


def _sparsity(axes: Axes, part: Mapping[str, Any]) -> None:
    sparsity = part["encrypted"][0]["sparsity"]
    axes.plot(range(1, len(sparsity) + 1), sparsity, color=_COLOURS["encrypted"])
    axes.set_ylim(0, 1)
    axes.set_xlabel("round")
    axes.grid(alpha=0.3)


def _options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fashion", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="idx:DIR, DIR with the four files of Fashion-MNIST")
    parser.add_argument("--rounds", type=int, default=60, help="of every run (default: %(default)s)")
    parser.add_argument("--partitions", nargs="+", choices=list(PARTITIONS), default=list(PARTITIONS))
    parser.add_argument("--bits", nargs="+", type=int, default=list(BITS), help="grids; further ones on IID only")
    parser.add_argument("--seed", type=int, default=1990)
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 for one a processor")
    parser.add_argument("--work", type=Path, default=Path("runs/fashion"), help="where the parts are kept")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where the results go")
    parser.add_argument("--fresh", action="store_true", help="run finished parts again")
    given = vars(parser.parse_args(arguments))
    return Options(**given | {"partitions": tuple(given["partitions"]), "bits": tuple(given["bits"])})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, write, print; 1 where a check fails."""
    options = _options(arguments)
    try:
        result = measure(options)
    except PruneSealError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    options.out.mkdir(parents=True, exist_ok=True)
    figure(result, options.out / "fashion.svg")
    return publish(options.out, "fashion", result, markdown(result))


if __name__ == "__main__":
    sys.exit(main())
