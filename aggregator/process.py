"""How the processes around a run begin: they log as JSON on standard error, and end when they are told to."""

import logging
import signal
import threading

from aggregator.logs import ROOT, JsonFormatter


def begin() -> threading.Event:
    """Log from now on, and listen to signals.

    Returns:
        What SIGTERM and SIGINT set.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(""))
    logger = logging.getLogger(ROOT)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return stop
