"""What is installed: the wheel holds every file of every package, and nothing else."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES: list[str] = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """The wheel, built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = folder.iterdir()
    return zipfile.Path(path)


def held(wheel: zipfile.Path) -> set[str]:
    return {name for name in wheel.root.namelist() if ".dist-info/" not in name and not name.endswith("/")}


def test_the_wheel_holds_the_files_of_the_packages_and_nothing_else(wheel: zipfile.Path) -> None:
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    assert held(wheel) == {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}


def test_every_folder_of_code_at_the_root_is_a_package_of_the_wheel() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders - set(PACKAGES) == {"benchmarks"}, "these stay in the checkout"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_that_it_is_typed(wheel: zipfile.Path, package: str) -> None:
    assert (wheel / package / "py.typed").exists()


@pytest.mark.parametrize(
    "name",
    [
        "fleet/provisioning/kit/aggregator.md",
        "fleet/provisioning/kit/aggregator.yaml",
        "fleet/provisioning/kit/edge.md",
        "fleet/provisioning/kit/edge.yaml",
        "serve/inference.proto",
        "serve/openapi.yaml",
        "serve/page.html",
    ],
)
def test_what_code_reads_from_its_folder_is_there(wheel: zipfile.Path, name: str) -> None:
    assert (wheel / name).read_text()


def test_both_commands_are_installed(wheel: zipfile.Path) -> None:
    (information,) = (path for path in wheel.iterdir() if path.name.endswith(".dist-info"))
    assert (information / "entry_points.txt").read_text().split() == [
        *("[console_scripts]", "pruneseal", "=", "fleet.entry:main", "pruneseal-serve", "=", "serve.cli:app"),
    ]
