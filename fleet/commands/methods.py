"""`pruneseal methods`."""

from collections.abc import Iterator
from shutil import get_terminal_size
from textwrap import fill
from typing import Annotated

import typer

from edge_client.sparsify import METHODS, Sparsifier, method_named
from fleet.commands.errors import exit_on_error


def methods(
    method: Annotated[str | None, typer.Argument(help="Describe only this method.")] = None,
) -> None:
    """Describe the methods, and the options that `pruneseal run --set` takes for them, with their defaults."""
    with exit_on_error():
        kinds = list(METHODS.values()) if method is None else [method_named(method)]
        for line in _described(kinds):
            typer.echo(line)


def _described(kinds: list[type[Sparsifier]]) -> Iterator[str]:
    """Every method with its own defaults, then every option once."""
    width = get_terminal_size().columns
    options = {option.name: option for kind in reversed(kinds) for option in kind.declared().values()}
    for kind in kinds:
        removed = " or ".join(f"{unit}s" for unit in kind.granularities)
        target = "to --sparsity" if kind.has_target else "without a target: --sparsity is not for it"
        own = " ".join(f"{option.name}={option.shown}" for option in kind.declared().values())
        yield kind.name
        for text in (
            (kind.__doc__ or "").splitlines()[0],
            f"Removes {removed}, {target}.",
            f"Options: {own or 'none'}",
        ):
            yield fill(text, width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
        yield ""
    for name, option in sorted(options.items()):
        allowed = f" ({option.allowed})" if option.allowed else ""
        yield fill(f"{name}: {option.help}{allowed}", width, subsequent_indent="    ", break_on_hyphens=False)
