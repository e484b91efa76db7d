"""File size and latency of exported networks beside dense float ONNX: sparse, filter-pruned and int8.

The networks hold random weights, not trained ones: size and speed depend on which weights are zero, not on what the
others are, and accuracy is measured elsewhere. Unstructured pruning takes, in each layer, the weights of largest
magnitude; the layers' densities follow Erdős–Rényi-Kernel (Evci et al., arXiv:1911.11134), so that thin layers stay
denser, as in trained networks. *Filters* removes three quarters of each hidden layer's filters or neurons with their
batch norm, chosen by norm; residual sums keep a channel while one of their sides has it.

Every file is made by the product's own exporter, and proved: its outputs stay within 1e-4 of torch's, relative to their
largest, on 1,000 inputs.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.filesize import decimal
from torch import Tensor, nn

from benchmarks.page import check_table, drawing, head, publish
from edge_client.learning import models
from export.exporter import Exported, export, export_int8
from export.latency import Latency, compare
from export.scaling import Scaling
from fleet.results.machine import machine, versions
from protocol.files import replace_file

SPARSITIES: Final = (0.8, 0.9, 0.95, 0.99)
FILTERS: Final = 0.75
BATCHES: Final = (1, 32)
THREADS: Final = (1, 2)
INPUTS: Final = 1000
CALIBRATION: Final = 64
TOLERANCE: Final = 1e-4
FLOAT, INT8 = "model.onnx", "model.int8.onnx"

_SEED: Final = 1990
_GREY, _COLOUR = (1, 28, 28), (3, 32, 32)
_INKS: Final = {FLOAT: "#3267d6", INT8: "#0f8a7e"}


def _mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def _cnn6() -> nn.Module:
    layers: list[nn.Module] = []
    inputs = 3
    for place, outputs in enumerate((64, 64, 128, 128, 256, 256)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if place % 2 else []
        inputs = outputs
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4096, 112), nn.ReLU(), nn.Linear(112, 10))


NETWORKS: Final[Mapping[str, tuple[tuple[int, ...], Callable[[], nn.Module]]]] = {
    "MLP 784-300-100-10": (_GREY, lambda: _mlp(784, 300, 100, 10)),
    "MLP 784-1024-1024-10": (_GREY, lambda: _mlp(784, 1024, 1024, 10)),
    "LeNet-5": (_GREY, lambda: models.build("lenet5", _GREY, 10)),
    "6-conv CNN": (_COLOUR, _cnn6),
    "VGG-9": (_COLOUR, lambda: models.build("vgg9", _COLOUR, 10)),
    "ResNet-18": (_COLOUR, lambda: models.build("resnet18", _COLOUR, 10)),
}


def network(name: str) -> nn.Module:
    """The network with random weights, and batch norms that are not the identity."""
    torch.manual_seed(_SEED)
    model = NETWORKS[name][1]()
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def prune(model: nn.Module, sparsity: float) -> None:
    """Zero this fraction of all weights, in place; each layer keeps its largest, as many as its density says."""
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    with torch.no_grad():
        for weight, density in zip(weights, densities([weight.shape for weight in weights], sparsity), strict=True):
            kept = max(1, round(density * weight.numel()))
            threshold = weight.abs().flatten().kthvalue(weight.numel() - kept + 1).values
            weight.mul_(weight.abs() >= threshold)


def densities(shapes: Sequence[Sequence[int]], sparsity: float) -> NDArray[np.float64]:
    """The density of each layer by Erdős–Rényi-Kernel: in proportion to sum(shape) / product(shape), at most 1."""
    sizes = np.array([np.prod(shape) for shape in shapes], np.float64)
    raw = np.array([np.sum(shape) for shape in shapes]) / sizes
    full = np.zeros(len(sizes), np.bool_)
    while True:
        left = (1 - sparsity) * sizes.sum() - sizes[full].sum()
        scaled = raw * left / (raw * sizes)[~full].sum()
        if not (scaled[~full] > 1).any():
            return np.where(full, 1.0, scaled)
        full |= scaled > 1


def prune_filters(model: nn.Module, fraction: float) -> None:
    """Zero this fraction of the outputs of every layer but the last, in place, and what batch norm makes of them."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    norms: dict[nn.Module, nn.BatchNorm2d] = {}
    for before, after in pairwise(model.modules()):
        if isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
            norms[before] = after
    with torch.no_grad():
        for layer in layers[:-1]:
            size = layer.weight.flatten(1).norm(dim=1)
            dead = size.argsort()[: int(fraction * len(size))]
            for tensor in (layer.weight, layer.bias, *(norms[layer].parameters() if layer in norms else ())):
                if isinstance(tensor, Tensor):
                    tensor[dead] = 0


