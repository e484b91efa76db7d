"""Logs for machines: one JSON object per line, each with the run, and with the round where there is one.

They go to ``log.jsonl`` in the run's folder, from where the service repeats them on its own standard error: Flower
keeps what an app itself prints. They go to the app's standard error as well, which `flwr log` shows.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

from aggregator.observer import refusal
from aggregator.records import MaskFigures, Record
from aggregator.summation import MaskedSum
from protocol.errors import PeerError
from protocol.logs import JsonFormatter
from protocol.text import LONGEST_NAME, cleaned

LOG_FILE: Final = "log.jsonl"
ROOT: Final = "pruneseal"
"""The logger above all of ours."""

_MOST_BYTES, _OLD_FILES = 10_000_000, 2

_log = logging.getLogger("pruneseal.aggregator")


class WholeLines(RotatingFileHandler):
    """A log file of which every line is whole, and that never decides how a run ends.

    What a full disk has left of a line, when the process that wrote it was gone before there was space, is cut off as
    the file is opened: the next process would go on in the middle of that line.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=_MOST_BYTES, backupCount=_OLD_FILES)

    def _open(self) -> TextIOWrapper:
        path = Path(self.baseFilename)
        if path.is_file() and (torn := len(path.read_bytes().rpartition(b"\n")[2])):
            os.truncate(path, path.stat().st_size - torn)
        return super()._open()

    def close(self) -> None:
        """Close it; where the disk does not take the rest, say so as for any record that is not written."""
        try:
            super().close()
        except OSError:
            self.handleError(logging.makeLogRecord({"msg": "the end of the log is not written"}))


@contextmanager
def json_logs(folder: Path, run: str, level: int = logging.INFO) -> Iterator[None]:
    """Log as JSON while a run goes on.

    Args:
        folder: The run's folder.
        run: Its name, in hex.
        level: The lowest level that is written.
    """
    logger = logging.getLogger(ROOT)
    before = logger.level
    handlers = (
        logging.StreamHandler(),
        WholeLines(folder / LOG_FILE),
    )
    logger.setLevel(level)
    for handler in handlers:
        handler.setFormatter(JsonFormatter(run=run))
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(before)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


class Tail:
    """The lines of a file that are new since the last look.

    Args:
        path: The file; the whole lines that are in it already are not new.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0

    def new(self) -> list[str]:
        """Whole new lines; a file that was replaced by a shorter one is read from its beginning."""
        if not self._path.exists():
            return []
        if self._path.stat().st_size < self._at:
            self._at = 0
        with self._path.open("rb") as file:
            file.seek(self._at)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._at += len(whole) + len(newline)
        return whole.decode().splitlines() if newline else []


class LogObserver:
    """Tells the log, which names the nodes as they are registered."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def name(self, node: int) -> str:
        """What a node is called: its name when it was last there, or its number in Flower."""
        return self._names.get(node) or str(node)

    def online(self, round_: int, nodes: Mapping[int, str]) -> None:
        """Info: who is online."""
        self._names = {node: cleaned(name, LONGEST_NAME) for node, name in nodes.items()}
        _log.info(
            "round %d: %d nodes are online",
            round_,
            len(nodes),
            extra=_fields("online", round_, nodes=[self.name(node) for node in sorted(nodes)]),
        )

    def phase(self, round_: int, name: str, done: int, total: int) -> None:
        """Debug: who has answered."""
        _log.debug("round %d: %s %d of %d", round_, name, done, total, extra=_fields("phase", round_, phase=name))

    def refused(self, round_: int, node: int, error: PeerError) -> None:
        """Warning: a message that does not count."""
        more = _fields("refused", round_, node=self.name(node), reason=type(error).__name__)
        _log.warning("%s", refusal(round_, error), extra=more)

    def failed(self, round_: int, node: int, reason: str) -> None:
        """Warning: a node that answered with an error."""
        more = _fields("failed", round_, node=self.name(node), reason=reason)
        _log.warning("round %d: %s", round_, reason, extra=more)

    def summed(self, round_: int, total: MaskedSum, aggregate: bytes) -> MaskFigures:
        """Info: a sum is complete."""
        more = _fields("summed", round_, attempt=total.attempt, clients=len(total.nodes), bytes=len(aggregate))
        _log.info("round %d, attempt %d: added %d clients", round_, total.attempt, len(total.nodes), extra=more)
        return MaskFigures()

    def round_done(self, record: Record) -> None:
        """Info: a round's metrics."""
        _log.info("round %d is done", record.round, extra=_fields("round", record.round, metrics=record.model_dump()))

    def message(self, text: str) -> None:
        """Warning: what an operator wants to know."""
        _log.warning("%s", text, extra={"event": "message"})


def _fields(event: str, round_: int, **more: object) -> dict[str, object]:
    return {"event": event, "round": round_, **more}
