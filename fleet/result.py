"""What a run leaves behind: the opened model as checkpoint and ONNX, the summary and the report."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from aggregator.journal import METRICS_FILE, Journal
from edge_client import models
from edge_client.client import Network, plain_checkpoint, provenance, state_after
from edge_client.data import DataSet
from edge_client.keys import load_kit
from edge_client.sparsify import GlobalState
from edge_client.sparsify.interface import plain_name
from edge_client.train import evaluate, insert
from export.convert import save_onnx
from export.exporter import Exported, export
from export.parity import accuracy
from fleet.own import own_models
from fleet.provision import kit_name
from fleet.report import LayerDensity, write_report
from protocol import checkpoint
from protocol.errors import CheckpointError
from protocol.files import replace_file
from protocol.parameters import COEFFICIENT_BITS, DEGREE, SECURITY_BITS
from protocol.plan import Plan

CHECKPOINT_FILE: Final = "model.safetensors"
ONNX_FILE: Final = "model.onnx"
SUMMARY_FILE: Final = "summary.json"
REPORT_FILE: Final = "report.html"
_PARITY_INPUTS = 1000


def finish(
    out: Path, plan: Plan, clients: int, network: Network, data: DataSet, verified: Mapping[str, object] | None
) -> dict[str, Any]:
    """Open the last sum; write checkpoint, ONNX, summary and report.

    Args:
        out: The run's folder.
        plan: Its plan.
        clients: How many clients it had.
        network: The plan's network.
        data: The plan's data; its test part scores the result.
        verified: What `pruneseal run --verify` found, or None.

    Returns:
        The summary.

    Raises:
        ParityError: The ONNX file does not compute what the model does.
    """
    journal = Journal(out, plan)
    stored = journal.last()
    kit = load_kit(out / "kits" / kit_name(0))
    state = state_after(stored.aggregate, journal.run, stored.round, kit, plan, network)
    metrics = [json.loads(line) for line in (out / METRICS_FILE).read_text().splitlines()]
    if network.method.personal(network.model):
        figures, density = own_models(out, plan, clients, data, journal.run, state)
    else:
        figures, density = _one_model(out, plan, network, data, journal.run, state)
    plain = network.method.shed(network.model)
    summary = {
        "version": version("pruneseal"),
        "method": plan.method,
        "model": plan.model,
        "data": plan.data,
        "partition": plan.partition,
        "clients": clients,
        "rounds": stored.round,
        **figures,
        **_bytes(metrics, sum(t.numel() for t in plain.state_dict().values() if t.is_floating_point())),
        **_encryption(plan),
        "seconds": round(sum(sum(line["seconds"].values()) for line in metrics), 3),
        "verified": verified,
        "plan": plan.to_config(),
    }
    replace_file(out / SUMMARY_FILE, (json.dumps(summary, indent=1) + "\n").encode())
    write_report(out / REPORT_FILE, metrics, summary, density)
    return summary


def _one_model(
    out: Path, plan: Plan, network: Network, data: DataSet, run: bytes, state: GlobalState
) -> tuple[dict[str, Any], list[LayerDensity]]:
    """Write the averaged model; its figures, and the density of its tensors."""
    insert(network.model, network.method, network.layout, state.vector)
    score = evaluate(network.model, data.test_x.copy(), data.test_y.copy())
    density = _density(network, state)
    parameters, kept = sum(layer.size for layer in density), sum(layer.kept for layer in density)
    metadata = provenance(plan, run, state.round, network, 1 - kept / parameters)
    checkpoint.save(out / CHECKPOINT_FILE, plain_checkpoint(network, metadata))
    rows = np.random.default_rng(plan.seed).permutation(len(data.test_y))[:_PARITY_INPUTS]
    made = export(network.model, data.input_shape, metadata, data.test_x[rows])
    save_onnx(out / ONNX_FILE, made.model)
    figures = {
        "parameters": parameters,
        "kept": kept,
        "sparsity": 1 - kept / parameters,
        "accuracy": score.correct / score.tested,
        "onnx_accuracy": accuracy(made.model, data.test_x, data.test_y),
        "onnx_max_abs_diff": made.parity.max_abs_diff,
        "onnx_bytes": len(made.model),
        "onnx_dense_bytes": made.dense_bytes,
        "multiply_accumulates_left": _work_left(made),
    }
    return figures, density


def _density(network: Network, state: GlobalState) -> list[LayerDensity]:
    """How many positions of each trainable tensor are left."""
    cuts = np.split(state.mask, network.layout.offsets[1:-1])
    return [
        LayerDensity(plain_name(tensor.name), int(cut.sum()), tensor.size)
        for tensor, cut in zip(network.layout.tensors, cuts, strict=True)
        if tensor.trainable
    ]


def _bytes(metrics: Sequence[Mapping[str, Any]], size: int) -> dict[str, Any]:
    """Bytes of the whole run: every frame with its signature and sealed terms; Flower's own envelope is not ours."""
    uplink = sum(line["uplink_bytes"] for line in metrics)
    return {
        "uplink_bytes": uplink,
        "downlink_bytes": sum(line["downlink_bytes"] for line in metrics),
        "dense_fedavg_uplink_bytes": sum(line["cohort"] * size * 4 for line in metrics),
        "uplink_bytes_per_value": uplink / sum(line["values"] for line in metrics),
    }


def _encryption(plan: Plan) -> dict[str, Any]:
    p = plan.parameters
    return {
        "bits": plan.bits,
        "ring_degree": DEGREE,
        "coeff_modulus_bits": COEFFICIENT_BITS,
        "plain_modulus_bits": p.plain_modulus.bit_length(),
        "security_level": SECURITY_BITS,
    }


def _work_left(made: Exported) -> float | None:
    """The fraction of the multiply-accumulates that remain, or None where they cannot be counted."""
    if made.work is None:
        return None
    before, after = made.work
    return after.remaining / before.dense


def export_checkpoint(path: Path, out: Path) -> Exported:
    """Turn a checkpoint into ``out/model.onnx`` and prove that it computes the same.

    Raises:
        CheckpointError: The file is not a checkpoint of a network that can be built here.
        ParityError: ONNX Runtime and torch disagree.
    """
    stored = checkpoint.load(path)
    try:
        input_shape = tuple(int(side) for side in json.loads(stored.metadata["input_shape"]))
        model = models.build(stored.metadata["model"], input_shape, int(stored.metadata["classes"]))
        model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in stored.tensors.items()})
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit the network that it names: {error}") from error
    rows = np.random.default_rng(0).random((_PARITY_INPUTS, *input_shape), dtype=np.float32)
    made = export(model, input_shape, stored.metadata, rows)
    out.mkdir(parents=True, exist_ok=True)
    save_onnx(out / ONNX_FILE, made.model)
    return made
