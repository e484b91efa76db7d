"""`pruneseal export` and `pruneseal bench`; edge devices have them too, so they need nothing of the aggregator."""

from pathlib import Path
from typing import Annotated

import typer

from edge_client.learning import data as datasets
from fleet.commands.errors import exit_on_error
from fleet.results import release
from fleet.results.bench import counts
from fleet.results.bench import run as run_bench


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A model.safetensors that a run has written.")],
    out: Annotated[Path, typer.Option(help="Folder for the ONNX files, export.json, the model card and its figure.")],
    calibration: Annotated[
        str | None,
        typer.Option(help=f"Data that calibrate and score the int8 file: {datasets.FORMS}. Without it, no int8 file."),
    ] = None,
    tolerance: Annotated[float, typer.Option(help="The accuracy that int8 may lose, in [0, 1].")] = release.TOLERANCE,
    model: Annotated[
        str | None, typer.Option(help="package.module:function, where the checkpoint names a network of your own.")
    ] = None,
) -> None:
    """Turn a checkpoint into small, fast ONNX files, and prove that they compute the same."""
    with exit_on_error():
        data = None if calibration is None else datasets.load(calibration)
        made = release.release(checkpoint, out, data, tolerance, model)
        for line in release.summary_lines(out, made):
            typer.echo(line)


def bench(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    against: Annotated[Path | None, typer.Option(help="The file to compare with, such as the dense one.")] = None,
    threads: Annotated[str, typer.Option(help="Thread counts, separated by commas.")] = "1,2",
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,32",
) -> None:
    """Time ONNX files side by side in one process: median, 10th and 90th percentile, ratio."""
    with exit_on_error():
        for line in run_bench(model, against, counts("threads", threads), counts("batch", batch)):
            typer.echo(line)