def measure(name: str, pruning: str) -> dict[str, Any]:
    """Export one network and time its files.

    Args:
        name: One of :data:`NETWORKS`.
        pruning: A sparsity, or ``filters``.
    """
    shape, model = NETWORKS[name][0], network(name)
    if pruning == "filters":
        prune_filters(model, FILTERS)
    else:
        prune(model, float(pruning))
    parameters = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    size, kept = sum(p.numel() for p in parameters), sum(int(torch.count_nonzero(p)) for p in parameters)
    inputs = np.random.default_rng(_SEED).uniform(0, 255, (INPUTS, *shape)).astype(np.float32)
    made: Exported = export(model, shape, {}, inputs, Scaling(255.0))
    files = {"dense": made.dense, FLOAT: made.model, INT8: export_int8(made, inputs[:CALIBRATION])}
    latency = [
        {"threads": threads, "batch": batch}
        | {name: asdict(found) for name, found in compare(files, inputs[:batch], threads, seconds=0.6).items()}
        for threads in THREADS
        for batch in BATCHES
    ]
    return {
        "network": name,
        "pruning": pruning,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "sparsity": 1 - kept / size,
        "multiply_accumulates_left": made.work_left,
        "rounded_channels": made.rounded,
        "rounding_speeds": dict(made.speeds),
        "relative_error": made.parity.max_abs_diff / made.parity.scale,
        "inputs": INPUTS,
        "bytes": {name: len(content) for name, content in files.items()},
        "latency": latency,
        "load": os.getloadavg()[0],
        "recommended": _recommended(latency[0]),
    }


def _row(work: Path, fresh: bool, name: str, pruning: str) -> dict[str, Any]:
    """A row that was measured before, or a new one."""
    path = work / f"{name} {pruning}.json"
    if path.is_file() and not fresh:
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    work.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(row := measure(name, pruning)).encode())
    return row


def _recommended(first: Mapping[str, Any]) -> str:
    return min((FLOAT, INT8), key=lambda name: float(first[name]["cpu"]))


def speed(row: Mapping[str, Any], file: str, threads: int = 1, batch: int = 1) -> float:
    """How many times as fast as dense a file is."""
    found = next(line for line in row["latency"] if (line["threads"], line["batch"]) == (threads, batch))
    return Latency(**found[file]).speed(Latency(**found["dense"]))


def ratio(row: Mapping[str, Any], file: str) -> float:
    """How many times as small as dense a file is."""
    return float(row["bytes"]["dense"] / row["bytes"][file])


