"""What the cells of `benchmarks/accuracy.py` came to: groups over seeds, checks, tables and plots."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from matplotlib.ticker import NullFormatter

from benchmarks.cells import HEADLINE, Cell
from benchmarks.page import check_table, drawing, head
from benchmarks.tasks import TASKS
from edge_client.sparsify import METHODS

FEDSPARSIFY: Final = [(method, variant) for method, _, _, variant in HEADLINE if method.startswith("fedsparsify")]
"""Methods and variants that the headline has: no other may decide its check."""

_PANEL: Final = 4
"""How many parts of a key say to which table a group belongs."""

_COLUMNS: Final = 3
"""Panels of a figure, side by side."""

LARGEST_GAP: Final = 1.0
"""Points of accuracy that the best FedSparsify at 0.95 on IID data may end below dense FedAvg."""

LARGEST_DIFFERENCE: Final = 0.3
"""Points between an encrypted cell and the same in the clear."""

LARGEST_VOTES: Final = 0.25
"""Bytes of votes, in those of values, that fedsparsify-local may send."""

SPAFL_UPLINK: Final = 100
"""How many times fewer bytes spafl sends than FedAvg, at least."""


@dataclass(frozen=True)
class Group:
    """The cells that differ in the seed alone.

    Attributes:
        accuracy: After the last round, one per cell.
        sparsity: The mean share of zero parameters at the end.
        uplink: The mean of all bytes up.
        dense: The bytes of dense float32 FedAvg.
        votes: The share of votes in the bytes of values, or 0.
        own: The mean accuracy on the clients' own mix of classes, or None.
        seeds: Of the cells.
    """

    accuracy: tuple[float, ...]
    sparsity: float
    uplink: float
    dense: float
    votes: float
    own: float | None
    seeds: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Accuracy, over the seeds."""
        return float(np.mean(self.accuracy))


class Key(NamedTuple):
    """What the cells of a group have in common."""

    task: str
    partition: str
    rounds: int
    learning_rate: float
    method: str
    sparsity: float
    encrypted: bool
    variant: str = ""

    @property
    def label(self) -> str:
        """The method, and what it is given beyond its own settings."""
        return ", ".join(filter(None, (self.method, self.variant)))


def groups(cells: Iterable[Mapping[str, Any]]) -> dict[Key, Group]:
    """The cells by all but the seed."""
    sorted_cells: dict[Key, list[Mapping[str, Any]]] = defaultdict(list)
    for found in cells:
        cell = Cell(**found["cell"])
        panel = (cell.task, cell.partition, cell.rounds, cell.learning_rate)
        key = Key(*panel, cell.method, cell.sparsity, cell.encrypted, cell.variant)
        sorted_cells[key].append(found)
    return {key: _group(sorted(each, key=lambda f: f["cell"]["seed"])) for key, each in sorted(sorted_cells.items())}


def _group(cells: Sequence[Mapping[str, Any]]) -> Group:
    uplink = [sum(found["uplink"]) for found in cells]
    votes = [sum(found.get("vote_bytes", [0])) for found in cells]
    own = [found["own_accuracy"] for found in cells if "own_accuracy" in found]
    return Group(
        accuracy=tuple(found["accuracy"][-1] for found in cells),
        sparsity=float(np.mean([found["sparsity"][-1] for found in cells])),
        uplink=float(np.mean(uplink)),
        dense=float(np.mean([found["dense_uplink"] for found in cells])),
        votes=float(np.mean([v / (u - v) for u, v in zip(uplink, votes, strict=True)])),
        own=float(np.mean(own)) if own else None,
        seeds=tuple(found["cell"]["seed"] for found in cells),
    )


def checks(found: Mapping[Key, Group]) -> list[dict[str, Any]]:
    """What must hold, of the cells that are there, for each number of rounds and learning rate."""
    runs = sorted({(key.rounds, key.learning_rate) for key in found})
    return [check for rounds, rate in runs for check in _checks(found, rounds, rate)]


