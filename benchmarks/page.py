"""What the pages of the measurements have in common: the head, the table of checks, the drawing, the files."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure


def head(title: str, result: Mapping[str, Any], measured: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """The first lines: the title, the command, where it ran and with what.

    Args:
        title: Of the page.
        result: With its command; with machine and versions, unless ``measured`` has them.
        measured: What the result is made of, where its parts may come from several machines.
    """
    return [
        f"# {title}",
        "",
        f"    {result['command']}",
        "",
        *dict.fromkeys(where(one) for one in measured or [result]),
        "",
    ]


def where(result: Mapping[str, Any]) -> str:
    """Where something ran and with what, as a line."""
    return "; ".join(f"{key} {value}" for key, value in (result["machine"] | result["versions"]).items()) + "."


def check_table(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was checked, as the lines of a table."""
    return [
        "| check | found | limit | holds |",
        "|---|---|---|---|",
        *(
            f"| {check['check']} | {check['found']:.4g} | {check['limit']} | {'yes' if check['holds'] else 'NO'} |"
            for check in checks
        ),
    ]


@contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches; the SVG file is the same whenever it is drawn."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pruneseal", "font.size": 9}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(path, metadata={"Date": None})


def publish(out: Path, name: str, result: Mapping[str, Any], page: str) -> int:
    """Leave the result and its page in a folder, and print the page; the exit code: 1 where a check fails."""
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / f"{name}.md").write_text(page)
    print(page)
    return 0 if all(check["holds"] for check in result["checks"]) else 1
