"""Follows a deployed run by the files in its folder, and shows it as it goes."""

import json
import time
from typing import Final

from aggregator.journal import is_held
from aggregator.logs import LOG_FILE, Tail
from aggregator.records import METRICS_FILE, Record
from aggregator.status import FAILED, FINISHED, read_status
from fleet.running.deployment import HOST, LOG_FOLDER, Deployment
from fleet.running.progress import Progress
from fleet.running.status import look
from protocol.errors import ConfigError, DeploymentError
from protocol.text import cleaned

_LOOK_SECONDS, _ASK_SECONDS, _TROUBLE_SECONDS = 0.25, 5.0, 60.0
_SHOWN: Final = {"message", "refused"}
_LONGEST: Final = 1000


def follow(deployment: Deployment, progress: Progress) -> None:
    """Tend a deployment until its run has ended.

    Raises:
        DeploymentError: The run has failed, or its service cannot keep it going; it can be resumed.
    """
    out = deployment.run
    rounds, log = Tail(out / METRICS_FILE), Tail(out / LOG_FILE)
    trouble = _Trouble(f"http://{HOST}:{deployment.metrics_port}")
    before = read_status(out)
    starts = before.starts if before is not None else 0
    while True:
        deployment.tend()
        status = read_status(out)
        for entry in map(json.loads, log.new()):
            if entry.get("event") in _SHOWN:
                progress.message(entry["message"])
        for line in rounds.new():
            progress.round_done(dict(Record.parse(line.encode(), out / METRICS_FILE)))
        if status is not None and status.starts > starts:
            if status.state == FINISHED and not is_held(out):
                return
            if status.state == FAILED and not is_held(out):
                raise DeploymentError(
                    f"{cleaned(status.error, _LONGEST)} (The logs are in {deployment.out / LOG_FOLDER}.)"
                )
            if status.asked:
                progress.phase(status.round, status.phase, status.answered, status.asked)
        trouble.check()
        time.sleep(_LOOK_SECONDS)


class _Trouble:
    """Asks the service now and then what is wrong, and gives up where it stays wrong.

    Args:
        service: The address of its endpoint.
    """

    def __init__(self, service: str) -> None:
        self._service, self._next, self._since = service, 0.0, float("inf")

    def check(self) -> None:
        """Look, where that is due.

        Raises:
            DeploymentError: The same service has been in trouble for a minute.
        """
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _ASK_SECONDS
        try:
            wrong = look(self._service).trouble
        except ConfigError:
            return  # the service does not answer yet, or knows of no run yet
        if not wrong:
            self._since = float("inf")
            return
        self._since = min(self._since, now)
        if now - self._since > _TROUBLE_SECONDS:
            raise DeploymentError(cleaned("; ".join(wrong), _LONGEST))
