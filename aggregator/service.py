"""The aggregator's service process: ``python -m aggregator.service``.

It serves the endpoint (:mod:`aggregator.endpoint`) and keeps the run going: Flower starts an app once and forgets it
when its process dies, so this process submits the app to the SuperLink, watches whether some process holds the run's
lock, and submits it again where none does and the run is neither finished nor failed. The app resumes from the journal.
While the disk is full it waits. It repeats the log of the run on standard error.
An error that an operator must look at is not tried again; starting the service anew tries again.

From the environment, besides the aggregator's own settings: ``PRUNESEAL_METRICS``, the address of the endpoint
(``127.0.0.1:9464``); ``PRUNESEAL_APP``, the folder of the Flower app, without which nothing is submitted; and
``PRUNESEAL_SUPERLINK``, the connection's name in ``$FLWR_HOME/config.toml`` (``aggregator``). SIGTERM and SIGINT end
it; the run goes on.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from aggregator.endpoint import endpoint, shortages
from aggregator.flower import control
from aggregator.journal import is_held
from aggregator.logs import LOG_FILE, Tail
from aggregator.process import begin
from aggregator.records import read_records
from aggregator.settings import AggregatorSettings, read_settings
from aggregator.status import FAILED, FINISHED, read_status
from protocol.errors import ConfigError, PruneSealError

_log = logging.getLogger("pruneseal.service")
_TICK_SECONDS: Final = 0.5
_START_SECONDS: Final = 120.0
_MOST_STARTS: Final = 5
_AWAY_SECONDS: Final = 5.0


class Flower(Protocol):
    """What the supervisor asks of Flower."""

    def submit(self) -> str:
        """Start the app; the name of Flower's run.

        Raises:
            OSError: The SuperLink does not take it.
        """

    def stop(self, run: str) -> None:
        """Let a run end; one that has ended already, or is unknown, is left alone."""


@dataclass(frozen=True)
class FlowerControl:
    """The SuperLink's Control API.

    Attributes:
        app: The folder of the Flower app.
        connection: The name of the SuperLink's connection.
    """

    app: Path
    connection: str

    def submit(self) -> str:
        """Start the app; the name of Flower's run."""
        with control(self.connection) as superlink:
            return superlink.start_run(self.app)

    def stop(self, run: str) -> None:
        """Let a run end."""
        try:
            with control(self.connection) as superlink:
                superlink.stop_run(run)
        except OSError as error:
            _log.info("the run of Flower is not stopped: %s", error)  # it has ended, or Flower finds out by itself


class Supervisor:
    """Keeps one run going; call :meth:`tick` now and then.

    Args:
        folder: The run's folder.
        flower: Submits and stops.
        lacking: What is missing for a start, in words.
        clock: Seconds that never run backwards.
    """

    def __init__(
        self,
        folder: Path,
        flower: Flower,
        lacking: Callable[[], list[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._flower, self._lacking, self._clock = folder, flower, lacking, clock
        self._fresh = True  # a service that begins tries again what had failed
        self._flower_run = ""
        self._starting: tuple[float, int] | None = None  # until when the app may take to come, and its starts before
        self._earliest = clock()
        self._idle, self._rounds = 0, -1  # submissions without a new round, and the rounds at the first of them
        self.trouble: list[str] = []
        """What keeps the run from going on, each with what to do."""

    def tick(self) -> None:
        """Look at the run, and submit it where that is due."""
        # Before the status and after it: an app writes how it ended and then unlocks, so a free lock may come with an
        # old status.
        held = is_held(self._folder)
        status = read_status(self._folder)
        starts = status.starts if status is not None else 0
        state = status.state if status is not None else ""
        if held or is_held(self._folder) or state == FINISHED:
            self._fresh, self._starting, self.trouble = False, None, []
            return
        if self._starting is not None:
            until, before = self._starting
            if starts == before and self._clock() < until and not self._lacking():
                return
            self._fresh, self._starting = starts == before, None
        if (state == FAILED and not self._fresh) or self._clock() < self._earliest:
            return
        if wrong := self._lacking():  # a full disk, for one: the app would only fail again
            if wrong != self.trouble:
                _log.error("the run waits: %s", "; ".join(wrong))
            self.trouble = wrong
            return
        self._submit(starts)

    def _submit(self, starts: int) -> None:
        rounds = len(read_records(self._folder))
        self._idle = self._idle + 1 if rounds == self._rounds else 1
        self._rounds = rounds
        if self._idle > _MOST_STARTS:
            text = "times without a new round: see its log, then start the service anew"
            self.trouble = [f"the app has ended {_MOST_STARTS} {text}"]
            return
        self._earliest = self._clock() + 2.0 ** (self._idle - 1) - 1
        try:
            if self._flower_run:
                _log.warning("the app has ended mid-run; it is started again and resumes")
                self._flower.stop(self._flower_run)
                self._flower_run = ""
            self._flower_run = self._flower.submit()
        except OSError as error:
            self.trouble = [str(error)]
            self._idle -= 1  # the SuperLink may be away for long: that is not the app's doing
            self._earliest = self._clock() + _AWAY_SECONDS
            _log.warning("the app cannot be submitted, trying again: %s", error)
            return
        self._fresh, self._starting, self.trouble = False, (self._clock() + _START_SECONDS, starts), []
        _log.info("submitted as run %s of Flower", self._flower_run)


def address(environment: Mapping[str, str]) -> tuple[str, int]:
    """Host and port of the endpoint, from ``PRUNESEAL_METRICS``.

    Raises:
        ConfigError: It is not ``host:port``.
    """
    text = environment.get("PRUNESEAL_METRICS", "127.0.0.1:9464")
    host, separator, port = text.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit():
        raise ConfigError(f"PRUNESEAL_METRICS must be host:port, not {text!r}")
    return host, int(port)


def flower_command(environment: Mapping[str, str]) -> FlowerControl | None:
    """What to submit and where, or None where this process only watches.

    Raises:
        ConfigError: The app's folder holds no app.
    """
    if "PRUNESEAL_APP" not in environment:
        return None
    app = Path(environment["PRUNESEAL_APP"])
    if not (app / "pyproject.toml").is_file():
        raise ConfigError(f"PRUNESEAL_APP must name the folder of the Flower app; {app} holds no pyproject.toml")
    return FlowerControl(app, environment.get("PRUNESEAL_SUPERLINK", "aggregator"))


def serve(settings: AggregatorSettings, flower: Flower | None, host: str, port: int, stop: threading.Event) -> None:
    """Serve and supervise until told to stop.

    Args:
        settings: The aggregator's settings.
        flower: How the run is submitted, or None to watch alone.
        host: The endpoint's address.
        port: Its port.
        stop: Ends it.
    """
    supervisor = Supervisor(settings.state, flower, lambda: shortages(settings)) if flower is not None else None
    log = Tail(settings.state / LOG_FILE)
    with endpoint(host, port, settings, lambda: supervisor.trouble if supervisor else []) as bound:
        _log.info("listening on %s:%d", host, bound)
        while not stop.wait(_TICK_SECONDS):
            for line in log.new():
                sys.stderr.write(f"{line}\n")
            if supervisor is not None:
                try:
                    supervisor.tick()
                except PruneSealError as error:
                    supervisor.trouble = [str(error)]
    _log.info("the service ends; a run that is under way goes on")


def main(environment: Mapping[str, str] = os.environ) -> int:
    """The process; its exit code."""
    stop = begin()
    try:
        serve(read_settings(environment), flower_command(environment), *address(environment), stop)
    except PruneSealError as error:
        _log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
