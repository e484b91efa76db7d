"""What purging whole filters saves: a client's training step, its update and the exported network.

One run of FedSparsify-Global with ``--granularity filter`` to S = 0.75 on the six-convolution network, in the clear
(`benchmarks/federation.py`), with the product's own local training. Its images are drawn, 3 x 32 x 32 with a faint mark
for each class: times do not depend on what is in a picture.

Measured: a local update before the first and after the last purge, the same mask without taking anything out, and one
inference in ONNX Runtime of the exported files. All variants of a ratio take turns in this process; medians.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import numpy as np
import onnxruntime
import torch

from benchmarks.federation import Clear
from edge_client.learning.data import DataSet
from edge_client.learning.network import insert
from edge_client.learning.training import local_update
from edge_client.sparsify import GlobalState
from export.exporter import export
from fleet.results.machine import machine, versions
from protocol.plan import Plan

CLIENTS: Final = 3
ROWS: Final = 128
"""Training rows of a client: four steps of 32."""

LARGEST_STEP: Final = 0.5
"""Of the first round's, what a training step of the last round may take."""

SMALLEST_SPEED_UP: Final = 5.0
"""Of the exported network, over the dense one."""


def pictures() -> DataSet:
    """Drawn images, f32[n, 3, 32, 32], in ten classes."""
    rng = np.random.default_rng(0)
    marks = rng.normal(0, 0.5, (10, 3, 32, 32))

    def draw(rows: int) -> tuple[np.ndarray, np.ndarray]:
        y = np.arange(rows) % 10
        return (marks[y] + rng.normal(0, 1, (rows, 3, 32, 32))).astype(np.float32), y.astype(np.int64)

    return DataSet("pictures", *draw(CLIENTS * ROWS), *draw(200), 10)


def plan_of(rounds: int, sparsity: float) -> Plan:
    """The plan of the run; optimiser and batches are those of the paper for this network."""
    return Plan(
        method="fedsparsify-global",
        granularity="filter",
        sparsity=sparsity,
        rounds=rounds,
        max_cohort=CLIENTS,
        model="cifar-cnn",
        data="benchmarks.structured:pictures",
        epochs=1,
        batch_size=32,
        learning_rate=0.005,
        momentum=0.75,
    )


def interleaved(variants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median seconds of each variant; all take turns, and the first turn does not count."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, call in variants.items():
            begun = perf_counter()
            call()
            if turn:
                found[name].append(perf_counter() - begun)
    return {name: median(seconds) for name, seconds in found.items()}


def measure(rounds: int, sparsity: float, repeats: int) -> dict[str, Any]:
    """Run, export and time."""
    torch.set_num_threads(1)
    plan = plan_of(rounds, sparsity)
    federation = Clear(plan)
    first = federation.state
    steps = []
    for _ in range(rounds):
        begun = perf_counter()
        step = federation.round()
        steps.append({"seconds": perf_counter() - begun, "sparsity": step.sparsity, "uplink": step.uplink})
    last = federation.state
    network, share = federation.network, federation.share(0)

    def train(state: GlobalState, granularity: str) -> Callable[[], object]:
        def call() -> None:
            insert(network, state.vector)
            local_update(network, state.mask, share, replace(plan, granularity=granularity), 1)

        return call

    training = interleaved(
        {"first": train(first, "filter"), "last": train(last, "filter"), "last, masked": train(last, "weight")}, repeats
    )
    files: dict[str, dict[str, Any]] = {}
    sessions: dict[str, Any] = {}
    for name, state in (("dense", first), ("pruned", last)):
        insert(network, state.vector)
        made = export(network.model, federation.data.input_shape, {}, federation.data.test_x)
        files[name] = {"bytes": len(made.model), "multiply_accumulates": made.work[1].remaining if made.work else None}
        sessions[name] = _session(made.model)
    inference = {
        batch: interleaved({name: _infer(session, batch) for name, session in sessions.items()}, 20 * repeats)
        for batch in (1, 32)
    }
    ratios = {
        "training step, last of first round": training["last"] / training["first"],
        "training step, masked only": training["last, masked"] / training["first"],
        "update, last of first round": steps[-1]["uplink"] / steps[0]["uplink"],
        "file, pruned of dense": files["pruned"]["bytes"] / files["dense"]["bytes"],
        "inference, times faster, batch 1": inference[1]["dense"] / inference[1]["pruned"],
        "inference, times faster, batch 32": inference[32]["dense"] / inference[32]["pruned"],
    }
    speed = min(ratios["inference, times faster, batch 1"], ratios["inference, times faster, batch 32"])
    step_ratio = ratios["training step, last of first round"]
    return {
        "machine": machine(),
        "versions": versions("torch", "onnxruntime", "pruneseal"),
        "plan": plan.to_config(),
        "rounds": steps,
        "final_parameter_sparsity": steps[-1]["sparsity"],
        "seconds_of_a_step": {name: seconds / (ROWS // plan.batch_size) for name, seconds in training.items()},
        "seconds_of_inference": inference,
        "files": files,
        "ratios": ratios,
        "checks": [
            {
                "check": "training step",
                "found": step_ratio,
                "limit": f"<= {LARGEST_STEP}",
                "holds": step_ratio <= LARGEST_STEP,
            },
            {
                "check": "times faster",
                "found": speed,
                "limit": f">= {SMALLEST_SPEED_UP}",
                "holds": speed >= SMALLEST_SPEED_UP,
            },
        ],
    }


def _session(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _infer(session: Any, batch: int) -> Callable[[], object]:
    x = np.random.default_rng(0).random((batch, 3, 32, 32), dtype=np.float32)
    return lambda: session.run(None, {"input": x})


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, print; 1 where a limit is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.structured", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sparsity", type=float, default=0.75, help="share of dead filters (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args(arguments)
    result = measure(given.rounds, given.sparsity, given.repeats)
    result["command"] = (
        f"python -m benchmarks.structured --rounds {given.rounds} --sparsity {given.sparsity} --repeats {given.repeats}"
    )
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "structured.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"zero parameters at the end: {result['final_parameter_sparsity']:.4f}")
    for name, seconds in result["seconds_of_a_step"].items():
        print(f"training step, {name}: {1e3 * seconds:.1f} ms")
    for name, ratio in result["ratios"].items():
        print(f"{name}: {ratio:.3f}")
    for check in result["checks"]:
        print(f"{check['check']} {check['found']:.3f} {check['limit']}: {'yes' if check['holds'] else 'NO'}")
    return 0 if all(check["holds"] for check in result["checks"]) else 1


if __name__ == "__main__":
    sys.exit(main())
