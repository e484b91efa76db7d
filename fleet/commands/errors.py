"""What a command makes of our errors."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from protocol.errors import PruneSealError


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn our errors into one line and exit code 1, Ctrl-C into exit code 130."""
    try:
        yield
    except PruneSealError as error:
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(130) from error
