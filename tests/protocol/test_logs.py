"""``protocol.logs``: a record is one line of JSON with what the process and the caller add."""

import io
import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from protocol.logs import JsonFormatter


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def log(stream: io.StringIO) -> logging.Logger:
    """A logger of its own, whose lines are for run ``ab``."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(run="ab"))
    logger = logging.Logger("desk")
    logger.addHandler(handler)
    return logger


def only(stream: io.StringIO) -> dict[str, Any]:
    (line,) = stream.getvalue().splitlines()
    entry: dict[str, Any] = json.loads(line)
    return entry


def test_a_line_has_exactly_what_is_told_of_a_record(log: logging.Logger, stream: io.StringIO) -> None:
    log.warning("round %d is done", 3, extra={"event": "round", "round": 3})
    entry = only(stream)
    moment = datetime.fromisoformat(entry.pop("time"))
    assert moment.utcoffset() is not None
    assert moment.microsecond % 1000 == 0
    assert entry == {
        "level": "warning",
        "logger": "desk",
        "run": "ab",
        "event": "round",
        "round": 3,
        "message": "round 3 is done",
    }


def test_line_breaks_of_messages_and_tracebacks_stay_inside_the_line(log: logging.Logger, stream: io.StringIO) -> None:
    log.error("failed\nhere", exc_info=ValueError("two\nlines\u2028and more"))
    entry = only(stream)
    assert entry["message"] == "failed\nhere"
    assert entry["exception"] == "ValueError: two\nlines\u2028and more"


def test_a_value_that_json_has_no_form_for_is_shown_as_text(log: logging.Logger, stream: io.StringIO) -> None:
    log.info("kept", extra={"path": Path("a/b")})
    assert only(stream)["path"] == "a/b"


def test_what_others_add_to_every_record_is_left_out(log: logging.Logger, stream: io.StringIO) -> None:
    log.info("ready", extra={"color_message": "\x1b[1mready"})
    assert "color_message" not in only(stream)
