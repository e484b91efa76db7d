"""The images: what is in them, and that they build without a network, with BuildKit as well."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.engine import ROOT, available, checkout

pytestmark = [pytest.mark.e2e, pytest.mark.deployment, pytest.mark.skipif(not available(), reason="no Docker engine")]
IMAGES = ("ingress", "aggregator", "edge", "serve")


def run(*command: str, timeout: float = 600, **options: object) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return str(done.stdout)


@pytest.fixture(scope="module")
def images() -> None:
    """All images, built from this checkout; where nothing has changed, the builder's cache has them."""
    run(str(ROOT / "docker" / "make-images"), "--network=host", timeout=900)


def python(image: str, script: str) -> str:
    return run(
        "docker", "run", "--rm", "--network", "none", "--read-only", f"pruneseal-{image}", "python3", "-c", script
    )


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_labelled_and_runs_as_nobody_in_particular(name: str) -> None:
    (image,) = json.loads(run("docker", "image", "inspect", f"pruneseal-{name}"))
    labels = image["Config"]["Labels"]
    assert image["Config"]["User"] == "49999"
    assert labels["org.opencontainers.image.title"] == f"pruneseal-{name}"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert f'\nversion = "{labels["org.opencontainers.image.version"]}"\n' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize(
    ("name", "there", "absent"),
    [
        ("aggregator", "aggregator.service aggregator.nodes", "torch edge_client export fleet onnx pip"),
        ("edge", "edge_client.app edge_client.bundle torch", "aggregator export fleet sklearn pip"),
        ("serve", "export.serve.server", "torch flwr tenseal edge_client aggregator fleet pip"),
    ],
)
def test_an_image_holds_what_its_role_needs_and_nothing_of_the_others(name: str, there: str, absent: str) -> None:
    script = (
        f"import importlib\nfor name in {there.split()}: importlib.import_module(name)\n"
        f"for name in {absent.split()}:\n"
        "    try: importlib.import_module(name)\n"
        "    except ModuleNotFoundError: continue\n"
        "    print(name, importlib.import_module(name).__file__)\n"
    )
    printed = python(name, script)
    assert [line for line in printed.splitlines() if "/opt/pruneseal" in line] == []


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize("name", IMAGES)
def test_no_layer_holds_a_key_or_what_was_only_needed_to_build(name: str) -> None:
    script = (
        "ls /build 2>&1; find / -xdev \\( -name '*.secret' -o -name 'sign.key' -o -name 'flower.key' \\) 2>/dev/null"
    )
    printed = run("docker", "run", "--rm", "-u", "0", f"pruneseal-{name}", "sh", "-c", script + "; true")
    assert "No such file" in printed.splitlines()[0]
    assert printed.splitlines()[1:] == []


def buildkit() -> str | None:
    """A `docker` command that can build with BuildKit."""
    for place in ("/usr/local/bin/docker", "/usr/bin/docker"):
        if Path(place).exists():
            version = subprocess.run([place, "--version"], capture_output=True, text=True, check=False).stdout
            major = int(version.split()[2].split(".")[0])
            if (
                major < 23
                or not subprocess.run([place, "buildx", "version"], capture_output=True, check=False).returncode
            ):
                return place
    return None


@pytest.mark.parametrize("builder", ["BuildKit", "classic"])
def test_an_image_builds_from_a_folder_of_wheels_without_a_network(
    builder: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    command, kit = (buildkit(), "1") if builder == "BuildKit" else (shutil.which("docker"), "0")
    if command is None:
        pytest.skip("this docker command has no BuildKit")
    folder = checkout(tmp_path_factory.mktemp("clone"))
    wheels = folder / "docker" / "build" / "wheels"
    run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--only-binary", ":all:"),
        *("-r", str(folder / "docker" / "requirements" / "serve.txt"), "-d", str(wheels)),
    )
    # The classic builder builds the stages before the target too: those that need a network go first.
    dockerfile = (folder / "docker" / "Dockerfile").read_text()
    head, serve = dockerfile.split("# --- ingress")[0], dockerfile.split("# --- serve")[1]
    (folder / "docker" / "Dockerfile").write_text(f"{head}# --- serve{serve}")
    tag = f"pruneseal-test-offline-{builder.lower()}"
    arguments = ["--network=none", "--build-arg", "PIP_NO_INDEX=1", "--no-cache", "--target", "serve", "-t", tag]
    run(
        *(command, "build", "-f", str(folder / "docker" / "Dockerfile"), *arguments, str(folder)),
        env={"DOCKER_BUILDKIT": kit, "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(folder)},
    )
    assert run("docker", "run", "--rm", "--network", "none", tag, "python3", "-c", "import export.serve.server") == ""
    run("docker", "rmi", tag)
