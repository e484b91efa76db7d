"""What a deployed round costs beside Flower's own floor, and what memory the aggregator takes for how many clients.

Both run as ``pruneseal run --engine flower`` does: SuperLink, aggregator, SuperNodes and apps are processes of their
own on this machine, with TLS and registered keys.

*Round time*: 3 clients with updates of about a megabyte train next to nothing. The floor is an app of plain Flower
(`benchmarks/floor.py`) in the same deployment, which moves as many bytes in three messages per round and computes
nothing. The first round of each, which has no aggregate to send and starts everything, is left out; medians.

*Memory*: the largest resident set of the process that runs the aggregator's app, over two rounds of 5 clients and of
30 clients, whose contributions have about five megabytes.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import tomli_w
from numpy.typing import NDArray
from torch import nn

from aggregator.records import METRICS_FILE, read_records
from aggregator.service import FlowerControl
from aggregator.status import FAILED, read_status
from benchmarks import floor
from fleet.provisioning.app_bundle import app_files
from fleet.provisioning.kits import provision
from fleet.results.machine import machine, versions
from fleet.running.deployment import CONNECTION, Deployment, prepare
from protocol.errors import DeploymentError
from protocol.plan import Plan

LARGEST_EXCESS: Final = 1.5
"""Seconds that a round may take beyond the floor's."""
LARGEST_GROWTH: Final = 1.2
"""Of the memory with few clients, what it may be with many."""
FEW: Final = 5
MANY: Final = 30
_ROOT: Final = Path(__file__).parents[1]
_PATIENCE_SECONDS: Final = 900.0
_WIDTHS: Final = {"megabyte": (512, 880), "five megabytes": (1500, 1500)}


