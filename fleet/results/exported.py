"""What stands in ``export.json``: every figure of an export folder, measured from the very files in it."""

from typing import Annotated, Final

from pydantic import Strict

from protocol.documents import Count, Document, Items, Part, Seconds, Table

MODEL_FILE: Final = "model.onnx"
INT8_FILE: Final = "model.int8.onnx"
DENSE: Final = "dense"
"""What the dense float file is called; it is measured and not shipped."""

Range = Annotated[tuple[float, float], Strict(False)]  # a JSON array is a list
"""The lowest and the highest value."""


class ExportedFile(Part):
    """One ONNX file.

    Attributes:
        bytes: Its size.
        sha256: Its SHA-256, in hex.
        accuracy: On the test rows; None where no data were given.
        max_abs_diff: How far its outputs are from torch's; None where it is meant to differ.
    """

    bytes: Count
    sha256: str
    accuracy: float | None = None
    max_abs_diff: float | None = None


class ModelInput(Part):
    """What a file takes: raw values, float32, any batch of one shape; the range is None where it is not known."""

    name: str
    shape: Items[Count]
    range: Range | None


class Layer(Part):
    """One layer's part of the work, as `export.macs.LayerWork` has it."""

    name: str
    weights: Count
    kept: Count
    dense: Count
    remaining: Count


class Timing(Part):
    """What one batch takes, as `export.latency.Latency` has it, and how many times as fast as the dense file it is."""

    threads: Count
    median: Seconds
    p10: Seconds
    p90: Seconds
    cpu: Seconds
    speed: float


class Setting(Part):
    """The timings of all files, ``dense`` among them, that took turns with so many threads and samples."""

    threads: Count
    batch: Count
    files: Table[Timing]


class Export(Document):
    """The content of ``export.json``.

    Attributes:
        recommended: The name of the file to run.
        reasons: Why, a sentence each.
        files: The files by name.
        dense_bytes: The size of the dense float file, which is not shipped.
        int8_refused: Why there is no int8 file; None where there is one.
        int8_tolerance: The accuracy that it might lose.
        input: What the files take.
        output: The name of what they give.
        labels: The classes.
        parameters: How many parameters the network has.
        kept: How many of them are not zero.
        sparsity: The share of those that are.
        multiply_accumulates: The dense network's, for one sample; None where they cannot be counted.
        multiply_accumulates_left: The share of them that is left.
        layers: The work by layer; empty where it cannot be counted.
        rounded_channels: Whether counts of channels are rounded up.
        rounding_speeds: What that was decided by: speeds against dense, by name.
        left_as_it_was: What of the network could not be made smaller, and why.
        latency: The timings; the first are at batch 1 on one thread.
        machine: Where they were taken, and with which versions.
        provenance: Where the model is from.
    """

    format: str = "pruneseal-export"
    version: str = "1.0"
    recommended: str
    reasons: Items[str]
    files: Table[ExportedFile]
    dense_bytes: Count
    int8_refused: str | None
    int8_tolerance: float
    input: ModelInput
    output: str
    labels: Items[str]
    parameters: Count
    kept: Count
    sparsity: float
    multiply_accumulates: Count | None
    multiply_accumulates_left: float | None
    layers: Items[Layer]
    rounded_channels: bool
    rounding_speeds: Table[float]
    left_as_it_was: Items[str]
    latency: Items[Setting]
    machine: Table[str | Count]
    provenance: Table[str]
