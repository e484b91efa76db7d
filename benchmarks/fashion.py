"""FedSparsify's setting on Fashion-MNIST: the encrypted product beside plain dense FedAvg.

Ten clients train the paper's 784-128-128-10 network with SGD 0.02, batches of 32 and four local epochs per round, on
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
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.fashion_report import PARTITIONS, checks, figure, markdown
from benchmarks.federation import encrypted_run, submission, weighted_mean
from benchmarks.page import publish
from edge_client.learning import data as datasets
from edge_client.learning.network import Network, build_network, insert
from edge_client.learning.partition import partition
from edge_client.learning.training import evaluate
from edge_client.sparsify import GlobalState
from fleet.results.machine import machine, versions
from fleet.running.local import run_name
from protocol.call import Call
from protocol.errors import ConfigError, PruneSealError
from protocol.files import replace_file
from protocol.layout import Vector
from protocol.plan import Plan

CLIENTS: Final = 10
BITS: Final = (16, 12)
"""The grids; the second, and any further one, is tried on IID shares alone."""


@dataclass(frozen=True)
class Options:
    """What the benchmark was asked for.

    Attributes:
        data: Fashion-MNIST, as ``idx:DIR``.
        rounds: Of every run.
        partitions: Which of `PARTITIONS`.
        bits: The grids.
        seed: Of everything but the keys.
        workers: Processes; 0 for one per processor.
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
    summary, records = encrypted_run(plan, folder, options.workers, fresh=options.fresh)
    kept = {"parameters", "kept", "uplink_bytes", "downlink_bytes", "dense_fedavg_uplink_bytes", "verified"}
    return {
        "bits": plan.bits,
        "accuracy": [record.accuracy for record in records],
        "sparsity": [record.sparsity for record in records],
        **summary.model_dump(include=kept),
        "uplink_bytes_per_value": summary.uplink_bytes_per_value,
        "uplink_ratio": summary.uplink_bytes / summary.dense_fedavg_uplink_bytes,
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
    network = build_network(plan, data.input_shape, data.classes, run_name(plan))
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
    call = Call(run_name(plan), state.round + 1, 1)
    network = build_network(plan, data.input_shape, data.classes, call.run)
    values, _ = submission(plan, network, share, state, call, node)
    return values, len(share.y)


def _accuracy(network: Network, vector: Vector, data: datasets.DataSet) -> float:
    """The share of all test rows that the model of this vector, float32[P], gets right."""
    insert(network, vector)
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
        "checks": [check for division, part in parts.items() for check in checks(division, part, options.rounds)],
    }


def _options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fashion", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="idx:DIR, DIR with the four files of Fashion-MNIST")
    parser.add_argument("--rounds", type=int, default=60, help="of every run (default: %(default)s)")
    parser.add_argument("--partitions", nargs="+", choices=list(PARTITIONS), default=list(PARTITIONS))
    parser.add_argument("--bits", nargs="+", type=int, default=list(BITS), help="grids; further ones on IID only")
    parser.add_argument("--seed", type=int, default=1990)
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 for one per processor")
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
