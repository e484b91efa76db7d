"""What a run leaves behind where every client has a model of its own: a folder for each, and the means over them.

The operator of a local run holds the kits and state folders of all its nodes, so it can do for each what the node does
for itself in a deployment: `edge_client/client.py` leaves the same checkpoint there.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from torch import nn

from edge_client.learning import data as datasets
from edge_client.learning.network import Network, build_network, insert
from edge_client.learning.partition import partition
from edge_client.learning.training import evaluate
from edge_client.personal import load_personal
from edge_client.result import CHECKPOINT_FILE, to_checkpoint
from edge_client.sparsify import GlobalState
from fleet.provisioning.kits import kit_name
from fleet.results.figures import LayerDensity
from fleet.results.opened_run import OpenedRun
from fleet.results.release import release
from fleet.results.summary import ModelFigures, figures_of
from protocol import checkpoint

CLIENTS: Final = "clients"


def own_network(run: OpenedRun, state: GlobalState, client: int) -> Network:
    """The network of one client of a local run after a round, as its method wears it."""
    network = build_network(run.plan, run.data.input_shape, run.data.classes, run.journal.run)
    own = network.method.personal(network.model)
    load_personal(run.folder / "kits" / kit_name(client) / "state", run.journal.run, state.round + 1, own)
    insert(network, state.vector)
    return network


def alive_by_tensor(run: OpenedRun, state: GlobalState) -> dict[str, tuple[int, int]]:
    """The non-zero values and all values of each trainable tensor, added up over the clients' own models."""
    alive: dict[str, tuple[int, int]] = {}
    for client in range(run.clients):
        network = own_network(run, state, client)
        _count(network.method.shed(network.model), alive)
    return alive


def own_models(run: OpenedRun, state: GlobalState, out: Path) -> tuple[ModelFigures, list[LayerDensity]]:
    """Write ``clients/node-<i>/``, a checkpoint and its export, for every client.

    Returns:
        The figures of the summary: means over the clients, accuracies over all test rows, each scored by the model of
        the client that holds it; and the density of each tensor over all clients.

    Raises:
        ParityError: An ONNX file does not compute what its model does.
    """
    plan, data, clients = run.plan, run.data, run.clients
    parts = partition(plan.partition, data.train_y, data.groups, clients, plan.seed)
    made: list[tuple[ModelFigures, int]] = []
    alive: dict[str, tuple[int, int]] = {}
    for client in range(clients):
        network = own_network(run, state, client)
        share = datasets.part(data, parts[client], client, clients)
        parameters, kept = network.method.sizes(network.model, network.layout, state)
        score = evaluate(network.model, share.test_x, share.test_y)
        folder = out / CLIENTS / kit_name(client)
        folder.mkdir(parents=True, exist_ok=True)
        result = to_checkpoint(network, run.journal.run, state.round, plan, data, 1 - kept / parameters)
        checkpoint.save(folder / CHECKPOINT_FILE, result)
        rows = replace(data, train_x=share.x, train_y=share.y, test_x=share.test_x, test_y=share.test_y, groups=None)
        exported = release(folder / CHECKPOINT_FILE, folder, rows, model=plan.model)
        made.append((figures_of(parameters, kept, score.correct / score.tested, exported), score.tested))
        _count(network.model, alive)
    return _means(made), [LayerDensity(name, kept, size) for name, (kept, size) in alive.items()]


def _means(made: Sequence[tuple[ModelFigures, int]]) -> ModelFigures:
    """The clients' figures, each with its number of test rows, as one: accuracies are weighted by these."""
    figures, rows = [one for one, _ in made], [tested for _, tested in made]

    def mean(values: Sequence[float | None], weights: Sequence[int] | None = None) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.average(known, weights=weights)) if len(known) == len(values) else None

    names = [one.recommended for one in figures]
    return ModelFigures(
        parameters=figures[0].parameters,
        kept=round(np.mean([one.kept for one in figures])),
        sparsity=float(np.mean([one.sparsity for one in figures])),
        accuracy=mean([one.accuracy for one in figures], rows),
        onnx_accuracy=mean([one.onnx_accuracy for one in figures], rows),
        onnx_max_abs_diff=max(one.onnx_max_abs_diff or 0.0 for one in figures),
        onnx_bytes=round(np.mean([one.onnx_bytes for one in figures])),
        dense_onnx_bytes=round(np.mean([one.dense_onnx_bytes for one in figures])),
        int8_onnx_bytes=mean([one.int8_onnx_bytes for one in figures]),
        int8_accuracy=mean([one.int8_accuracy for one in figures], rows),
        int8_refused=next((one.int8_refused for one in figures if one.int8_refused), None),
        recommended=max(sorted(set(names)), key=names.count),
        onnx_speed=float(np.mean([one.onnx_speed for one in figures])),
        int8_speed=mean([one.int8_speed for one in figures]),
        multiply_accumulates_left=mean([one.multiply_accumulates_left for one in figures]),
    )


def _count(plain: nn.Module, alive: dict[str, tuple[int, int]]) -> None:
    """Add a plain model's non-zero and all values to the counts by tensor."""
    for name, parameter in plain.named_parameters():
        kept, size = alive.get(name, (0, 0))
        alive[name] = (kept + int(parameter.count_nonzero()), size + parameter.numel())
