"""What a run leaves behind where every client has a model of its own: a folder for each, and the means over them.

The operator of a local run holds the kits and state folders of all its nodes, so it can do for each what the node does
for itself in a deployment: `edge_client/client.py` writes the same checkpoint there.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import nn

from edge_client import data as datasets
from edge_client.client import MODEL_FILE, Network, build_network, plain_checkpoint, provenance
from edge_client.data import DataSet
from edge_client.partition import partition
from edge_client.personal import load_personal
from edge_client.sparsify import GlobalState
from edge_client.train import evaluate, insert
from export.convert import save_onnx
from export.exporter import Exported, export
from export.parity import accuracy
from fleet.provision import kit_name
from fleet.report import LayerDensity
from protocol import checkpoint
from protocol.plan import Plan

CLIENTS: Final = "clients"
ONNX_FILE: Final = "model.onnx"
_PARITY_INPUTS = 1000


def own_network(out: Path, plan: Plan, data: DataSet, run: bytes, state: GlobalState, client: int) -> Network:
    """The network of one client of a local run after a round, as its method wears it."""
    network = build_network(plan, data.input_shape, data.classes)
    own = network.method.personal(network.model)
    load_personal(out / "kits" / kit_name(client) / "state", run, state.round + 1, own)
    insert(network.model, network.method, network.layout, state.vector)
    return network


def own_models(
    out: Path, plan: Plan, clients: int, data: DataSet, run: bytes, state: GlobalState
) -> tuple[dict[str, Any], list[LayerDensity]]:
    """Write ``clients/node-<i>/{model.safetensors,model.onnx}`` for every client.

    Returns:
        The figures of the summary: means over the clients, accuracy over their test rows; and the density of each
        tensor over all clients.

    Raises:
        ParityError: An ONNX file does not compute what its model does.
    """
    parts = partition(plan.partition, data.train_y, data.groups, clients, plan.seed)
    made: list[Exported] = []
    sizes, correct, tested, by_onnx = [], 0, 0, 0.0
    alive: dict[str, list[int]] = {}
    for client in range(clients):
        network = own_network(out, plan, data, run, state, client)
        share = datasets.part(data, parts[client], client, clients)
        sizes.append(network.method.sizes(network.model, network.layout, state))
        parameters, kept = sizes[-1]
        score = evaluate(network.model, share.test_x, share.test_y)
        metadata = provenance(plan, run, state.round, network, 1 - kept / parameters)
        folder = out / CLIENTS / kit_name(client)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save(folder / MODEL_FILE, plain_checkpoint(network, metadata))
        made.append(export(network.model, data.input_shape, metadata, share.test_x[:_PARITY_INPUTS]))
        save_onnx(folder / ONNX_FILE, made[-1].model)
        correct, tested = correct + score.correct, tested + score.tested
        by_onnx += accuracy(made[-1].model, share.test_x, share.test_y) * score.tested
        _count(network.model, alive)
    shares = [after.remaining / before.dense for before, after in (one.work for one in made if one.work)]
    figures = {
        "parameters": sizes[0][0],
        "kept": round(float(np.mean([kept for _, kept in sizes]))),
        "sparsity": float(np.mean([1 - kept / parameters for parameters, kept in sizes])),
        "accuracy": correct / tested,
        "onnx_accuracy": by_onnx / tested,
        "onnx_max_abs_diff": max(one.parity.max_abs_diff for one in made),
        "onnx_bytes": round(float(np.mean([len(one.model) for one in made]))),
        "onnx_dense_bytes": round(float(np.mean([one.dense_bytes for one in made]))),
        "multiply_accumulates_left": float(np.mean(shares)) if len(shares) == len(made) else None,
        "own_models": clients,
    }
    return figures, [LayerDensity(name, kept, size) for name, (kept, size) in alive.items()]


def _count(plain: nn.Module, alive: dict[str, list[int]]) -> None:
    """Add a plain model's non-zero and all values to the counts by tensor."""
    for name, parameter in plain.named_parameters():
        count = alive.setdefault(name, [0, 0])
        count[0] += int(parameter.count_nonzero())
        count[1] += parameter.numel()
