"""A federation in real containers, brought up by the commands of docker/README.md, word for word."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]
COMPOSE = ("docker-compose", "-f", "docker/compose.yaml")


def available() -> bool:
    """Whether there are a Docker engine and docker-compose on this machine, and we may use them."""
    if shutil.which("docker") is None or shutil.which("docker-compose") is None or os.geteuid() != 0:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def commands(section: str) -> list[str]:
    """The shell blocks of a section of docker/README.md, in order."""
    text = (ROOT / "docker" / "README.md").read_text()
    part = re.split(r"^## ", text, flags=re.MULTILINE)
    (found,) = [p for p in part if p.startswith(section)]
    return re.findall(r"```sh\n(.*?)```", found, flags=re.DOTALL)


def checkout(folder: Path) -> Path:
    """What `git clone` would give, with the virtual environment of this checkout."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    os.utime(folder / "pyproject.toml", (0, 0))  # the environment is as old as it is: `make setup` finds it ready
    return folder


class Site:
    """The one-machine federation of a checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "COMPOSE_PROJECT_NAME": "pruneseal-test", "PYTHONPATH": str(folder)}
        self.seconds: dict[str, float] = {}
        self._containers: dict[str, str] = {}

    def shell(self, text: str, timeout: float = 600, *, check: bool = True) -> str:
        """Run a block of commands; what it prints."""
        start = time.monotonic()
        done = subprocess.run(
            ["bash", "-euc", text],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        self.seconds[text.strip().splitlines()[0]] = time.monotonic() - start
        assert not check or done.returncode == 0, done.stdout[-6000:]
        return done.stdout

    def compose(self, *arguments: str, check: bool = True) -> str:
        return self.shell(" ".join([*COMPOSE, *arguments]), check=check)

    def container(self, service: str) -> str:
        """The id of a service's container; a restart does not change it."""
        if service not in self._containers:
            self._containers[service] = self.compose("ps", "-q", service).strip()
        return self._containers[service]

    def inside(self, service: str, script: str) -> str:
        """Run a Python script in a service's container, as its user."""
        command = ["docker", "exec", self.container(service), "python3", "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def processes(self, service: str) -> str:
        """The commands of a container's processes."""
        command = ["docker", "top", self.container(service), "-eo", "pid,args"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout

    def memory(self, service: str, needles: Iterable[bytes]) -> tuple[int, list[str]]:
        """Search environment and memory of a container's processes: how many bytes were read, and where a needle is."""
        command = ["docker", "top", self.container(service), "-eo", "pid"]
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        wanted, read, places = list(needles), 0, []
        for pid in listed.split()[1:]:
            for where, piece in _pieces(Path("/proc") / pid):
                read += len(piece)
                if any(needle in piece for needle in wanted):
                    places.append(where)
        return read, places

    def files(self, service: str, path: str) -> dict[str, bytes]:
        """The files under a path in a container, volumes included."""
        done = subprocess.run(
            ["docker", "cp", f"{self.container(service)}:{path}", "-"], capture_output=True, timeout=120, check=False
        )
        if done.returncode:
            return {}
        with tarfile.open(fileobj=BytesIO(done.stdout)) as packed:
            return {e.name: f.read() for e in packed if (f := packed.extractfile(e) if e.isfile() else None)}

    def kill(self, service: str) -> None:
        """SIGKILL to all of a container, as the kernel would; Docker restarts it."""
        pid = subprocess.run(
            ["docker", "inspect", "-f", "{{.State.Pid}}", self.container(service)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        os.kill(int(pid), 9)

    def logs(self, *services: str) -> str:
        return self.compose("logs", "--no-color", *services)

    def state(self) -> str:
        """The state of the run as the aggregator's endpoint tells it; empty while it is not there."""
        try:
            with urlopen("http://127.0.0.1:9464/status", timeout=10) as answer:
                return str((json.load(answer)["status"] or {}).get("state", ""))
        except OSError:
            return ""

    def records(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        found = self.files("service", "/state/metrics.jsonl")
        return [json.loads(line) for data in found.values() for line in data.decode().splitlines()]

    def wait(self, what: str, ready: Callable[[], bool], seconds: float) -> None:
        wait_for(ready, lambda: f"{self.logs('--tail=15')}\n{what}", seconds, pause=0.5)


def _pieces(process: Path) -> Iterator[tuple[str, bytes]]:
    """The environment of a process, and its readable memory in pieces that overlap."""
    try:
        yield f"environment of {process}", (process / "environ").read_bytes()
        maps = (process / "maps").read_text().splitlines()
        memory = (process / "mem").open("rb", 0)
    except OSError:
        return  # it has ended
    with memory:
        for line in maps:
            span, mode = line.split()[:2]
            if "r" not in mode or line.endswith(("[vvar]", "[vvar_vclock]", "[vsyscall]")):
                continue
            at, end = (int(number, 16) for number in span.split("-"))
            tail = b""
            while at < end:
                try:
                    memory.seek(at)
                    piece = memory.read(min(end - at, 1 << 24))
                except (OSError, ValueError):
                    break  # a page that is reserved and not there
                if not piece:
                    break
                yield f"memory of {process}", tail + piece
                tail, at = piece[-256:], at + len(piece)


def found(data: Iterable[tuple[str, bytes]], needles: Iterable[bytes]) -> Iterator[str]:
    """Where a needle lies."""
    wanted = list(needles)
    for name, content in data:
        if any(needle in content for needle in wanted):
            yield name
