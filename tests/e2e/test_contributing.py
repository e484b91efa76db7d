"""CONTRIBUTING.md, followed to the letter: in a copy of the tree, with nothing added but what the page says."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
PACKAGES = ("protocol", "edge_client", "aggregator", "export", "serve", "fleet")
SECTION = (ROOT / "CONTRIBUTING.md").read_text().partition("\n## Adding a method\n")[2].partition("\n## ")[0]


def block(language: str, before: str) -> str:
    """The first block of code after these words."""
    _, found, rest = SECTION.partition(before)
    assert found, f"CONTRIBUTING.md does not say: {before}"
    _, found, rest = rest.partition(f"```{language}\n")
    assert found
    return dedent(rest[: re.search(r"^ *```$", rest, re.MULTILINE).start()])  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages, with the recipe's file and its line."""
    tree = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    (tree / "edge_client/sparsify/fading.py").write_text(block("python", "Write `edge_client/sparsify/fading.py`"))
    registry = tree / "edge_client/sparsify/__init__.py"
    line = block("text", "Add it to the end of `_CLASSES` in `edge_client/sparsify/__init__.py`")
    assert re.fullmatch(r'"\w+:\w+",\n', line)  # as it stands in the list, which no formatter of the page may change
    head, begin, tail = registry.read_text().partition("_CLASSES: Final = (\n")
    listed, end, rest = tail.partition(")\n")
    registry.write_text(f"{head}{begin}{listed}    {line}{end}{rest}")
    return tree


def pruneseal(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fleet.entry", *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_new_method_trains_prunes_sums_and_exports(copy: Path) -> None:
    program, *arguments = block("sh", "this trains, prunes, sums encrypted, verifies and exports").split()
    assert program == "pruneseal"
    done = pruneseal(copy, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    out = copy / arguments[arguments.index("--out") + 1]
    summary = json.loads((out / "summary.json").read_text())
    parameters, kept = (
        summary["parameters"],
        [json.loads(line)["kept"] for line in (out / "metrics.jsonl").read_text().splitlines()],
    )
    assert summary["method"] == "fading"
    assert (summary["verified"]["equal"], summary["verified"]["rounds"]) == (True, 3)
    for count in kept:
        assert count == int(0.8 * parameters)
        parameters = count
    assert summary["kept"] == kept[-1]
    assert (out / "model.onnx").stat().st_size > 0
    assert summary["onnx_max_abs_diff"] < 1e-4


def test_the_new_method_is_described_and_its_option_checked(copy: Path) -> None:
    described = pruneseal(copy, "methods", "fading")
    assert described.returncode == 0, described.stderr
    assert "After every round the smallest weights of the mean go" in described.stdout
    assert "share=0.1" in described.stdout
    refused = pruneseal(copy, "run", "--out", "runs/none", "--method", "fading", "--set", "share=1")
    assert refused.returncode == 1
    assert "share must be a fraction in [0, 1), not 1.0" in refused.stderr


def test_the_new_file_is_as_this_projects_are(copy: Path) -> None:
    ruff = str(Path(sys.executable).with_name("ruff"))
    for command in (["format", "--check"], ["check"]):
        done = subprocess.run(
            [ruff, *command, "edge_client/sparsify"], cwd=copy, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
