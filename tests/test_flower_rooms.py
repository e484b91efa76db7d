"""Flower's private rooms: three modules enter them, and all that they rely on is there in the installed version."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict

from fleet.flower import be_task
from tests.flower_rooms import PARTS, Part

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PRIVATE = re.compile(r"flwr\.(supercore|supernode|superlink|proto|common|cli)\b")
STEPS = "flwr.supernode.start_client_internal"
DOORS = {"aggregator/flower.py", "edge_client/flower.py", "fleet/flower.py"}
PACKAGES = ("protocol", "edge_client", "aggregator", "export", "serve", "fleet", "benchmarks", "docker")
OTHER_SIDE = {
    "tests/flower_rooms.py": "names them all",
    "tests/aggregator/isolated.py": "a process that must not import the fleet",
    "tests/aggregator/test_isolation.py": "what the SuperLink imports",
    "tests/aggregator/test_superlink.py": "the constant that is replaced",
    "tests/edge_client/test_supernode.py": "plays the SuperLink and the client apps",
    "tests/e2e/test_attacks.py": "attacks Flower's own interfaces",
    "tests/fleet/provisioning/test_app_bundle.py": "builds and reads a bundle as Flower does",
}
"""Tests that enter by themselves, and why."""


def entries(path: Path) -> Iterator[tuple[str, str]]:
    """The private modules that a file imports, each with the name that it takes from it, or that its strings name."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if PRIVATE.match(alias.name))
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if PRIVATE.match(f"{node.module}.{alias.name}"):
                    yield node.module or "", alias.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield from ((found[0], "") for found in PRIVATE.finditer(node.value))


def entering(*folders: str) -> set[str]:
    """The files below these folders that enter Flower's private rooms."""
    files = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return {str(path.relative_to(ROOT)) for path in files if path != Path(__file__) and any(entries(path))}


def test_nobody_enters_but_by_the_three_modules() -> None:
    """import-linter cannot hold this line: to it, all of Flower is one module."""
    assert entering(*PACKAGES) == DOORS


def test_no_test_enters_by_itself_without_a_reason() -> None:
    assert entering("tests") == set(OTHER_SIDE)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.place}.{part.name}")
def test_what_we_rely_on_is_there(part: Part) -> None:
    found = "; ".join(part.wrong())
    assert not found, (
        f"Flower {version('flwr')}: {part.place}.{part.name}: {found}. Look at what {part.user} says of it, and at "
        f"Flower's new code, before you change either or tests/flower_rooms.py."
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (Part("a", "flwr.supernode.no_such_module", "x"), "it is gone"),
        (Part("a", STEPS, "_no_such_function"), "it is gone"),
        (Part("a", STEPS, "_push_messages", ("state", "patience")), r"it takes no \['patience'\]"),
        (Part("a", STEPS, "_push_messages", calls=("install_from_fab",)), "a replacement has no effect"),
        (Part("a", "flwr.proto.node_pb2", "NodeInfo", fields=("nickname",)), r"it has no \['nickname'\]"),
        (Part("a", "flwr.supercore.superexec.executor", "ExecutionSpec", fields=("pid",)), r"it has no \['pid'\]"),
        (Part("a", "flwr.common.constant", "Status.FINISHED", value="over"), "it is 'finished', not 'over'"),
    ],
    ids=lambda value: "" if isinstance(value, Part) else value,
)
def test_what_has_changed_is_told(changed: Part, told: str) -> None:
    (found,) = changed.wrong()
    assert re.search(told, found)


def test_every_way_in_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        '"""Says flwr.supernode, and enters nothing."""\n'
        "import flwr.app, flwr.proto.node_pb2\nfrom flwr import supercore\nfrom flwr.common.constant import Status\n"
        "from flwr.commonplace import x\nfrom flwr.clientapp import ClientApp\n"
        "def late():\n    from flwr.cli import build\n    import_module('flwr.superlink.cli')\n"
    )
    assert sorted(entries(path)) == [
        ("flwr", "supercore"),
        ("flwr.cli", "build"),
        ("flwr.common.constant", "Status"),
        ("flwr.proto.node_pb2", ""),
        ("flwr.superlink", ""),
    ]


def test_the_number_of_a_message_is_where_it_can_be_set() -> None:
    be_task(1, 1)
    assert "_message_id" in Message(RecordDict(), 1, "train").metadata.__dict__


@pytest.mark.parametrize("door", sorted(DOORS))
def test_everything_that_is_taken_is_named(door: str) -> None:
    user = door.removesuffix(".py").replace("/", ".")
    named = {(part.place, part.name.split(".")[0]) for part in PARTS if part.user == user}
    modules = {place for place, _ in named}
    taken = {(place, name) for place, name in entries(ROOT / door) if name}
    missing = {f"{place}.{name}" for place, name in taken - named} - modules
    assert not missing, f"add what {user} takes to tests/flower_rooms.py, with what of it must not change"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("edge_client.bundle", "flwr"),
        ("protocol.call", "flwr"),
        ("aggregator.nodes", "sqlalchemy"),
        ("aggregator.service", "sqlalchemy"),
        ("aggregator.app", "aggregator.flower"),
        ("fleet.running.local_grid", "flwr.cli.build"),
    ],
)
def test_a_light_process_stays_light(module: str, absent: str) -> None:
    code = f"import sys, {module}; print({absent!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