def megabyte(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """A network whose dense update has about a megabyte."""
    return _network(*_WIDTHS["megabyte"], input_shape, classes)


def five_megabytes(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """A network whose dense update has about five megabytes."""
    return _network(*_WIDTHS["five megabytes"], input_shape, classes)


def points() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Points whose class is the octant that they lie in: 32 for each of 30 clients."""
    x = np.random.default_rng(4).normal(size=(1000, 20)).astype(np.float32)
    y = ((x[:, :3] > 0) @ np.array([1, 2, 4])).astype(np.int64)
    return x[:960], y[:960], x[960:], y[960:]


def _network(first: int, second: int, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    inputs = int(np.prod(input_shape))
    layers = [nn.Linear(inputs, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, classes)]
    return nn.Sequential(*layers)


def _plan(model: str, clients: int, rounds: int) -> Plan:
    return Plan(
        method="fedavg",
        rounds=rounds,
        min_cohort=clients,
        max_cohort=clients,
        model=f"benchmarks.deployment:{model}",
        data="benchmarks.deployment:points",
        epochs=1,
        deadline=_PATIENCE_SECONDS,
        attempts=1,
    )


class _Plain(Deployment):
    """A deployment whose nodes run any bundle, by Flower's own command."""

    executor = (str(Path(sys.executable).with_name("flower-superexec")),)


@contextmanager
def _folder(plan: Plan, clients: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pruneseal-") as name:
        out = Path(name)
        provision(out / "kits", clients, plan)
        prepare(out, plan, clients)
        yield out


def _until(what: str, reached: Any, deployment: Deployment) -> None:
    end = time.monotonic() + _PATIENCE_SECONDS
    while not reached():
        deployment.tend()
        status = read_status(deployment.run)
        if time.monotonic() > end or (status is not None and status.state == FAILED):
            logs = "\n".join(path.read_text()[-2000:] for path in (deployment.out / "logs").glob("*.log"))
            raise DeploymentError(f"{what} does not happen: {status}\n{logs}")
        time.sleep(0.05)


def round_times(clients: int, rounds: int) -> tuple[list[float], int, int]:
    """Seconds from round to round, without the first, and the bytes of an aggregate and of a contribution."""
    plan = _plan("megabyte", clients, rounds)
    with (
        _folder(plan, clients) as out,
        Deployment(out, clients, environment={"PYTHONPATH": str(_ROOT)}) as deployment,
    ):
        ends: list[float] = []

        def finished() -> bool:
            path = out / METRICS_FILE
            done = len(path.read_text().splitlines()) if path.exists() else 0
            ends.extend([time.monotonic()] * (done - len(ends)))
            return done == rounds

        _until("the last round", finished, deployment)
        last = read_records(out)[-1]
    times = [after - before for before, after in pairwise(ends)]
    return times, last.downlink_bytes // clients, last.uplink_bytes // clients


def floor_times(clients: int, down: int, up: int) -> list[float]:
    """Seconds of a round of the floor, without the first."""
    plan = _plan("megabyte", clients, 1)
    with _folder(plan, clients) as out:
        times = out / "times.json"
        environment = {
            "PYTHONPATH": str(_ROOT),
            "FLOOR_NODES": str(clients),
            "FLOOR_DOWN": str(down),
            "FLOOR_UP": str(up),
            "FLOOR_TIMES": str(times),
        }
        deployment = _Plain(out, clients, environment=environment)
        try:
            deployment.start_superlink()
            deployment.register()
            deployment.start_aggregator()
            for node in range(clients):
                deployment.start_node(node)
            os.environ["FLWR_HOME"] = str(out / "flower")
            FlowerControl(_floor_app(out / "floor", plan), CONNECTION).submit()
            _until("the floor", times.exists, deployment)
        finally:
            deployment.stop()
        found: list[float] = json.loads(times.read_text())
    return found[1:]


def _floor_app(folder: Path, plan: Plan) -> Path:
    """The Flower app of the floor: that of a plan, with the floor's components."""
    folder.mkdir()
    for name, content in app_files(plan).items():
        (folder / name).write_bytes(content)
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    project["tool"]["flwr"]["app"]["components"] = {
        "serverapp": "benchmarks.floor:server",
        "clientapp": "benchmarks.floor:client",
    }
    (folder / "pyproject.toml").write_text(tomli_w.dumps(project))
    return folder


def peak_memory(clients: int, rounds: int) -> tuple[int, int]:
    """The largest resident set of the aggregator's app, and the bytes of a contribution."""
    plan, peak = _plan("five_megabytes", clients, rounds), 0
    with (
        _folder(plan, clients) as out,
        Deployment(out, clients, environment={"PYTHONPATH": str(_ROOT)}) as deployment,
    ):

        def finished() -> bool:
            nonlocal peak
            peak = max([peak, *_resident(deployment.processes["aggregator"].pid, "flwr-serverapp")])
            return len(read_records(out)) == rounds

        _until("the last round", finished, deployment)
        last = read_records(out)[-1]
    return peak, last.uplink_bytes // clients


def _resident(group: int, command: str) -> Iterator[int]:
    """The largest resident set so far, in bytes, of each process of a group that runs a command."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) != group or command.encode() not in (process / "cmdline").read_bytes():
                continue
            lines = (process / "status").read_text().splitlines()
        except (ProcessLookupError, FileNotFoundError):
            continue  # it has ended
        yield from (1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def measure(rounds: int) -> dict[str, Any]:
    """Everything that this benchmark tells."""
    ours, down, up = round_times(3, rounds)
    print(f"rounds: {_list(ours)}", flush=True)
    plain = floor_times(3, down, up)
    print(f"floor:  {_list(plain)}", flush=True)
    memory: dict[int, int] = {}
    for clients in (FEW, MANY):
        memory[clients], size = peak_memory(clients, 2)
        print(f"{clients} clients: {memory[clients] / 1e6:.0f} MB for contributions of {size / 1e6:.1f} MB", flush=True)
    excess, growth = median(ours) - median(plain), memory[MANY] / memory[FEW]
    return {
        "machine": machine(),
        "versions": versions("flwr", "tenseal", "pruneseal"),
        "seconds": {"rounds": ours, "floor": plain, "median": median(ours), "median of the floor": median(plain)},
        "bytes": {"down": down, "up": up, "contribution, memory": size},
        "peak_memory_bytes": {str(clients): peak for clients, peak in memory.items()},
        "checks": [
            _check("seconds beyond the floor", excess, LARGEST_EXCESS),
            _check(f"memory of {MANY} clients over that of {FEW}", growth, LARGEST_GROWTH),
        ],
    }


def _check(what: str, found: float, limit: float) -> dict[str, Any]:
    return {"check": what, "found": found, "most": limit, "holds": found <= limit}


def _list(seconds: Sequence[float]) -> str:
    return " ".join(f"{value:.2f}" for value in seconds) + f" s, median {median(seconds):.2f} s"


def _write(result: Mapping[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "deployment.json").write_text(json.dumps(result, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, print; 1 where a limit is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.deployment", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=floor.ROUNDS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args(arguments)
    result = {"command": f"python -m benchmarks.deployment --rounds {given.rounds}", **measure(given.rounds)}
    _write(result, given.out)
    for check in result["checks"]:
        print(f"{check['check']}: {check['found']:.2f} (at most {check['most']}: {'yes' if check['holds'] else 'NO'})")
    return 0 if all(check["holds"] for check in result["checks"]) else 1


if __name__ == "__main__":
    sys.exit(main())
