"""A deployment on this machine: SuperLink, aggregator service and nodes as processes of their own, with TLS.

It is what a deployment over several machines is, without containers: the SuperLink's state is in a database, its nodes
prove themselves by registered keys, apps run in processes apart from those that hold these keys (Flower's process
isolation), and each node runs only the bundle that it was provisioned for. ``pruneseal run --engine flower`` uses it.

Everything is under one folder: ``tls/`` (the authority and the server's certificate), ``flower/`` (Flower's home and
database), ``app/`` (the bundle), ``kits/`` (keys), ``logs/`` (one file per process). A second start in the same folder
goes on from there. A process that ends by itself is started again (:meth:`Deployment.tend`), as a container would be.
"""

import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.request import urlopen

from edge_client.bundle import BUNDLES_FILE
from edge_client.enrollment import NODE_KEY_FILE, NODE_PUBLIC_FILE, write_node_key
from fleet.provisioning.app_bundle import APP_FOLDER, bundle_digest, write_app
from fleet.provisioning.certificates import CA_FILE, SERVER_FILE, SERVER_KEY_FILE, Authority
from fleet.provisioning.kits import AGGREGATOR, kit_name
from protocol.errors import DeploymentError
from protocol.files import create_file, replace_file
from protocol.plan import Plan

EXECUTOR_FILE: Final = "superexec.secret"
"""What a SuperExec proves itself with to its SuperLink or SuperNode."""
LOG_FOLDER: Final = "logs"
CONNECTION: Final = "aggregator"
HOST: Final = "127.0.0.1"
_BIN: Final = Path(sys.executable).parent
_START_SECONDS, _STOP_SECONDS, _AGAIN_SECONDS = 90.0, 20.0, 3.0
_QUIET: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def prepare(out: Path, plan: Plan, nodes: int) -> None:
    """Make what a deployment needs besides the kits in ``out/kits``: certificates, node keys, secrets, the bundle.

    Raises:
        ConfigError: There are keys already.
    """
    tls = out / "tls"
    tls.mkdir(mode=0o700)
    authority = Authority.create()
    authority.save(tls)
    authority.issue(tls, ["localhost", HOST])
    write_app(out / APP_FOLDER, plan)
    create_file(out / "kits" / AGGREGATOR / EXECUTOR_FILE, secrets.token_bytes(32), 0o600)
    for node in range(nodes):
        kit = out / "kits" / kit_name(node)
        write_node_key(kit)
        create_file(kit / EXECUTOR_FILE, secrets.token_bytes(32), 0o600)
        replace_file(kit / BUNDLES_FILE, f"{bundle_digest(plan)}\n".encode())


