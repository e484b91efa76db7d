"""What a client leaves behind when the last round is over: the model as a checkpoint, and, made of it, the rest.

A client imports nothing of the export, so the ONNX file and its report are made by a process of its own, the command
`pruneseal export`. It is started when the checkpoint is written, and the client does not wait for it: its answer to the
aggregator must not depend on how long an export takes.
"""

import json
import logging
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

from edge_client.learning.data import DataSet
from edge_client.learning.network import Network
from protocol import checkpoint
from protocol.checkpoint import Checkpoint
from protocol.errors import StorageError
from protocol.plan import Plan

CHECKPOINT_FILE: Final = "model.safetensors"
EXPORT_LOG: Final = "export.log"
EXPORT_COMMAND: Final = (sys.executable, "-m", "fleet.entry", "export")
_log = logging.getLogger("pruneseal.edge_client")


def to_checkpoint(network: Network, run: bytes, round_: int, plan: Plan, data: DataSet, sparsity: float) -> Checkpoint:
    """The network as a checkpoint that says where it is from; what its method wears is taken off, here and for good.

    Args:
        network: The plan's network, the final state in its model.
        run: The name of the run.
        round_: The last round.
        plan: The run's plan.
        data: Gives the shape of the input, the classes and how raw values become inputs.
        sparsity: The share of zeros among the trainable parameters, in [0, 1].
    """
    plain = network.method.shed(network.model)
    provenance = {
        "run": run.hex(),
        "plan_digest": plan.digest.hex(),
        "round": str(round_),
        "method": plan.method,
        "model": plan.model,
        "data": plan.data,
        "input_shape": json.dumps(list(data.input_shape)),
        "classes": str(data.classes),
        "labels": json.dumps(data.label_names),
        "input_scale": repr(data.scale),
        "input_shift": repr(data.shift),
        **({} if data.raw_range is None else {"input_range": json.dumps(data.raw_range)}),
        "sparsity": f"{sparsity:.6f}",
        "pruneseal": version("pruneseal"),
    }
    return Checkpoint({name: tensor.detach().numpy() for name, tensor in plain.state_dict().items()}, provenance)


def leave(folder: Path, result: Checkpoint, model: str) -> "subprocess.Popen[bytes]":
    """Write the checkpoint and start the export of it; what the export prints is in ``export.log``.

    Args:
        folder: Made if it is absent; files of the same names are replaced.
        result: The final model.
        model: The network that the plan names; this node trusts its code, for it has trained it.

    Raises:
        StorageError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save(folder / CHECKPOINT_FILE, result)
        with (folder / EXPORT_LOG).open("wb") as log:
            command = [*EXPORT_COMMAND, str(folder / CHECKPOINT_FILE), "--out", str(folder), "--model", model]
            started = subprocess.Popen(  # noqa: S603  # our own command
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
    except OSError as error:
        raise StorageError(f"the result cannot be written to {folder}: {error.strerror}") from error
    _log.info("the final model is in %s", folder / CHECKPOINT_FILE)
    return started