def _checks(found: Mapping[Key, Group], rounds: int, rate: float) -> list[dict[str, Any]]:
    made: list[tuple[str, float, str, bool]] = []

    def group(method: str, sparsity: float = 0.95, partition: str = "iid") -> Group | None:
        return found.get(Key("fashion", partition, rounds, rate, method, sparsity, encrypted=False))

    dense, spafl, local = group("fedavg", 0.0), group("spafl", 0.0), group("fedsparsify-local")
    sparse = [
        one
        for key, one in found.items()
        if key[:_PANEL] == ("fashion", "iid", rounds, rate)
        and (key.method, key.variant) in FEDSPARSIFY
        and (key.sparsity, key.encrypted) == (0.95, False)
        and dense is not None
        and one.seeds == dense.seeds
    ]
    sparsyfed, top_k = (group(method, partition="dirichlet:0.1") for method in ("sparsyfed", "topk"))
    if dense is not None and sparse:
        gap = 100 * (dense.mean - max(one.mean for one in sparse))
        text = "points that the best FedSparsify at 0.95 ends below dense FedAvg (IID)"
        made.append((text, gap, f"<= {LARGEST_GAP}", gap <= LARGEST_GAP))
    if sparsyfed is not None and top_k is not None:
        lead = 100 * (sparsyfed.mean - top_k.mean)
        made.append(("points that SparsyFed at 0.95 is above plain top-k (Dirichlet 0.1)", lead, "> 0", lead > 0))
    if spafl is not None and dense is not None:
        ratio = dense.uplink / spafl.uplink
        text = "times fewer bytes up of SpaFL than of FedAvg"
        made.append((text, ratio, f">= {SPAFL_UPLINK}", ratio >= SPAFL_UPLINK))
    if local is not None:
        text = "vote bytes by value bytes of FedSparsify-Local at 0.95"
        made.append((text, local.votes, f"<= {LARGEST_VOTES}", local.votes <= LARGEST_VOTES))
    return [
        {"check": f"{text}, {_run(rounds, rate)}", "found": value, "limit": limit, "holds": holds}
        for text, value, limit, holds in made
    ]


