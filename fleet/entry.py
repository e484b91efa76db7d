"""The `pruneseal` command, so that `pruneseal serve` starts where only the extra `serve` is installed."""

import sys


def main() -> None:
    """Call `pruneseal serve` by itself, every other command through `fleet.cli`."""
    if sys.argv[1:2] == ["serve"]:
        from export.serve.cli import app as serve  # noqa: PLC0415  # without torch and Flower

        sys.argv[:2] = [f"{sys.argv[0]} serve"]
        serve()
    try:
        from fleet.cli import app  # noqa: PLC0415
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error.name} is not installed; install pruneseal[fleet] for every command but `serve`")
    app()


if __name__ == "__main__":
    main()
