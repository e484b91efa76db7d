"""A model between two programs: named tensors and what they are, in one safetensors file.

Pair: ``save`` writes what ``load`` reads. The laws:

* ``load(save(c)) == c``, with the tensors' names sorted; equality is of names, dtypes, shapes, bytes and metadata, so
  that ``-0.0`` differs from ``0.0`` and a NaN equals itself.
* A file that was damaged after ``save`` is refused, or it still holds exactly ``c``. The format has no checksum of its
  own, so one is kept in the metadata: a flipped bit in a weight would otherwise be served.
* Whoever opens the path sees the old file or the new one, never a part: ``replace_file``.

NumPy only: the programs at both ends bring their own framework. Nothing is unpickled, ever.

Source: the safetensors format, version 0.x (an 8-byte length, a JSON header, the tensors' bytes, little-endian).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from protocol.errors import CheckpointError
from protocol.files import replace_file

FORMAT: Final = "pruneseal-checkpoint"
VERSION: Final = "1"

_DTYPES: Final = {
    "BOOL": "|b1",
    "I8": "|i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "U8": "|u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
}
"""The dtypes that come back as they went in: safetensors' name and NumPy's."""

_RESERVED: Final = ("format", "version", "sha256")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained model without its code.

    Attributes:
        tensors: Parameters and buffers by name; any shape, booleans, integers or floats.
        metadata: What the tensors are: model, method, round, sparsity, … The keys ``format``, ``version`` and
            ``sha256`` belong to the file and never stand here.
    """

    tensors: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Checkpoint):
            return NotImplemented
        return _digest(self) == _digest(other)

    __hash__ = None  # type: ignore[assignment]  # the arrays can change


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` to ``path``, replacing what was there in one step.

    Args:
        path: The file; its directory must exist.
        checkpoint: What to write.

    Raises:
        CheckpointError: The checkpoint holds a name or a dtype that would not come back, or the file cannot be written.
    """
    for key in _RESERVED:
        if key in checkpoint.metadata:
            raise CheckpointError(f"metadata key {key!r} belongs to the file format; rename it")
    if "__metadata__" in checkpoint.tensors:
        raise CheckpointError("no tensor can be named '__metadata__' in a safetensors file; rename it")
    for name, array in checkpoint.tensors.items():
        if array.dtype.str not in _DTYPES.values():
            raise CheckpointError(
                f"tensor {name!r} has dtype {array.dtype.str}, which a checkpoint does not keep; convert it to one of "
                f"{', '.join(_DTYPES.values())}"
            )
    stamp = {"format": FORMAT, "version": VERSION, "sha256": _digest(checkpoint)}
    # safetensors copies the buffer as it lies in memory: a transposed view would come back scrambled.
    contiguous = {name: np.asarray(a, order="C") for name, a in checkpoint.tensors.items()}
    data = to_safetensors(contiguous, metadata={**checkpoint.metadata, **stamp})
    try:
        replace_file(path, data)
    except OSError as error:
        raise CheckpointError(
            f"cannot write the checkpoint {path}: {error.strerror}. Check that its directory exists, has space left "
            "and may be written to."
        ) from error


def load(path: Path) -> Checkpoint:
    """Read a file that ``save`` wrote.

    Args:
        path: The file.

    Returns:
        The checkpoint, names sorted; its arrays are the caller's own copies.

    Raises:
        CheckpointError: The file is missing, cannot be read, is no checkpoint, is of another version or is damaged.
    """
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is not an ordinary file. Give the path of a file that a finished round wrote.")
    try:
        opened: Any = safe_open(path, framework="numpy")
        with opened as file:
            metadata: dict[str, str] = dict(file.metadata() or {})
            stamp = {key: metadata.pop(key, "") for key in _RESERVED}
            _check_stamp(path, stamp)
            tensors: dict[str, np.ndarray] = {}
            for name in sorted(file.keys()):
                dtype = file.get_slice(name).get_dtype()
                if dtype not in _DTYPES:
                    raise CheckpointError(
                        f"{path}: tensor {name!r} has dtype {dtype}, which no checkpoint holds. Use a file that a "
                        "run of PruneSeal wrote."
                    )
                tensors[name] = file.get_tensor(name)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"there is no checkpoint {path}. Give the path of a file that a finished round wrote."
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"cannot read the checkpoint {path}: {error}. Check that it is a file and may be read."
        ) from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is not a safetensors file ({error}). It is damaged or something else: copy it again, or take the "
            "checkpoint of another round."
        ) from error
    checkpoint = Checkpoint(tensors, metadata)
    if stamp["sha256"] != _digest(checkpoint):
        raise CheckpointError(
            f"{path} was changed after it was written: its checksum differs. Copy it again, or take the checkpoint of "
            "another round."
        )
    return checkpoint


def _check_stamp(path: Path, stamp: Mapping[str, str]) -> None:
    """Refuse a safetensors file that is no checkpoint, or one of another version."""
    if stamp["format"] != FORMAT:
        raise CheckpointError(
            f"{path} is a safetensors file but not a checkpoint of PruneSeal. Give the path of a file that a finished "
            "round wrote."
        )
    if stamp["version"] != VERSION:
        raise CheckpointError(
            f"{path} is a checkpoint of version {stamp['version']!r}, and this PruneSeal reads version {VERSION}. Use "
            "the PruneSeal that wrote it."
        )


def _digest(checkpoint: Checkpoint) -> str:
    """SHA-256 of metadata, names, dtypes, shapes and bytes, 64 hexadecimal digits; names may be in any order."""
    arrays = sorted(checkpoint.tensors.items())
    header = json.dumps(
        [
            sorted(checkpoint.metadata.items()),
            [(name, array.dtype.str, array.shape) for name, array in arrays],
        ]
    )
    digest = hashlib.sha256(header.encode())
    for _, array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()
