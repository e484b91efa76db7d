"""What the server logs, as JSON on standard error."""

import logging
import sys

from protocol.logs import JsonFormatter


def start_logging(level: str) -> None:
    """Send everything that this process logs, from this level on, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(
        max(logging.WARNING, logging.getLogger().level)
    )  # we say ourselves what it says
