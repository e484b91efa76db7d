"""What a run leaves behind: the opened model as checkpoint and export folder, the summary and the report."""

from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np

from aggregator.journal import Journal, read_records
from edge_client.keys import Opener
from edge_client.learning.data import DataSet
from edge_client.learning.network import Network, insert
from edge_client.learning.training import evaluate
from edge_client.result import CHECKPOINT_FILE, to_checkpoint
from edge_client.round import state_after
from edge_client.sparsify import GlobalState
from edge_client.sparsify.interface import plain_name
from fleet.results.figures import LayerDensity
from fleet.results.personal_models import own_models
from fleet.results.release import release
from fleet.results.report import write_report
from fleet.results.summary import ModelFigures, Summary, Verified, figures_of
from protocol import checkpoint
from protocol.errors import CheckpointError
from protocol.parameters import COEFFICIENT_BITS, DEGREE, SECURITY_BITS
from protocol.plan import Plan

SUMMARY_FILE: Final = "summary.json"
REPORT_FILE: Final = "report.html"


def finish(
    run: Path,
    out: Path,
    kit: Opener,
    plan: Plan,
    clients: int,
    network: Network,
    data: DataSet,
    verified: Verified | None,
) -> Summary:
    """Open the last sum; write checkpoint and export, summary and report.

    Args:
        run: The run's folder.
        out: Where to write.
        kit: Opens the sum.
        plan: The run's plan.
        clients: How many clients it had.
        network: The plan's network.
        data: The plan's data; its test part scores the result.
        verified: What `pruneseal run --verify` found, or None.

    Returns:
        The summary.

    Raises:
        CheckpointError: No round is complete.
        ParityError: The ONNX file does not compute what the model does.
    """
    journal = Journal(run, plan)
    stored = journal.last()
    if not stored.round:
        raise CheckpointError(f"{run} holds no complete round yet")
    state = state_after(stored.aggregate, journal.run, stored.round, kit, plan, network)
    metrics = read_records(run)
    if network.method.personal(network.model):
        figures, density = own_models(run, out, plan, clients, data, journal.run, state)
    else:
        figures, density = _one_model(out, plan, network, data, journal.run, state)
    plain = network.method.shed(network.model)
    size = sum(t.numel() for t in plain.state_dict().values() if t.is_floating_point())
    uplink = sum(line.uplink_bytes for line in metrics)
    summary = Summary(
        pruneseal=version("pruneseal"),
        method=plan.method,
        model=plan.model,
        data=plan.data,
        partition=plan.partition,
        clients=clients,
        rounds=stored.round,
        own_models=clients if network.method.personal(network.model) else None,
        **dict(figures),
        uplink_bytes=uplink,
        uplink_value_bytes=sum(line.value_bytes for line in metrics),
        uplink_vote_bytes=sum(line.vote_bytes for line in metrics),
        downlink_bytes=sum(line.downlink_bytes for line in metrics),
        dense_fedavg_uplink_bytes=sum(line.cohort * size * 4 for line in metrics),
        uplink_bytes_per_value=uplink / sum(line.values for line in metrics),
        bits=plan.bits,
        ring_degree=DEGREE,
        coeff_modulus_bits=COEFFICIENT_BITS,
        plain_modulus_bits=plan.parameters.plain_modulus.bit_length(),
        security_level=SECURITY_BITS,
        seconds=round(sum(line.seconds.total for line in metrics), 3),
        verified=verified,
        plan=plan.to_config(),
    )
    summary.write(out / SUMMARY_FILE)
    write_report(out / REPORT_FILE, metrics, summary, density)
    return summary


def _one_model(
    out: Path, plan: Plan, network: Network, data: DataSet, run: bytes, state: GlobalState
) -> tuple[ModelFigures, list[LayerDensity]]:
    """Write and export the averaged model; its figures, and the density of its tensors."""
    insert(network, state.vector)
    score = evaluate(network.model, data.test_x.copy(), data.test_y.copy())
    density = _density(network, state)
    parameters, kept = sum(layer.size for layer in density), sum(layer.kept for layer in density)
    made = to_checkpoint(network, run, state.round, plan, data, 1 - kept / parameters)
    checkpoint.save(out / CHECKPOINT_FILE, made)
    exported = release(out / CHECKPOINT_FILE, out, data, model=plan.model)
    return figures_of(parameters, kept, score.correct / score.tested, exported), density


def _density(network: Network, state: GlobalState) -> list[LayerDensity]:
    """How many positions of each trainable tensor are left."""
    cuts = np.split(state.mask, network.layout.offsets[1:-1])
    return [
        LayerDensity(plain_name(tensor.name), int(cut.sum()), tensor.size)
        for tensor, cut in zip(network.layout.tensors, cuts, strict=True)
        if tensor.trainable
    ]
