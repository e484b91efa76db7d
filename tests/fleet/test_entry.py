"""The `pruneseal` command: `serve` stands alone, and what is not installed is named."""

import subprocess
import sys
from pathlib import Path

PRUNESEAL = Path(sys.executable).with_name("pruneseal")


def test_serve_is_reached_without_the_other_commands() -> None:
    ended = subprocess.run([PRUNESEAL, "serve", "--help"], capture_output=True, text=True, check=True)
    assert "pruneseal serve [OPTIONS]" in ended.stdout


def test_what_is_not_installed_is_named() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from fleet.entry import main; sys.argv = ['pruneseal', 'run']; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "error: torch is not installed; install pruneseal[fleet] for every command but `serve`\n"
