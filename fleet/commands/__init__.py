"""The commands of `pruneseal`, in modules by what they need: only the one that is called is imported."""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, Final

import typer

COMMANDS: Final = {
    "run": "fleet.commands.runs:run",
    "methods": "fleet.commands.methods:methods",
    "export": "fleet.commands.models:export",
    "bench": "fleet.commands.models:bench",
    "open": "fleet.commands.runs:open_",
    "status": "fleet.commands.sites:status",
    "inspect": "fleet.commands.inspect:inspect",
    "enroll": "fleet.commands.sites:enroll",
    "provision": "fleet.commands.sites:provision",
    "serve": "serve.cli:serve",
}
"""Every command, in the order of ``--help``, and the function that it is."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pruneseal {version('pruneseal')}")
        raise typer.Exit


def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Federated training that prunes as it goes, aggregates what it cannot read, and exports to ONNX."""


def _function(command: str) -> Callable[..., Any]:
    module, _, name = COMMANDS[command].partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def application(arguments: list[str]) -> typer.Typer:
    """The application: the command that the arguments begin with, or all of them where help is wanted.

    Raises:
        ModuleNotFoundError: A package that the command needs is not installed.
    """
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_root)
    called = arguments[0] if arguments else ""
    for command in [called] if called in COMMANDS else [] if called == "--version" else COMMANDS:
        app.command(command)(_function(command))
    return app
