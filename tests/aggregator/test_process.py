"""``aggregator.process``: a process logs as JSON, and a signal tells it to end."""

import json
import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aggregator.process import begin


@pytest.mark.usefixtures("put_back")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_either_signal_tells_the_process_to_end(number: signal.Signals) -> None:
    stop = begin()
    assert not stop.is_set()
    signal.raise_signal(number)
    assert stop.wait(10)


def test_a_signal_that_comes_when_the_process_begins_to_wait_is_heard() -> None:
    code = (
        "import signal\nfrom aggregator.process import begin\nstop = begin()\n"
        "with stop._cond: signal.raise_signal(signal.SIGTERM)\n"  # as in the middle of `wait`
        "assert stop.wait(60)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], timeout=120, check=True)


@pytest.mark.usefixtures("put_back")
def test_what_is_logged_is_json_on_standard_error_from_info_on(capsys: pytest.CaptureFixture[str]) -> None:
    begin()
    log = logging.getLogger("pruneseal.some")
    log.debug("not told")
    log.info("told", extra={"round": 3})
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["run"], entry["round"], entry["message"]) == ("info", "", 3, "told")
