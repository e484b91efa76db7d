"""The `pruneseal` command: only what is called is imported, and what is not installed is named."""

import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest

from fleet.commands import COMMANDS, application

PRUNESEAL = Path(sys.executable).with_name("pruneseal")


@cache
def called(*arguments: str) -> tuple[str, frozenset[str]]:
    """What the command prints in a process of its own, and the packages that it imports."""
    code = (
        f"import sys; sys.argv = ['pruneseal', *{arguments}]\n"
        "from fleet.entry import main\n"
        "try: main()\n"
        "except SystemExit as end: print('exit', end.code, *{name.split('.')[0] for name in sys.modules})\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *printed, last = ended.stdout.splitlines()
    _, status, *names = last.split()
    assert status == "0"
    return "\n".join(printed), frozenset(names)


def test_the_command_is_installed_and_names_its_version() -> None:
    ended = subprocess.run([PRUNESEAL, "--version"], capture_output=True, text=True, check=True)
    assert ended.stdout == f"pruneseal {version('pruneseal')}\n"


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_reached_without_the_others(command: str) -> None:
    printed, _ = called(command, "--help")
    assert f"pruneseal {command} [OPTIONS]" in printed
    assert len(application([command]).registered_commands) == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ["--version", "serve", "status", "inspect", "provision"])
def test_a_command_that_builds_no_network_does_not_wait_for_torch(command: str) -> None:
    arguments = [command] if command.startswith("-") else [command, "--help"]
    _, names = called(*arguments)
    assert names.isdisjoint({"torch", "matplotlib", "onnxscript"})


@pytest.mark.slow
def test_an_export_needs_nothing_of_the_aggregator() -> None:
    _, names = called("export", "--help")
    assert "torch" in names
    assert names.isdisjoint({"aggregator", "flwr", "tenseal"})


@pytest.mark.parametrize("arguments", [[], ["--help"], ["exprot"]])
def test_all_commands_are_there_where_none_of_them_is_named(arguments: list[str]) -> None:
    assert [command.name for command in application(arguments).registered_commands] == list(COMMANDS)


@pytest.mark.parametrize("package", ["torch", "typer"])
def test_what_is_not_installed_is_named(package: str) -> None:
    code = (
        f"import sys; sys.modules['{package}'] = None; from fleet.entry import main\n"
        "sys.argv = ['pruneseal', 'run']; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert (
        ended.stderr == f"error: {package} is not installed; install pruneseal[fleet] for every command but `serve`\n"
    )


def test_an_interrupt_during_the_imports_ends_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.path.insert(0, {str(tmp_path)!r}); from fleet.entry import main; sys.argv = ['pruneseal', 'run']; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout + ended.stderr) == (130, "")
