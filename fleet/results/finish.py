"""What a run leaves behind: the opened model as checkpoint and export folder, the summary and the report."""

from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np

from aggregator.records import read_records
from edge_client.learning.network import Network, insert
from edge_client.learning.training import evaluate
from edge_client.result import CHECKPOINT_FILE, to_checkpoint
from edge_client.sparsify import GlobalState
from edge_client.sparsify.interface import plain_name
from fleet.results.figures import LayerDensity
from fleet.results.opened_run import OpenedRun
from fleet.results.personal_models import own_models
from fleet.results.release import release
from fleet.results.report import write_report
from fleet.results.summary import ModelFigures, Summary, Verified, figures_of
from protocol import checkpoint
from protocol.errors import CheckpointError
from protocol.parameters import COEFFICIENT_BITS, DEGREE, SECURITY_BITS

SUMMARY_FILE: Final = "summary.json"
REPORT_FILE: Final = "report.html"


def finish(run: OpenedRun, out: Path, verified: Verified | None) -> Summary:
    """Open the last sum; write checkpoint and export, summary and report.

    Args:
        run: The run.
        out: Where to write.
        verified: What `pruneseal run --verify` found, or None.

    Returns:
        The summary.

    Raises:
        CheckpointError: No round is complete.
        ParityError: The ONNX file does not compute what the model does.
    """
    state, plan, network = run.state(), run.plan, run.network
    if not state.round:
        raise CheckpointError(f"{run.folder} holds no complete round yet")
    metrics = read_records(run.folder)
    personal = bool(network.method.personal(network.model))
    figures, density = own_models(run, state, out) if personal else _one_model(run, state, out)
    plain = network.method.shed(network.model)
    size = sum(t.numel() for t in plain.state_dict().values() if t.is_floating_point())
    uplink = sum(line.uplink_bytes for line in metrics)
    summary = Summary(
        pruneseal=version("pruneseal"),
        method=plan.method,
        model=plan.model,
        data=plan.data,
        partition=plan.partition,
        clients=run.clients,
        rounds=state.round,
        own_models=run.clients if personal else None,
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


def _one_model(run: OpenedRun, state: GlobalState, out: Path) -> tuple[ModelFigures, list[LayerDensity]]:
    """Write and export the averaged model; its figures, and the density of its tensors."""
    network, data, plan = run.network, run.data, run.plan
    insert(network, state.vector)
    score = evaluate(network.model, data.test_x.copy(), data.test_y.copy())
    density = _density(network, state)
    parameters, kept = sum(layer.size for layer in density), sum(layer.kept for layer in density)
    made = to_checkpoint(network, run.journal.run, state.round, plan, data, 1 - kept / parameters)
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
