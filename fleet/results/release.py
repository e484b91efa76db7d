"""The export folder: one checkpoint as the files that a consumer is given, and what was measured about them.

========================  =======================================================================================
``model.onnx``            float, compact, coded, proved against torch; takes raw values
``model.int8.onnx``       int8, coded; only where calibration data were given and the accuracy holds
``export.json``           every figure, as `Export`; ``recommended`` names the file to run
``model_card.md``         the same for a reader, with ``figure.svg``: density by layer and latency
========================  =======================================================================================

Law: all of the folder is measured from the very files in it. Whoever has the folder has no key and no training data.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.filesize import decimal
from torch import nn

from edge_client.learning import models
from edge_client.learning.data import DataSet
from export.convert import INPUT, OUTPUT, save_onnx
from export.exporter import Exported, export, export_int8
from export.latency import compare
from export.parity import accuracy
from export.scaling import Scaling
from fleet.results.card import draw, write_card
from fleet.results.exported import (
    DENSE,
    INT8_FILE,
    MODEL_FILE,
    Export,
    ExportedFile,
    Layer,
    ModelInput,
    Setting,
    Timing,
)
from fleet.results.machine import machine, versions
from protocol import checkpoint
from protocol.errors import CheckpointError, ConfigError, ExportError
from protocol.files import replace_file

EXPORT_FILE: Final = "export.json"
CARD_FILE: Final = "model_card.md"
FIGURE_FILE: Final = "figure.svg"
TOLERANCE: Final = 0.01
"""The accuracy that int8 may lose, as a fraction of all samples."""

_PARITY_INPUTS: Final = 1000
_CALIBRATION_ROWS: Final = 256
_BATCHES: Final = (1, 32)
_MARGIN: Final = 1.05
"""How much faster a lossy file must be to be recommended: less is noise."""


def release(
    path: Path, out: Path, data: DataSet | None = None, tolerance: float = TOLERANCE, model: str | None = None
) -> Export:
    """Make the export folder of a checkpoint.

    Args:
        path: The checkpoint, as a run has written it.
        out: The folder; made if it is not there, files of the same names are replaced.
        data: Calibrates the int8 file by training rows and scores both files by test rows; None: no int8 file.
        tolerance: The accuracy that int8 may lose, in [0, 1]; where it loses more, there is no int8 file, and why.
        model: The network, where `models.build` does not know it by name: code runs only if the caller names it.

    Returns:
        The content of ``export.json``.

    Raises:
        ConfigError: The tolerance is no fraction, the data are of another shape, or the network must be named.
        CheckpointError: The file is not a checkpoint of a network that can be built here.
        ParityError: ONNX Runtime and torch disagree.
        ExportError: A step is not possible, or a file cannot be written.
    """
    if not 0 <= tolerance <= 1:
        raise ConfigError(f"the tolerance must be a fraction in [0, 1], not {tolerance}")
    stored = checkpoint.load(path)
    network, shape = build(path, stored, model)
    facts = _Facts(path, stored.metadata)
    if data is not None and (data.input_shape != shape or data.classes > facts.classes):
        raise ConfigError(
            f"{data.name} has inputs of shape {data.input_shape} in {data.classes} classes, the network takes {shape} "
            f"in {facts.classes}; give data like those that it learnt from"
        )
    provenance = facts.provenance
    made = export(network, shape, provenance, _inputs(shape, facts.raw_range, data), facts.scaling)
    files = {MODEL_FILE: made.model}
    scores: dict[str, float] = {}
    refused = "no calibration data were given"
    if data is not None:
        scores[MODEL_FILE] = accuracy(made.model, data.raw(data.test_x), data.test_y)
        int8, score, refused = _int8(made, data, scores[MODEL_FILE] - tolerance)
        if not refused:
            files[INT8_FILE], scores[INT8_FILE] = int8, score
    latency = _latency({DENSE: made.dense, **files}, shape, facts.raw_range)
    recommended, reasons = _recommend(latency)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    kept = sum(int(torch.count_nonzero(parameter)) for parameter in network.parameters())
    result = Export(
        recommended=recommended,
        reasons=tuple(reasons),
        files={
            name: ExportedFile(
                bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                accuracy=scores.get(name),
                max_abs_diff=made.parity.max_abs_diff if name == MODEL_FILE else None,
            )
            for name, content in files.items()
        },
        dense_bytes=made.dense_bytes,
        int8_refused=refused or None,
        int8_tolerance=tolerance,
        input=ModelInput(name=INPUT, shape=shape, range=facts.raw_range),
        output=OUTPUT,
        labels=facts.labels,
        parameters=parameters,
        kept=kept,
        sparsity=1 - kept / parameters,
        multiply_accumulates=made.work[0].dense if made.work else None,
        multiply_accumulates_left=made.work_left,
        layers=tuple(Layer(**asdict(layer)) for layer in made.work[0].layers) if made.work else (),
        rounded_channels=made.rounded,
        rounding_speeds=dict(made.speeds),
        left_as_it_was=tuple(made.untouched),
        latency=latency,
        machine=machine() | versions("pruneseal", "onnxruntime", "torch"),
        provenance=provenance,
    )
    out.mkdir(parents=True, exist_ok=True)
    if INT8_FILE not in files:
        (out / INT8_FILE).unlink(missing_ok=True)
    for name, content in files.items():
        save_onnx(out / name, content)
    replace_file(out / FIGURE_FILE, draw(result))
    replace_file(out / CARD_FILE, write_card(result).encode())
    result.write(out / EXPORT_FILE)
    return result


def summary_lines(out: Path, export: Export) -> list[str]:
    """An export in a few lines for a terminal."""
    work = export.multiply_accumulates_left
    lines = [
        f"{out / name}: {decimal(file.bytes)}, {export.dense_bytes / file.bytes:.1f}x smaller than dense"
        + ("" if file.accuracy is None else f", accuracy {file.accuracy:.4f}")
        for name, file in export.files.items()
    ]
    return [
        *lines,
        f"at most {export.files[MODEL_FILE].max_abs_diff:.2g} from torch; sparsity {export.sparsity:.4f}, "
        + ("work cannot be counted" if work is None else f"{work:.4f} of the multiply-accumulates left"),
        *export.reasons,
        *([f"no {INT8_FILE}: {export.int8_refused}"] if export.int8_refused else []),
        *(f"left as it was: {reason}" for reason in export.left_as_it_was),
        f"recommended: {out / export.recommended}",
    ]


def build(path: Path, stored: checkpoint.Checkpoint, model: str | None) -> tuple[nn.Module, tuple[int, ...]]:
    """The network of a checkpoint with its weights, and the shape of one input.

    A network that is known by name is first built without memory, so that a checkpoint cannot claim a huge one.

    Raises:
        ConfigError: The checkpoint names code, and the caller does not.
        CheckpointError: The checkpoint does not fit the network.
    """
    try:
        spec = model or stored.metadata["model"]
        shape = tuple(int(side) for side in json.loads(stored.metadata["input_shape"]))
        classes = int(stored.metadata["classes"])
        if spec not in models.names() and model is None:
            raise ConfigError(
                f"{path} names the network {spec!r}, which is code of its own; give it as --model if you trust it"
            )
        tensors = {name: torch.from_numpy(array.copy()) for name, array in stored.tensors.items()}
        if spec in models.names():
            with torch.device("meta"):
                wanted = models.build(spec, shape, classes).state_dict()
            if _forms(wanted) != _forms(tensors):
                raise CheckpointError(
                    f"{path} does not fit the network {spec}: other names, shapes or types of tensors"
                )
        network = models.build(spec, shape, classes)
        network.load_state_dict(tensors)
    except (KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path} does not fit the network that it names: {error}") from error
    return network, shape


def _forms(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


class _Facts:
    """What a checkpoint's metadata say about its inputs and classes."""

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        try:
            self.classes = int(metadata["classes"])
            self.scaling = Scaling(float(metadata.get("input_scale", "1")), float(metadata.get("input_shift", "0")))
            given = json.loads(metadata.get("input_range", "null"))
            self.raw_range = None if given is None else (float(given[0]), float(given[1]))
            self.labels = tuple(str(text) for text in json.loads(metadata.get("labels", "[]")))
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise CheckpointError(f"{path} does not say what its inputs and classes are: {error}") from error
        if self.raw_range is not None and not -inf < self.raw_range[0] < self.raw_range[1] < inf:
            raise CheckpointError(f"{path} has the input_range {self.raw_range}, which holds no values")
        self.labels = self.labels or tuple(str(number) for number in range(self.classes))
        if len(self.labels) != self.classes:
            raise CheckpointError(f"{path} has {len(self.labels)} labels for {self.classes} classes")
        kept = {key: value for key, value in metadata.items() if key not in {"input_scale", "input_shift"}}
        self.provenance = {
            **kept,
            "labels": json.dumps(self.labels),
            "checkpoint_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }


def _int8(made: Exported, data: DataSet, least: float) -> tuple[bytes, float, str]:
    """The int8 file, its accuracy, and why it is refused; or an empty text."""
    rows = np.random.default_rng(0).permutation(len(data.train_y))[:_CALIBRATION_ROWS]
    try:
        int8 = export_int8(made, data.raw(data.train_x[rows]))
    except ExportError as error:
        return b"", 0.0, str(error)
    score = accuracy(int8, data.raw(data.test_x), data.test_y)
    return int8, score, "" if score >= least else f"its accuracy would be {score:.4f}, and {least:.4f} is the least"


def _inputs(shape: tuple[int, ...], raw_range: tuple[float, float] | None, data: DataSet | None) -> NDArray[np.float32]:
    """Raw samples for the proof: as many random ones as real ones, where there are any."""
    low, high = raw_range or (0.0, 1.0)
    drawn = np.random.default_rng(0).uniform(low, high, (_PARITY_INPUTS, *shape)).astype(np.float32)
    if data is None:
        return drawn
    rows = np.random.default_rng(0).permutation(len(data.test_y))[:_PARITY_INPUTS]
    return np.concatenate([data.raw(data.test_x[rows]), drawn])


def _latency(
    files: Mapping[str, bytes], shape: tuple[int, ...], raw_range: tuple[float, float] | None
) -> tuple[Setting, ...]:
    """The latencies of all files and their speed against the dense one, by threads and batch."""
    inputs = _inputs(shape, raw_range, None)
    settings = []
    for threads in (1, 2)[: os.cpu_count() or 1]:
        for batch in _BATCHES:
            found = compare(files, inputs[:batch], threads, seconds=0.5)
            times = {name: Timing(**asdict(t), speed=t.speed(found[DENSE])) for name, t in found.items()}
            settings.append(Setting(threads=threads, batch=batch, files=times))
    return tuple(settings)


def _recommend(latency: Sequence[Setting]) -> tuple[str, list[str]]:
    """The file to run: the faster at batch 1 on one thread. And what was noticed on the way."""
    first = latency[0].files
    speeds = {name: first[name].speed for name in (MODEL_FILE, INT8_FILE) if name in first}
    reasons = [f"{name} is {speed:.2f} times as fast as the dense file" for name, speed in speeds.items()]
    if speeds[MODEL_FILE] * _MARGIN < 1:
        reasons.append(f"{MODEL_FILE} is slower than the dense file; it is smaller, and nothing else")
    if INT8_FILE not in speeds:
        return MODEL_FILE, reasons
    if speeds[INT8_FILE] > _MARGIN * speeds[MODEL_FILE]:
        return INT8_FILE, reasons
    reasons.append(f"{INT8_FILE} is not faster than {MODEL_FILE}, so the exact one is recommended")
    return MODEL_FILE, reasons
