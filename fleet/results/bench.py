"""`pruneseal bench`: how long ONNX files take, side by side."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from export.describe import read_file
from export.graph import parsed
from export.latency import check_runnable, compare
from fleet.results.machine import machine, versions
from protocol.errors import ConfigError, ExportError

_MOST: Final = 4096
"""Threads or samples of one run: more is a slip of the keyboard."""


def counts(option: str, text: str) -> tuple[int, ...]:
    """The numbers of an option such as ``1,32``.

    Raises:
        ConfigError: One of them is not a number between 1 and 4096.
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = (0,)
    if not all(1 <= number <= _MOST for number in numbers):
        raise ConfigError(f"--{option} takes numbers from 1 to {_MOST} separated by commas, not {text!r}")
    return numbers


def run(model: Path, against: Path | None, threads: Sequence[int], batches: Sequence[int]) -> Iterator[str]:
    """Time the files at every number of threads and batch size; one line of a table each.

    On one thread the ratio is that of the CPU time, which other load disturbs least; on more, that of the medians. The
    inputs are uniformly random, in the range that the file's metadata name, or in [0, 1).

    Args:
        model: An ONNX file.
        against: The file to compare with, or None.
        threads: Of ONNX Runtime, within one operator.
        batches: Samples in one run.

    Raises:
        ExportError: A file cannot be read or run, or they take different inputs.
    """
    paths = {"model": model} if against is None else {"against": against, "model": model}
    files = {name: read_file(path) for name, path in paths.items()}
    for name, path in paths.items():
        yield f"{name:<8}{path}, {len(files[name]):,} bytes"
    yield "; ".join(f"{key} {value}" for key, value in (machine() | versions("onnxruntime")).items())
    yield f"{'threads':>7} {'batch':>6}  {'file':<8}{'median':>11}{'p10':>11}{'p90':>11}{'CPU':>11}  ms" + (
        "  times as fast" if against else ""
    )
    for batch in batches:
        shapes = {name: check_runnable(data, batch) for name, data in files.items()}
        if len({*shapes.values()}) > 1:
            raise ExportError(f"the files take samples of different shapes: {shapes}")
        low, high = _range(files["model"])
        inputs = np.random.default_rng(0).uniform(low, high, (batch, *shapes["model"])).astype(np.float32)
        for number in threads:
            found = compare(files, inputs, number)
            for name, t in found.items():
                ratio = f"{t.speed(found['against']):15.2f}" if against else ""
                times = "".join(f"{1e3 * value:11.4f}" for value in (t.median, t.p10, t.p90, t.cpu))
                yield f"{number:>7} {batch:>6}  {name:<8}{times}    {ratio}"


def _range(onnx_bytes: bytes) -> tuple[float, float]:
    """The range of raw values that a file names; [0, 1) where it names none."""
    metadata = {entry.key: entry.value for entry in parsed(onnx_bytes, "the model").metadata_props}
    try:
        low, high = json.loads(metadata.get("input_range", "null")) or (0.0, 1.0)
        inside = -1e30 < float(low) < float(high) < 1e30
    except (ValueError, TypeError) as error:
        raise ExportError(f"the file's input_range cannot be read: {error}") from error
    if not inside:
        raise ExportError(f"the file's input_range is empty or absurd: [{low}, {high}]")
    return float(low), float(high)