def checks(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What must hold, and whether it does."""
    found: list[tuple[str, float, float]] = []
    for row in rows:
        where = f"{row['network']}, {row['pruning']}"
        found.append((f"{where}: 1e-4 over the relative error", TOLERANCE / max(row["relative_error"], 1e-12), 1))
        if row["pruning"] == "0.95" and row["parameters"] > 1e6:
            found.append((f"{where}: float file smaller than dense", ratio(row, FLOAT), 14))
            found.append((f"{where}: int8 file smaller than dense", ratio(row, INT8), 26))
        limits = {"6-conv CNN": {FLOAT: 7, INT8: 9}, "VGG-9": {FLOAT: 5, INT8: 9}, "ResNet-18": {FLOAT: 3}}
        if row["pruning"] == "filters":
            for file, limit in limits.get(row["network"], {}).items():
                found.append((f"{where}: {file} faster than dense, batch 1", speed(row, file), limit))
        elif row["network"] in limits:
            found.append((f"{where}: {INT8} faster than dense, batch 1", speed(row, INT8), 3))
    return [{"check": what, "found": value, "least": least, "holds": value >= least} for what, value, least in found]


def markdown(result: Mapping[str, Any]) -> str:
    """The results as a page."""
    settings = [(threads, batch) for threads in THREADS for batch in BATCHES]
    columns = " | ".join(f"{threads}T b{batch}" for threads, batch in settings)
    lines = [
        *head("Exported networks beside dense float ONNX", result),
        "Size: times smaller than the dense file. Speed: times as fast, float / int8, by threads (T) and batch (b);",
        "on one thread by CPU time, on two by the wall clock, which suffers from whatever else the machine does.",
        "Weights are random; *filters* is 0.75 of the filters. *work* is the fraction of multiply-accumulates left;",
        "*16* says that channel counts are rounded up to 16 because that was faster.",
        "",
        f"| network | pruning | work | dense | float size | int8 size | {columns} | 16 | recommended |",
        f"|---|---|---|---|---|---|{'---|' * len(settings)}---|---|",
    ]
    for row in result["rows"]:
        speeds = " | ".join(f"{speed(row, FLOAT, *at):.2f} / {speed(row, INT8, *at):.2f}" for at in settings)
        lines.append(
            f"| {row['network']} | {row['pruning']} | {row['multiply_accumulates_left']:.3f} "
            f"| {decimal(row['bytes']['dense'])} | {ratio(row, FLOAT):.1f} | {ratio(row, INT8):.1f} | {speeds} "
            f"| {'yes' if row['rounded_channels'] else ''} | {'int8' if row['recommended'] == INT8 else 'float'} |"
        )
    told = [check for check in result["checks"] if "relative error" not in check["check"] or not check["holds"]]
    lines += ["", *check_table([check | {"limit": f">= {check['least']}"} for check in told])]
    worst = max(row["relative_error"] for row in result["rows"])
    lines += ["", f"Largest difference to torch on {INPUTS} inputs, relative to the outputs' scale: {worst:.2g}."]
    return "\n".join([*lines, "", "![size and speed by network and pruning](inference.svg)", ""])


def figure(result: Mapping[str, Any], path: Path) -> None:
    """Above the sizes, below the speed at batch 1 on one thread; a group of bars a network."""
    names = list(dict.fromkeys(row["network"] for row in result["rows"]))
    with drawing(path, 2.1 * len(names) + 0.6, 5) as drawn:
        grid: Any = drawn.subplots(2, len(names), sharex=True, sharey="row", squeeze=False)
        for column, name in enumerate(names):
            rows = [row for row in result["rows"] if row["network"] == name]
            for axes, value in zip(grid[:, column], (ratio, speed), strict=True):
                for place, (file, ink) in enumerate(_INKS.items()):
                    heights = [value(row, file) for row in rows]
                    where = [number + 0.4 * place - 0.2 for number in range(len(rows))]
                    axes.bar(where, heights, 0.38, color=ink, label=file)
                axes.axhline(1, color="#17202e", linewidth=0.8)
                axes.set_yscale("log")
                axes.grid(axis="y", alpha=0.3)
                axes.set_axisbelow(True)
            grid[0, column].set_title(name, fontsize=9)
            grid[1, column].set_xticks(range(len(rows)), [row["pruning"] for row in rows], rotation=45)
        grid[0, 0].set_ylabel("times smaller than dense")
        grid[1, 0].set_ylabel("times as fast, batch 1, 1 thread")
        grid[0, 0].legend(loc="upper left", frameon=False, fontsize=8)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, print; 1 where a check fails."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--prunings", nargs="+", default=[*map(str, SPARSITIES), "filters"])
    parser.add_argument("--work", type=Path, default=Path("runs/inference"), help="where finished rows are kept")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where the results go")
    parser.add_argument("--fresh", action="store_true", help="measure finished rows again")
    options = parser.parse_args(arguments)
    rows = []
    for name in options.networks:
        for pruning in options.prunings:
            rows.append(row := _row(options.work, options.fresh, name, pruning))
            print(
                f"{name}, {pruning}: {ratio(row, FLOAT):.1f}x / {ratio(row, INT8):.1f}x smaller, "
                f"{speed(row, FLOAT):.2f}x / {speed(row, INT8):.2f}x as fast",
                flush=True,
            )
    result: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.inference", *(arguments or sys.argv[1:])]),
        "machine": machine(),
        "versions": versions("onnx", "onnxruntime", "torch"),
        "rows": rows,
        "checks": checks(rows),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    figure(result, options.out / "inference.svg")
    return publish(options.out, "inference", result, markdown(result))


if __name__ == "__main__":
    sys.exit(main())
