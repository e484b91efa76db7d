"""The service's window: ``/metrics`` for Prometheus, ``/live`` and ``/ready`` for whoever restarts it, ``/status``.

It is read-only, knows no secret and needs none, but tells who takes part: bind it to an address that only operators
reach.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import Field

from aggregator.absences import Absence, read_absences
from aggregator.journal import is_held
from aggregator.metrics import RunCollector
from aggregator.records import Record, read_records
from aggregator.settings import AggregatorSettings
from aggregator.status import FAILED, Status, read_status
from protocol.documents import Items, Part, Table
from protocol.errors import ConfigError, PruneSealError
from protocol.roster import load_roster

_log = logging.getLogger("pruneseal.aggregator")
SPARE_BYTES = 64_000_000
"""The free space below which no run is started."""
_LAST_ROUNDS = 20


def shortages(settings: AggregatorSettings) -> list[str]:
    """What the aggregator lacks before it can run, each with what to do; empty where it lacks nothing."""
    found = []
    try:
        load_roster(settings.roster)
    except PruneSealError as error:
        found.append(str(error))
    try:
        settings.state.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(settings.state).free
        if free < SPARE_BYTES:
            found.append(f"{free // 1_000_000} MB are free on the disk of {settings.state}: make space")
    except OSError as error:
        found.append(f"{settings.state} cannot be used: {error.strerror}")
    return found


def hindrances(settings: AggregatorSettings) -> list[str]:
    """What keeps the aggregator from working, each with what to do; empty where it is ready."""
    found = shortages(settings)
    try:
        status = read_status(settings.state)
        if status is not None and status.state == FAILED:
            found.append(f"the run has failed: {status.error}")
    except PruneSealError as error:
        found.append(str(error))
    return found


class Overview(Part):
    """A run as `pruneseal status` shows it.

    Attributes:
        status: Its status; None where none was written yet.
        held: Whether a process runs its rounds now.
        trouble: What the service finds wrong; a folder knows of nothing.
        rounds: Its last rounds.
        absences: What is held against nodes, by their names.
    """

    status: Status | None
    held: bool
    trouble: Items[str]
    rounds: Items[Record]
    absences: Table[Absence] = Field(default_factory=dict)


def overview(folder: Path, trouble: Sequence[str] = ()) -> Overview:
    """Look at a run's folder.

    Raises:
        CheckpointError: A file in it is damaged.
    """
    rounds = tuple(read_records(folder)[-_LAST_ROUNDS:])
    return Overview(
        status=read_status(folder),
        held=is_held(folder),
        trouble=tuple(trouble),
        rounds=rounds,
        absences=read_absences(folder),
    )


@contextmanager
def endpoint(host: str, port: int, settings: AggregatorSettings, trouble: Callable[[], list[str]]) -> Iterator[int]:
    """Serve while the context is open.

    Args:
        host: The address to listen on.
        port: The port; 0 for a free one.
        settings: The aggregator's settings.
        trouble: What the service itself finds wrong; with it, it is alive but not ready.

    Yields:
        The port.

    Raises:
        ConfigError: The address cannot be used.
    """
    registry = CollectorRegistry()
    registry.register(RunCollector(settings.state))

    def answer(path: str) -> tuple[HTTPStatus, str, bytes]:
        if path == "/metrics":
            return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(registry)
        if path == "/live":
            return HTTPStatus.OK, "text/plain", b"alive\n"
        if path == "/ready":
            wrong = list(dict.fromkeys([*hindrances(settings), *trouble()]))
            code = HTTPStatus.SERVICE_UNAVAILABLE if wrong else HTTPStatus.OK
            return code, "text/plain; charset=utf-8", ("\n".join(wrong or ["ready"]) + "\n").encode()
        if path == "/status":
            return HTTPStatus.OK, "application/json", overview(settings.state, trouble()).to_json()
        return HTTPStatus.NOT_FOUND, "text/plain", b"there are /metrics, /live, /ready and /status\n"

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            try:
                code, kind, body = answer(self.path.partition("?")[0])
            except (PruneSealError, OSError) as error:
                code, kind, body = HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", f"{error}\n".encode()
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            _log.debug(format, *args)

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"the endpoint cannot listen on {host}:{port}: {error}") from error
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, name="pruneseal-endpoint", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
