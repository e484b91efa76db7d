"""How accurate each method is at which sparsity, on data divided in which way, and for how many bytes.

A *cell* is one run: task, method, sparsity, division of the data, seed. It runs in the clear
(`benchmarks/federation.py`: the same model, to the last bit, as the product derives, and the same bytes), or with
``--encrypted`` as the product runs it, every sum verified. Each cell leaves one JSON file in ``--work`` and is not run
again, nor is one that the results in ``--out`` hold already; tables and plots are made of all cells that are there, and
say which they are.

Accuracies are those of the global model on all test rows after each round; for spafl, whose weights stay at home, the
mean of the clients' own models, each on its part of the test rows. Settings are those of
`benchmarks/tasks.py` for all methods but for those in `benchmarks/cells.py`, and the figures are those after the last
round. To choose settings there is the task ``fashion-validation``, whose test rows are taken from the training rows.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from time import process_time
from typing import Any, Final

import torch

from benchmarks.accuracy_report import checks, figures, groups, markdown, pairs
from benchmarks.cells import HEADLINE, Cell
from benchmarks.federation import Clear, encrypted_run
from benchmarks.tasks import TASKS
from edge_client.learning import models
from edge_client.sparsify import METHODS, complete
from edge_client.sparsify.allocation import NAMES
from fleet.results.machine import machine, versions
from protocol.errors import ConfigError, PruneSealError
from protocol.files import replace_file
from protocol.plan import Plan, plan_from_config

SPARSITIES: Final = (0.95, 0.8, 0.9, 0.99)
SEEDS: Final = (1990, 1991, 1992)
"""The grid has the first; the headline cells have all three."""

RESULTS: Final = "accuracy.json"


@dataclass(frozen=True)
class Options:
    """What the benchmark was asked for.

    Attributes:
        data: Fashion-MNIST, as ``idx:DIR``, or None.
        cells: What to run.
        workers: Processes, 0 for one per processor.
        nice: How far the processes stand back.
        work: Where cells are kept.
        out: Where results go.
        command: What repeats this, without folders.
    """

    data: str | None
    cells: tuple[Cell, ...]
    workers: int
    nice: int
    work: Path
    out: Path
    command: str


# --- running -----------------------------------------------------------------------------------------


def run_cell(cell: Cell, data: str | None, work: Path) -> dict[str, Any]:
    """Run a cell, or read it.

    Raises:
        ConfigError: The file was made under another plan.
        PruneSealError: What the run met.
    """
    plan = cell.plan(data)
    file = work / f"{cell.name}.json"
    if file.exists():
        stored: dict[str, Any] = json.loads(file.read_text())
        gained = {**Plan().to_config(), **stored["plan"], "data": plan.data}  # what a plan has gained is at its default
        if complete(plan_from_config(gained)) != plan:
            raise ConfigError(
                f"{file} was made under another plan: use another --work, and another --out "
                f"where its {RESULTS} holds the cell"
            )
        return stored
    begun = process_time()
    found = _encrypted(plan, work / cell.name) if cell.encrypted else _clear(plan, cell.name)
    found |= {
        "cell": asdict(cell),
        "plan": {key: value for key, value in plan.to_config().items() if key != "data"},
        "cpu_seconds": round(process_time() - begun, 1),
        "machine": machine(),
        "versions": versions("numpy", "torch", "tenseal", "pruneseal"),
    }
    work.mkdir(parents=True, exist_ok=True)
    replace_file(file, json.dumps(found).encode())
    return found


def _clear(plan: Plan, name: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    federation = Clear(plan)
    curves: dict[str, list[float]] = defaultdict(list)
    for round_ in range(1, plan.rounds + 1):
        step = federation.round()
        curves["accuracy"].append(step.score.correct / step.score.tested)
        curves["sparsity"].append(step.sparsity)
        curves["uplink"].append(step.uplink)
        curves["vote_bytes"].append(step.vote_bytes)
        curves["values"].append(step.values)
        if round_ % 5 == 0 or round_ == plan.rounds:
            print(f"{name}, round {round_}: {curves['accuracy'][-1]:.4f} at {step.sparsity:.4f}", flush=True)
    found: dict[str, Any] = dict(curves)
    if federation.network.method.personal(federation.network.model):
        found["own_accuracy"] = federation.own_accuracy()
    plain = models.build(plan.model, federation.data.input_shape, federation.data.classes).state_dict()
    size = sum(tensor.numel() for tensor in plain.values() if tensor.is_floating_point())
    return found | {"dense_uplink": plan.rounds * federation.clients * size * 4}


def _encrypted(plan: Plan, folder: Path) -> dict[str, Any]:
    summary, records = encrypted_run(plan, folder, 0, fresh=False)
    return {
        "accuracy": [record.accuracy for record in records],
        "sparsity": [record.sparsity for record in records],
        "uplink": [record.uplink_bytes for record in records],
        "verified": None if summary.verified is None else summary.verified.model_dump(),
        "dense_uplink": summary.dense_fedavg_uplink_bytes,
    }


def restore(options: Options) -> None:
    """Write the files of the cells that the results hold, where they are absent."""
    results = options.out / RESULTS
    if results.exists():
        options.work.mkdir(parents=True, exist_ok=True)
        for found in json.loads(results.read_text())["cells"]:
            file = options.work / f"{Cell(**found['cell']).name}.json"
            if not file.exists():
                replace_file(file, json.dumps(found).encode())


def run_all(options: Options) -> None:
    """Run every cell that has no file yet; encrypted ones, which use all processors, one after another at the end.

    Raises:
        PruneSealError: What a cell met; the files of those before it are kept.
    """
    clear = [cell for cell in options.cells if not cell.encrypted]
    workers = options.workers or os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=os.nice, initargs=(options.nice,)) as pool:
        futures = [pool.submit(run_cell, cell, options.data, options.work) for cell in clear]
        try:
            for future in futures:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()  # the pool's own way is undone as its context ends
            raise
    for cell in options.cells:
        if cell.encrypted:
            run_cell(cell, options.data, options.work)


def report(options: Options) -> dict[str, Any]:
    """Write what all cells in ``--work`` came to.

    Raises:
        ConfigError: There are none.
    """
    cells = [json.loads(file.read_text()) for file in sorted(options.work.glob("*.json"))]
    if not cells:
        raise ConfigError(f"{options.work} holds no cells yet")
    found = groups(cells)
    result = {
        "command": options.command,
        "checks": checks(found),
        "pairs": pairs(cells),
        "cells": cells,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / RESULTS).write_text(json.dumps(result) + "\n")
    (options.out / "accuracy.md").write_text(markdown(result, found))
    figures(found, options.out)
    return result


# --- the command -------------------------------------------------------------------------------------


def cells_of(given: argparse.Namespace) -> tuple[Cell, ...]:
    """The cells that the command names: those of the headline, one seed after another, or a grid."""
    task = TASKS[given.task]
    methods = given.methods or list(METHODS)

    def cell(seed: int, method: str, sparsity: float, partition: str, allocation: str) -> Cell:
        options = METHODS[method].declared()
        target = sparsity if METHODS[method].has_target else 0.0
        rule = allocation if "allocation" in options else ""
        own = options["powerprop"].default if "powerprop" in options else given.powerprop
        beta = 0.0 if given.powerprop == own else given.powerprop
        return Cell(
            given.task, method, target, partition, seed, given.rounds, given.encrypted, beta, rule, given.learning_rate
        )

    if given.headline:
        return tuple(cell(seed, *one) for seed, one in product(SEEDS, HEADLINE) if one[0] in methods)
    chosen = [
        cell(seed, method, sparsity, partition, given.allocation)
        for seed, sparsity, partition, method in product(
            given.seeds, given.sparsities, given.partitions or task.partitions, methods
        )
    ]
    return tuple(dict.fromkeys(chosen))


def _options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", choices=list(TASKS), default="fashion")
    parser.add_argument("--data", help="idx:DIR, DIR with the four files of Fashion-MNIST; the others are in tasks.py")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--methods", nargs="*", choices=list(METHODS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=list(SPARSITIES))
    parser.add_argument("--partitions", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[SEEDS[0]])
    parser.add_argument("--powerprop", type=float, default=0.0, help="beta of powerpropagation; 0: the method's own")
    parser.add_argument("--learning-rate", type=float, default=0.0, help="instead of the task's")
    parser.add_argument("--allocation", choices=NAMES[1:], default="", help="instead of global; not with --headline")
    parser.add_argument("--headline", action="store_true", help="the headline cells with three seeds, no grid")
    parser.add_argument("--encrypted", action="store_true", help="run the product itself")
    parser.add_argument("--report", action="store_true", help="run nothing; write the results of what is there")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 for one per processor")
    parser.add_argument("--nice", type=int, default=10, help="how far they stand back (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"), help="where cells are kept")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where the results go")
    given = parser.parse_args(arguments)
    if given.headline and given.task != "fashion":
        parser.error("--headline is of the task fashion")
    folders, words = (
        {"--work", "--out", "--data", "--workers", "--nice"},
        list(sys.argv[1:] if arguments is None else arguments),
    )
    for word in [word for word in words if word in folders]:
        at = words.index(word)
        words[at : at + 2] = ["--data", "idx:DIR"] if word == "--data" else []
        folders.discard("--data")
    command = " ".join(["python -m benchmarks.accuracy", *words])
    cells = () if given.report else cells_of(given)
    return Options(given.data, cells, given.workers, given.nice, given.work, given.out, command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, write, print; 1 where a check fails."""
    options = _options(arguments)
    try:
        restore(options)
        run_all(options)
        result = report(options)
    except PruneSealError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    print((options.out / "accuracy.md").read_text())
    return 0 if all(entry["holds"] for entry in (*result["checks"], *result["pairs"])) else 1


if __name__ == "__main__":
    sys.exit(main())
