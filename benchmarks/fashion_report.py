"""What the runs of `benchmarks/fashion.py` came to: checks, table and plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes

from benchmarks.page import check_table, drawing, head

PARTITIONS: Final = {"iid": "IID", "shards:2": "two classes per client"}

LARGEST_GAP: Final = 1.5
"""Points of test accuracy that the encrypted IID run may end below the dense one."""

LARGEST_RATIO: Final = 0.20
"""Of the bytes that dense FedAvg sends in float32."""

LARGEST_BYTES: Final = {16: 2.3, 12: 1.7}
"""Uplink bytes per value, by bits of the grid."""

_LAST = 5  # rounds of the mean that stands beside the last accuracy
_COLOURS = {"dense": "#777777", "sparse": "#e08a1e", "encrypted": "#1b6ca8"}


def checks(division: str, part: Mapping[str, Any], rounds: int) -> list[dict[str, Any]]:
    """What must hold, and whether it does."""
    made = []
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
            found.append(("uplink bytes per value", size, size <= limit, f"<= {limit}"))
        if division == "iid":
            gap = _gap(part, run)
            found.append(("points below dense at the end", gap, gap <= LARGEST_GAP, f"<= {LARGEST_GAP}"))
        made += [
            {"check": f"{what} ({where})", "found": value, "limit": limit, "holds": holds}
            for what, value, holds, limit in found
        ]
    return made


def _gap(part: Mapping[str, Any], run: Mapping[str, Any]) -> float:
    """How many points of accuracy a run ends below the dense one."""
    return 100.0 * float(part["dense"]["accuracy"][-1] - run["accuracy"][-1])


def markdown(result: Mapping[str, Any]) -> str:
    """The results as a page."""
    columns = (
        "| clients' data | system | sparsity | accuracy at the end | mean of the last 5 | points below dense "
        "| uplink, bytes per value | uplink of dense | sums verified |"
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