def reserve_port() -> socket.socket:
    """A free port of the loopback address, kept for a server of ours as long as the socket is open.

    Linux gives the port to nobody who asks for any port, and as this socket never listens, it lets a server with
    ``SO_REUSEADDR`` (the default of asyncio and `http.server`) do so, as often as it likes.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((HOST, 0))
    return held


def port_of(held: socket.socket) -> int:
    """The port that is reserved."""
    return int(held.getsockname()[1])


class Deployment:
    """The processes of one federation; a context manager that starts and ends them.

    Args:
        out: The folder that :func:`prepare` has made.
        nodes: How many nodes.
        run: The aggregator's folder of the run; by default ``out``.
        results: Where each node leaves its final model, in a folder of its name; by default none does.
        fronts: By node, the port by which it reaches the SuperLink where something stands between.
        environment: Added to that of every process.
    """

    executor: Sequence[str] = (sys.executable, "-m", "edge_client.executor")
    """The command of a node's SuperExec."""

    def __init__(
        self,
        out: Path,
        nodes: int,
        run: Path | None = None,
        results: Path | None = None,
        fronts: Mapping[int, int] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.out, self.nodes = out.resolve(), nodes
        self.run = (run or out).resolve()
        held = ExitStack()
        ports = [port_of(held.enter_context(reserve_port())) for _ in range(2 + nodes)]
        self.port, self.metrics_port, *self._node_ports = ports
        weakref.finalize(self, held.close)  # not before: what has ended may be started again
        self._results, self._fronts = results, dict(fronts or {})
        self._given = dict(environment or {})
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, tuple[Sequence[str], Mapping[str, str]]] = {}
        self._started: dict[str, float] = {}
        self._flower = self.out / "flower"

    def __enter__(self) -> Self:
        try:
            self.start_superlink()
            self.register()
            self.start_aggregator()
            self.start_service()
            for node in range(self.nodes):
                self.start_node(node)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- starting --------------------------------------------------------------------------------

    def start_superlink(self) -> None:
        """Start the SuperLink and wait until it answers.

        Raises:
            DeploymentError: It does not start.
        """
        for folder in (self._flower, self.out / LOG_FOLDER):
            folder.mkdir(exist_ok=True, mode=0o700)
        tls = self.out / "tls"
        config = (
            f'[superlink]\ndefault = "{CONNECTION}"\n'
            f'[superlink.{CONNECTION}]\naddress = "{HOST}:{self.port}"\nroot-certificates = "{tls / CA_FILE}"\n'
        )
        replace_file(self._flower / "config.toml", config.encode())
        flags = {
            "--host": HOST,
            "--port": self.port,
            "--ssl-ca-certfile": tls / CA_FILE,
            "--ssl-certfile": tls / SERVER_FILE,
            "--ssl-keyfile": tls / SERVER_KEY_FILE,
            "--database": self._flower / "state.db",
            "--isolation": "process",
            "--superexec-auth-secret-file": self.out / "kits" / AGGREGATOR / EXECUTOR_FILE,
        }
        switches = ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
        command = [sys.executable, "-m", "aggregator.superlink", *_options(flags), *switches]
        self._start("superlink", command, self._environment("superlink"))
        self._wait_for("superlink", self._healthy)

    def start_aggregator(self) -> None:
        """Start the process that runs the aggregator's app."""
        flags = {
            "--runtime-api-address": f"{HOST}:{self.port}",
            "--root-certificates": self.out / "tls" / CA_FILE,
            "--superexec-auth-secret-file": self.out / "kits" / AGGREGATOR / EXECUTOR_FILE,
        }
        self._start("aggregator", [str(_BIN / "flower-superexec"), *_options(flags)], self._aggregators())

    def start_service(self) -> None:
        """Start the process that keeps the aggregator's app going."""
        self._start("service", [sys.executable, "-m", "aggregator.service"], self._aggregators())

    def start_node(self, node: int) -> None:
        """Start a node: the SuperNode, which holds Flower's key, and the SuperExec, which holds the others."""
        kit, name = self.out / "kits" / kit_name(node), kit_name(node)
        port = self._node_ports[node]
        environment = self._environment(name)
        Path(environment["FLWR_HOME"]).mkdir(exist_ok=True)
        flags = {
            "--superlink": f"localhost:{self._fronts.get(node, self.port)}",
            "--root-certificates": self.out / "tls" / CA_FILE,
            "--auth-supernode-private-key": kit / NODE_KEY_FILE,
            "--host": HOST,
            "--port": port,
            "--isolation": "process",
            "--superexec-auth-secret-file": kit / EXECUTOR_FILE,
            "--node-config": f"partition-id={node} num-partitions={self.nodes}",
        }
        self._start(name, [sys.executable, "-m", "edge_client.supernode", *_options(flags)], environment)
        flags = {"--runtime-api-address": f"{HOST}:{port}", "--superexec-auth-secret-file": kit / EXECUTOR_FILE}
        private = {"PRUNESEAL_KIT": str(kit)}
        if self._results is not None:
            private["PRUNESEAL_OUT"] = str(self._results / name)
        self._start(f"{name}-executor", [*self.executor, "--insecure", *_options(flags)], environment | private)

    # --- stopping --------------------------------------------------------------------------------

    def stop(self) -> None:
        """End all processes, kindly at first."""
        for process in self.processes.values():
            _signal_group(process.pid, signal.SIGTERM)
        for name in list(self.processes):
            self.end(name, signal.SIGTERM)

    def end(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process and to its children, and wait until they are gone."""
        process = self.processes.pop(name)
        _signal_group(process.pid, number)
        with suppress(subprocess.TimeoutExpired):  # it does not listen
            process.wait(_STOP_SECONDS)
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()

    def tend(self) -> None:
        """Start again what has ended by itself; not more often than every few seconds."""
        for name, process in list(self.processes.items()):
            if process.poll() is not None and time.monotonic() - self._started[name] > _AGAIN_SECONDS:
                self.end(name, signal.SIGKILL)
                self._start(name, *self._commands[name])

    # --- details ---------------------------------------------------------------------------------

    def _aggregators(self) -> dict[str, str]:
        return self._environment("aggregator") | {
            "PRUNESEAL_ROSTER": str(self.out / "kits" / AGGREGATOR / "roster.json"),
            "PRUNESEAL_RUN": str(self.run),
            "PRUNESEAL_METRICS": f"{HOST}:{self.metrics_port}",
            "PRUNESEAL_APP": str(self.out / APP_FOLDER),
            "PRUNESEAL_SUPERLINK": CONNECTION,
        }

    def _environment(self, name: str) -> dict[str, str]:
        home = self._flower / name if name.startswith("node-") else self._flower
        path = f"{_BIN}:{os.environ.get('PATH', '')}"
        return {**os.environ, **_QUIET, "PATH": path, "FLWR_HOME": str(home), **self._given}

    def _start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._commands[name], self._started[name] = (command, environment), time.monotonic()
        with (self.out / LOG_FOLDER / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(  # noqa: S603  # our own arguments
                command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def register(self) -> None:
        """Make the nodes' keys known to the SuperLink, once."""
        done = self._flower / "registered"
        if done.exists():
            return
        for node in range(self.nodes):
            key = self.out / "kits" / kit_name(node) / NODE_PUBLIC_FILE
            self.flwr("supernode", "register", str(key), CONNECTION, "--name", kit_name(node))
        replace_file(done, b"")

    def flwr(self, *arguments: str) -> str:
        """Run the `flwr` command against this SuperLink; what it prints.

        Raises:
            DeploymentError: It fails.
        """
        done = subprocess.run(  # noqa: S603  # our own arguments
            [str(_BIN / "flwr"), *arguments],
            env=self._environment("operator"),
            capture_output=True,
            text=True,
            timeout=_START_SECONDS,
            check=False,
        )
        if done.returncode:
            raise DeploymentError(f"flwr {arguments[0]}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def _healthy(self) -> bool:
        context = ssl.create_default_context(cafile=self.out / "tls" / CA_FILE)
        try:
            with urlopen(f"https://{HOST}:{self.port}/health", timeout=2, context=context) as answer:
                return bool(answer.status == 200)
        except OSError:  # not yet
            return False

    def _wait_for(self, name: str, ready: Callable[[], bool]) -> None:
        end = time.monotonic() + _START_SECONDS
        while not ready():
            if self.processes[name].poll() is not None or time.monotonic() > end:
                raise DeploymentError(f"the {name} does not start: see {self.out / LOG_FOLDER / f'{name}.log'}")
            time.sleep(0.1)


def _options(flags: Mapping[str, object]) -> list[str]:
    return [part for name, value in flags.items() for part in (name, str(value))]


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # all of it is gone
        os.killpg(group, number)
