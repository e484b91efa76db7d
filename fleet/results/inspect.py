"""What a file says to somebody who has no key."""

from pathlib import Path
from typing import Any

import numpy as np

from export.describe import describe as describe_onnx
from protocol import checkpoint
from protocol.describe import describe
from protocol.errors import CheckpointError, ConfigError
from protocol.frame import MAGIC


def describe_file(path: Path) -> dict[str, Any]:
    """Describe a message, an aggregate, a checkpoint or an ONNX file.

    Raises:
        ConfigError: The file cannot be read, or is none of these.
        MalformedMessage, CheckpointError, ExportError: It is one of them, but damaged.
    """
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is not an ordinary file")
    try:
        with path.open("rb") as file:
            head = file.read(len(MAGIC))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if head == MAGIC:
        return {"file": path.name, **describe(path.read_bytes())}
    if path.suffix == ".onnx":
        return describe_onnx(path)
    try:
        return {"file": path.name, "kind": "checkpoint", **_checkpoint(checkpoint.load(path))}
    except CheckpointError as error:
        if path.suffix == ".safetensors":
            raise
        raise ConfigError(f"{path} is not a PruneSeal message, a checkpoint or an .onnx file") from error


def _checkpoint(stored: checkpoint.Checkpoint) -> dict[str, Any]:
    tensors = {
        name: {
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "nonzero": int(np.count_nonzero(array)),
            "size": int(array.size),
        }
        for name, array in stored.tensors.items()
    }
    return {"metadata": dict(stored.metadata), "tensors": tensors}
