"""Logs for machines: one JSON object per line, the same members in every process that logs so.

Law: a record is one line, whatever its message, its members and its traceback hold.
"""

import json
import logging
from datetime import UTC, datetime
from typing import Final

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
"""What any record has, and uvicorn's copy of its message with colours."""


class JsonFormatter(logging.Formatter):
    """``time``, ``level``, ``logger``, what the process adds, ``message``, ``extra``, and ``exception`` if any.

    Args:
        members: Added to each line, such as the name of the run.
    """

    def __init__(self, **members: object) -> None:
        super().__init__()
        self._members = members

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record, without its end; a value that JSON has no form for is shown as text."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._members,
            "message": record.getMessage(),
            **{key: value for key, value in vars(record).items() if key not in _STANDARD},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
