"""The service as a process: bind, load, answer, watch, and on SIGTERM answer what has arrived and end."""

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import uvicorn
import uvloop
from starlette.applications import Starlette

from protocol.errors import ConfigError
from serve import rpc
from serve.batcher import Batcher, Batching
from serve.limits import ByteBudget, guarded
from serve.logs import start_logging
from serve.metrics import Metrics
from serve.repository import Key, Repository, Servable
from serve.rest import Rest
from serve.trial import Limits, load

LOG = logging.getLogger(__name__)

_BODIES: Final = 32
"""Largest bodies that may be in memory at the same time."""
_SPARE_FILES: Final = 64
_KEEP_ALIVE: Final = 30
_BACKLOG: Final = 2048


@dataclass(frozen=True)
class ServerSettings:
    """Everything that a server is told, with the defaults of `pruneseal serve`.

    Attributes:
        root: A file or folder of models.
        host: The address to listen on.
        port: Of REST and the page; 0 for any that is free.
        grpc_port: Of gRPC; 0 for any that is free.
        batching: How requests are merged.
        max_request_bytes: Of one request.
        max_connections: Open HTTP connections.
        idle_timeout: Seconds that a request may take to arrive.
        threads: Threads of one inference.
        poll: Seconds between two checks for new versions.
        drain: Seconds that requests have left after SIGTERM.
        log_level: ``debug``, ``info``, ``warning`` or ``error``.
        limits: What a model file may take.
    """

    root: Path
    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int = 8081
    batching: Batching = field(default_factory=Batching)
    max_request_bytes: int = 8 << 20
    max_connections: int = 1000
    idle_timeout: float = 30.0
    threads: int = field(default_factory=lambda: max(1, (os.cpu_count() or 1) // 2))
    poll: float = 2.0
    drain: float = 30.0
    log_level: str = "info"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name, value, least in (
            ("max-batch", self.batching.size, 1),
            ("queue", self.batching.queue, self.batching.size),
            ("max-request-bytes", self.max_request_bytes, 1024),
            ("max-connections", self.max_connections, 1),
            ("threads", self.threads, 1),
        ):
            if value < least:
                raise ConfigError(f"{name} must be {least} or more, not {value}")
        for name, seconds in (("batch-wait", self.batching.wait), ("drain", self.drain)):
            if not 0 <= seconds < 3600:
                raise ConfigError(f"{name} must be 0 or more and less than an hour, not {seconds:g} s")
        for name, seconds in (("idle-timeout", self.idle_timeout), ("poll", self.poll)):
            if not 0 < seconds < 3600:
                raise ConfigError(f"{name} must be more than 0 and less than an hour, not {seconds:g} s")
        for name, port in (("port", self.port), ("grpc-port", self.grpc_port)):
            if not 0 <= port < 65536:
                raise ConfigError(f"{name} must lie between 0 and 65535, not {port}")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ConfigError(f"log-level must be debug, info, warning or error, not {self.log_level!r}")
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if 0 <= files < self.max_connections + _SPARE_FILES:
            raise ConfigError(
                f"max-connections is {self.max_connections}, but this process may open {files} files; raise "
                f"`ulimit -n` to {self.max_connections + _SPARE_FILES}, or allow fewer connections"
            )


def serve(settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: An address is taken, or not of this machine.
        ModelError: A model cannot be loaded.
    """
    start_logging(settings.log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings))


async def _serve(settings: ServerSettings) -> None:
    metrics = Metrics()
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1), "inference") as executor, _bound(settings) as listener:

        def servable(key: Key, file: Path) -> Servable:
            model = load(file, settings.threads, settings.limits)
            batcher = Batcher(model.run, settings.batching, executor, metrics.observer(key))
            metrics.watch_queue(key, batcher)
            return Servable(*key, model, batcher)

        repository = Repository(settings.root, servable, metrics)
        budget = ByteBudget(_BODIES * settings.max_request_bytes)
        calls, grpc_port = rpc.server(
            rpc.Rpc(repository, metrics, budget), settings.host, settings.grpc_port, settings.max_request_bytes
        )
        await repository.start()

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            await calls.start()
            watcher = asyncio.create_task(repository.watch(settings.poll))
            ports = {"port": listener.getsockname()[1], "grpc_port": grpc_port}
            LOG.info("ready", extra={"host": settings.host, **ports})
            try:
                yield
            finally:
                watcher.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watcher
                await calls.stop(settings.drain)
                LOG.info("stopped")

        app = Rest(repository, metrics, settings.max_request_bytes, budget).application(lifespan)
        config = uvicorn.Config(
            app,
            http=guarded(settings.max_connections, settings.idle_timeout, settings.max_request_bytes),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=max(1, round(settings.drain)),
        )
        # uvicorn raises the signal again when it has ended; that it ended as it was asked to is no failure.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        await uvicorn.Server(config).serve([listener])


def _bound(settings: ServerSettings) -> socket.socket:
    """A socket on the address that REST listens on."""
    try:
        return socket.create_server(
            (settings.host, settings.port),
            family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET,
            backlog=_BACKLOG,
        )
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror}; choose another --host or --port"
        ) from error
