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
from typing import TYPE_CHECKING, Final

from edge_client.data import DataSet
from edge_client.sparsify import GlobalState
from protocol import checkpoint
from protocol.checkpoint import Checkpoint
from protocol.errors import StorageError
from protocol.plan import Plan

if TYPE_CHECKING:
    from edge_client.client import Network

CHECKPOINT_FILE: Final = "model.safetensors"
EXPORT_LOG: Final = "export.log"
EXPORT_COMMAND: Final = (sys.executable, "-m", "fleet.cli", "export")
_log = logging.getLogger("pruneseal.edge_client")


def to_checkpoint(network: "Network", state: GlobalState, run: bytes, plan: Plan, data: DataSet) -> Checkpoint:
    """A state as a checkpoint that says where it is from.

    Args:
        network: The plan's network, the state in its model.
        state: The state after the last round.
        run: The name of the run.
        plan: Its plan.
        data: Gives the shape of the input and the number of classes.
    """
    prunable = network.layout.prunable
    sparsity = 1 - int((state.mask & prunable).sum()) / int(prunable.sum())
    provenance = {
        "run": run.hex(),
        "plan_digest": plan.digest.hex(),
        "round": str(state.round),
        "method": plan.method,
        "model": plan.model,
        "data": plan.data,
        "input_shape": json.dumps(list(data.input_shape)),
        "classes": str(data.classes),
        "sparsity": f"{sparsity:.6f}",
        "pruneseal": version("pruneseal"),
    }
    tensors = {name: tensor.detach().numpy() for name, tensor in network.model.state_dict().items()}
    return Checkpoint(tensors, provenance)


def leave(folder: Path, result: Checkpoint) -> "subprocess.Popen[bytes]":
    """Write the checkpoint and start the export of it; what the export prints is in ``export.log``.

    Args:
        folder: Made if it is absent; files of the same names are replaced.
        result: The final model.

    Raises:
        StorageError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save(folder / CHECKPOINT_FILE, result)
        with (folder / EXPORT_LOG).open("wb") as log:
            command = [*EXPORT_COMMAND, str(folder / CHECKPOINT_FILE), "--out", str(folder)]
            started = subprocess.Popen(  # noqa: S603  # our own command
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
    except OSError as error:
        raise StorageError(f"the result cannot be written to {folder}: {error.strerror}") from error
    _log.info("the final model is in %s", folder / CHECKPOINT_FILE)
    return started
