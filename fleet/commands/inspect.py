"""`pruneseal inspect`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fleet.commands.errors import exit_on_error
from fleet.results.inspect import describe_file


def inspect(
    file: Annotated[Path, typer.Argument(help="A message, aggregate, checkpoint or ONNX file.")],
) -> None:
    """Describe a file as JSON, without any key."""
    with exit_on_error():
        typer.echo(json.dumps(describe_file(file), indent=1))
