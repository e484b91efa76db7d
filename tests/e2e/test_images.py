"""The images: what is in them, and that they build without a network, with BuildKit as well."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.engine import ROOT, available, checkout
from tests.e2e.mirror import HOST, Mirror

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not available(), reason="no Docker engine")]
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
        *("docker", "run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp"),  # noqa: S108
        *(f"pruneseal-{image}", "python3", "-c", script),
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
        (
            "edge",
            "edge_client.app edge_client.bundle torch fleet.commands.models",
            "aggregator serve fleet.provisioning.kits fleet.running.local pip",
        ),
        ("serve", "serve.server", "torch flwr tenseal edge_client aggregator fleet pip"),
    ],
)
def test_an_image_holds_what_its_role_needs_and_nothing_of_the_others(name: str, there: str, absent: str) -> None:
    script = (
        "import importlib.util\n"
        "def found(name):\n"
        "    try: return importlib.util.find_spec(name)\n"
        "    except ModuleNotFoundError: return None\n"
        f"for name in {there.split()}: importlib.import_module(name)\n"
        f"for name in {absent.split()}:\n"
        "    if found(name): print(name, found(name).origin)\n"
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


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheels of the serve image."""
    folder = tmp_path_factory.mktemp("wheels")
    run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--only-binary", ":all:"),
        *("-r", str(ROOT / "docker" / "requirements" / "serve.txt"), "-d", str(folder)),
    )
    return folder


def serve_alone(folder: Path) -> Path:
    """A checkout whose Dockerfile makes the serve image alone: the classic builder builds what precedes it too."""
    file = checkout(folder) / "docker" / "Dockerfile"
    text = file.read_text()
    head, serve = text.split("# --- ingress")[0], text.split("# --- serve")[1]
    file.write_text(f"{head}# --- serve{serve}")
    return folder


def build(
    folder: Path, tag: str, *arguments: str, command: str = "docker", kit: str = "0"
) -> subprocess.CompletedProcess[str]:
    """Build the serve image of a checkout, without any cache."""
    return subprocess.run(
        [
            command,
            "build",
            "-f",
            str(folder / "docker" / "Dockerfile"),
            "--no-cache",
            "-t",
            tag,
            *arguments,
            str(folder),
        ],
        env={"DOCKER_BUILDKIT": kit, "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def serves(tag: str) -> None:
    """Assert that an image can serve, and forget it."""
    assert run("docker", "run", "--rm", "--network", "none", tag, "python3", "-c", "import serve.server") == ""
    run("docker", "rmi", tag)


@pytest.mark.parametrize("builder", ["BuildKit", "classic"])
def test_an_image_builds_from_a_folder_of_wheels_without_a_network(builder: str, tmp_path: Path, wheels: Path) -> None:
    command, kit = (buildkit(), "1") if builder == "BuildKit" else (shutil.which("docker"), "0")
    if command is None:
        pytest.skip("this docker command has no BuildKit")
    folder = serve_alone(tmp_path)
    shutil.copytree(wheels, folder / "docker" / "build" / "wheels", dirs_exist_ok=True)
    tag = f"pruneseal-test-offline-{builder.lower()}"
    offline = ("--network=none", "--build-arg", "PIP_NO_INDEX=1")
    built = build(folder, tag, *offline, command=command, kit=kit)
    assert built.returncode == 0, (built.stdout + built.stderr)[-4000:]
    serves(tag)


def test_an_image_builds_behind_a_proxy_with_a_ca_of_its_own_and_does_not_keep_the_ca(
    tmp_path: Path, wheels: Path
) -> None:
    (tmp_path / "clone").mkdir()
    (tmp_path / "company").mkdir()
    folder, tag = serve_alone(tmp_path / "clone"), "pruneseal-test-proxied"
    with Mirror(wheels, tmp_path / "company") as mirror:
        distrusted = build(folder, tag, "--network=host", *mirror.arguments)
        assert distrusted.returncode != 0
        assert "certificate verify failed" in distrusted.stdout + distrusted.stderr
        assert mirror.served == []
        mirror.authority.save_certificate(folder / "docker" / "build" / "ca")
        built = build(folder, tag, "--network=host", *mirror.arguments)
    assert built.returncode == 0, (built.stdout + built.stderr)[-4000:]
    assert set(mirror.connected) == {f"{HOST}:443"}
    assert sorted(set(mirror.served)) == sorted(wheel.name for wheel in wheels.iterdir())
    line = (folder / "docker" / "build" / "ca" / "ca.crt").read_text().splitlines()[3]
    script = f"grep -rlF -e {line} -e {HOST} -e 127.0.0.1:{mirror.port} /etc /opt /usr/local /run 2>/dev/null; true"
    assert run("docker", "run", "--rm", "-u", "0", tag, "sh", "-c", script) == ""
    history = run("docker", "history", "--no-trunc", "--format", "{{.CreatedBy}}", tag)
    assert "org.opencontainers.image.title" in history
    assert HOST not in history
    serves(tag)
