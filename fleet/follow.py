"""Follows a deployed run by the files in its folder, and shows it as it goes."""

import json
import time
from pathlib import Path
from typing import Any, Final

from aggregator.journal import METRICS_FILE, is_held
from aggregator.logs import LOG_FILE
from aggregator.status import FAILED, FINISHED, read_status
from fleet.deployment import LOG_FOLDER, Deployment
from fleet.progress import Progress
from protocol.errors import DeploymentError

_LOOK_SECONDS = 0.25
_SHOWN: Final = {"message", "refused"}


def follow(deployment: Deployment, progress: Progress) -> None:
    """Tend a deployment until its run has ended.

    Raises:
        DeploymentError: The run has failed; it can be resumed.
    """
    out = deployment.run
    rounds, log = _Tail(out / METRICS_FILE), _Tail(out / LOG_FILE)
    before = read_status(out)
    starts = before.starts if before is not None else 0
    while True:
        deployment.tend()
        status = read_status(out)
        for entry in log.new():
            if entry.get("event") in _SHOWN:
                progress.message(entry["message"])
        for record in rounds.new():
            progress.round_done(record)
        if status is not None and status.starts > starts:
            if status.state == FINISHED and not is_held(out):
                return
            if status.state == FAILED and not is_held(out):
                raise DeploymentError(f"{status.error} (The logs are in {deployment.out / LOG_FOLDER}.)")
            if status.asked:
                progress.phase(status.round, status.phase, status.answered, status.asked)
        time.sleep(_LOOK_SECONDS)


class _Tail:
    """The lines of a JSON-lines file that are new since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = path.stat().st_size if path.exists() else 0

    def new(self) -> list[dict[str, Any]]:
        """Complete new lines; a file that was replaced by a shorter one is read from where the new one ends."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._at)
            whole = file.read().rpartition(b"\n")[0]
        if not whole:
            self._at = min(self._at, self._path.stat().st_size)
            return []
        self._at += len(whole) + 1
        return [json.loads(line) for line in whole.splitlines()]
