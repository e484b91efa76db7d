"""The `pruneseal` command."""

import sys
from importlib import import_module


def main() -> None:
    """Do what the command line says."""
    try:
        app = import_module("fleet.commands").application(sys.argv[1:])  # here: typer too may be absent
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error.name} is not installed; install pruneseal[fleet] for every command but `serve`")
    except KeyboardInterrupt:  # the imports take a second or two; the commands end by themselves
        sys.exit(130)
    app(prog_name="pruneseal")


if __name__ == "__main__":
    main()
