"""The `pruneseal` command, called in the process of the test."""

from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from fleet.commands import application


def call(*arguments: str | Path) -> Result:
    """What a command line prints and how it ends; wide and without colours."""
    given = [*map(str, arguments)]
    return CliRunner().invoke(application(given), given, env={"COLUMNS": "200", "NO_COLOR": "1"})
