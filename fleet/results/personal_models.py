"""What a run leaves behind where every client has a model of its own: a folder for each, and the means over them.

The operator of a local run holds the kits and state folders of all its nodes, so it can do for each what the node does
for itself in a deployment: `edge_client/client.py` leaves the same checkpoint there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import nn

from edge_client.learning import data as datasets
from edge_client.learning.data import DataSet
from edge_client.learning.network import Network, build_network, insert
from edge_client.learning.partition import partition
from edge_client.learning.training import evaluate
from edge_client.personal import load_personal
from edge_client.result import CHECKPOINT_FILE, to_checkpoint
from edge_client.sparsify import GlobalState
from fleet.provisioning.kits import kit_name
from fleet.results.figures import LayerDensity
from fleet.results.release import release, summarised
from protocol import checkpoint
from protocol.plan import Plan

CLIENTS: Final = "clients"


def own_network(run_folder: Path, plan: Plan, data: DataSet, run: bytes, state: GlobalState, client: int) -> Network:
    """The network of one client of a local run after a round, as its method wears it."""
    network = build_network(plan, data.input_shape, data.classes)
    own = network.method.personal(network.model)
    load_personal(run_folder / "kits" / kit_name(client) / "state", run, state.round + 1, own)
    insert(network, state.vector)
    return network


def alive_by_tensor(
    run_folder: Path, plan: Plan, data: DataSet, run: bytes, state: GlobalState, clients: int
) -> dict[str, tuple[int, int]]:
    """The non-zero values and all values of each trainable tensor, added up over the clients' own models."""
    alive: dict[str, tuple[int, int]] = {}
    for client in range(clients):
        network = own_network(run_folder, plan, data, run, state, client)
        _count(network.method.shed(network.model), alive)
    return alive


def own_models(  # a run and where it is
    run_folder: Path, out: Path, plan: Plan, clients: int, data: DataSet, run: bytes, state: GlobalState
) -> tuple[dict[str, Any], list[LayerDensity]]:
    """Write ``clients/node-<i>/``, a checkpoint and its export, for every client.

    Returns:
        The figures of the summary: means over the clients, accuracies over all test rows, each scored by the model of
        the client that holds it; and the density of each tensor over all clients.

    Raises:
        ParityError: An ONNX file does not compute what its model does.
    """
    parts = partition(plan.partition, data.train_y, data.groups, clients, plan.seed)
    made: list[dict[str, Any]] = []
    alive: dict[str, tuple[int, int]] = {}
    for client in range(clients):
        network = own_network(run_folder, plan, data, run, state, client)
        share = datasets.part(data, parts[client], client, clients)
        parameters, kept = network.method.sizes(network.model, network.layout, state)
        score = evaluate(network.model, share.test_x, share.test_y)
        folder = out / CLIENTS / kit_name(client)
        folder.mkdir(parents=True, exist_ok=True)
        result = to_checkpoint(network, run, state.round, plan, data, 1 - kept / parameters)
        checkpoint.save(folder / CHECKPOINT_FILE, result)
        rows = replace(data, train_x=share.x, train_y=share.y, test_x=share.test_x, test_y=share.test_y, groups=None)
        exported = summarised(release(folder / CHECKPOINT_FILE, folder, rows, model=plan.model))
        sizes = {"parameters": parameters, "kept": kept, "sparsity": 1 - kept / parameters}
        made.append({**sizes, "accuracy": score.correct / score.tested, "tested": score.tested, **exported})
        _count(network.model, alive)
    return _means(made), [LayerDensity(name, kept, size) for name, (kept, size) in alive.items()]


def _means(made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The clients' figures as one: means, weighted by test rows for accuracies; the worst for the proof."""
    rows = [one["tested"] for one in made]

    def mean(key: str, weights: Sequence[int] | None = None) -> float | None:
        values = [one[key] for one in made]
        return None if None in values else float(np.average(values, weights=weights))

    names = [one["recommended"] for one in made]
    return {
        "parameters": made[0]["parameters"],
        **{key: round(mean(key) or 0) for key in ("kept", "onnx_bytes", "dense_onnx_bytes")},
        **{key: mean(key, rows) for key in ("accuracy", "onnx_accuracy", "int8_accuracy")},
        **{
            key: mean(key)
            for key in ("sparsity", "int8_onnx_bytes", "onnx_speed", "int8_speed", "multiply_accumulates_left")
        },
        "onnx_max_abs_diff": max(one["onnx_max_abs_diff"] for one in made),
        "int8_refused": next((one["int8_refused"] for one in made if one["int8_refused"]), None),
        "recommended": max(sorted(set(names)), key=names.count),
        "own_models": len(made),
    }


def _count(plain: nn.Module, alive: dict[str, tuple[int, int]]) -> None:
    """Add a plain model's non-zero and all values to the counts by tensor."""
    for name, parameter in plain.named_parameters():
        kept, size = alive.get(name, (0, 0))
        alive[name] = (kept + int(parameter.count_nonzero()), size + parameter.numel())