def pairs(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Encrypted cells beside the same in the clear."""
    clear = {Cell(**found["cell"]).name: found for found in cells if not found["cell"]["encrypted"]}
    made = []
    for found in cells:
        twin = clear.get(Cell(**(found["cell"] | {"encrypted": False})).name) if found["cell"]["encrypted"] else None
        if twin is None:
            continue
        points = 100 * max(abs(a - b) for a, b in zip(found["accuracy"], twin["accuracy"], strict=True))
        made.append(
            {
                "cell": twin["cell"],
                "clear": twin["accuracy"][-1],
                "encrypted": found["accuracy"][-1],
                "largest_difference": points,
                "same_bytes": found["uplink"] == twin["uplink"],
                "integers_verified": found["verified"]["values"],
                "holds": points <= LARGEST_DIFFERENCE,
            }
        )
    return made


def markdown(result: Mapping[str, Any], found: Mapping[Key, Group]) -> str:
    """The results as a page."""
    lines = [
        *head("Accuracy by method, sparsity and division of the data", result, result["cells"]),
        "Made of all cells that are listed below, by this command and others before it. Accuracy after the last "
        "round, percent, mean over the seeds of each cell and, with several, the standard "
        "deviation. *zeros*: the share of zero parameters at the end. *uplink*: all bytes that all clients sent, "
        "and their ratio to 4 bytes per parameter, client and round.",
    ]
    for panel in _panels(found):
        here = {key: group for key, group in found.items() if key[:_PANEL] == panel and not key.encrypted}
        lines += [
            "",
            f"## {_title(panel)}",
            "",
            "| method | target | accuracy | zeros | uplink | uplink of dense | seeds |",
            "|---|---|---|---|---|---|---|",
        ]
        for key, group in here.items():
            spread = f" ± {100 * np.std(group.accuracy, ddof=1):.2f}" if len(group.accuracy) > 1 else ""
            own = f" (own mix of classes: {100 * group.own:.2f})" if group.own is not None else ""
            target = f"{key.sparsity:g}" if METHODS[key.method].has_target else ""
            lines.append(
                f"| {key.label} | {target} | {100 * group.mean:.2f}{spread}{own} | {group.sparsity:.4f} "
                f"| {group.uplink / 1e6:.2f} MB | {group.uplink / group.dense:.4f} | {len(group.seeds)} |"
            )
    if result["checks"]:
        lines += ["", "## Checks", "", *check_table(result["checks"])]
    if result["pairs"]:
        lines += [
            "",
            "## Encrypted beside clear, the same cell",
            "",
            "| cell | clear | encrypted | largest difference in any round, points | same bytes | integers verified |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {Cell(**pair['cell']).name} | {100 * pair['clear']:.2f} | {100 * pair['encrypted']:.2f} "
            f"| {pair['largest_difference']:.4f} | {'yes' if pair['same_bytes'] else 'NO'} "
            f"| {pair['integers_verified']:,} |"
            for pair in result["pairs"]
        ]
    names = [Cell(**cell["cell"]).name for cell in result["cells"]]
    lines += ["", f"## The {len(names)} cells", "", *(f"* {name}" for name in names)]
    plots = [f"![{kind}](accuracy-{kind}.svg)" for kind in ("sparsity", "uplink")]
    return "\n".join([*lines, "", *plots, ""])


Panel = tuple[str, str, int, float]
"""Task, partition, rounds, learning rate: the first parts of a key."""


def _panels(found: Iterable[Key]) -> list[Panel]:
    return list(
        dict.fromkeys((key.task, key.partition, key.rounds, key.learning_rate) for key in found if not key.encrypted)
    )


def _points(found: Iterable[Key]) -> dict[Panel, int]:
    """How many sparsities the method that has most of them has in each table."""
    counts = Counter((*key[:_PANEL], key.label) for key in found if not key.encrypted)
    return {panel: max(n for one, n in counts.items() if one[:_PANEL] == panel) for panel in _panels(found)}


def _title(panel: Panel) -> str:
    task, partition, rounds, rate = panel
    return f"{TASKS[task].label}, {TASKS[task].partitions[partition]}, {_run(rounds, rate)}"


def _run(rounds: int, rate: float) -> str:
    return f"{rounds} rounds" + (f", learning rate {rate:g}" if rate else "")


def figures(found: Mapping[Key, Group], out: Path) -> None:
    """Accuracy by sparsity, and by bytes up: one panel per table, one line per method.

    Where a method has several sparsities in some tables, those are drawn and the others left out.
    """
    panels = [panel for panel, most in _points(found).items() if most > 1] or _panels(found)
    methods = sorted({key.label for key in found}, key=lambda label: ([*METHODS].index(label.split(",")[0]), label))
    for kind, label in (("sparsity", "share of zero parameters"), ("uplink", "uplink of dense FedAvg's")):
        rows, columns = -(-len(panels) // _COLUMNS), min(len(panels), _COLUMNS)
        with drawing(out / f"accuracy-{kind}.svg", 3.6 * columns + 1.6, 3.2 * rows + 0.2) as drawn:
            axes: list[Any] = [drawn.add_subplot(rows, columns, place + 1) for place in range(len(panels))]
            for panel, which in zip(axes, panels, strict=True):
                for number, method in enumerate(methods):
                    here = [
                        group
                        for key, group in found.items()
                        if key[:_PANEL] == which and key.label == method and not key.encrypted
                    ]
                    points = sorted(
                        (g.sparsity if kind == "sparsity" else g.uplink / g.dense, 100 * g.mean) for g in here
                    )
                    if points:
                        style = "-" if METHODS[method.split(",")[0]].has_target else "--"
                        panel.plot(
                            *zip(*points, strict=True), f"o{style}", color=f"C{number}", label=method, markersize=4
                        )
                panel.set_title(_title(which).replace(", ", "\n", 1), fontsize="medium")
                panel.set_xlabel(label)
                panel.grid(alpha=0.3)
                if kind == "uplink":
                    panel.set_xscale("log")
                    panel.xaxis.set_minor_formatter(NullFormatter())
            for panel in axes[::_COLUMNS]:
                panel.set_ylabel("test accuracy, %")
            handles = {
                name: line for panel in axes for line, name in zip(*panel.get_legend_handles_labels(), strict=True)
            }
            drawn.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False)
