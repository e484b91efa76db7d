"""How the processes around a run begin: they log as JSON on standard error, and end when they are told to."""

import logging
import signal
import threading
from _thread import start_new_thread

from aggregator.logs import ROOT
from protocol.logs import JsonFormatter


def begin() -> threading.Event:
    """Log from now on, and listen to signals.

    Returns:
        What SIGTERM and SIGINT set.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # In a thread: the signal may come just while this one waits for `stop` and has its lock.
        signal.signal(number, lambda *_: start_new_thread(stop.set, ()))
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(run=""))
    logger = logging.getLogger(ROOT)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return stop
