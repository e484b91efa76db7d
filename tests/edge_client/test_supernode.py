"""``edge_client.supernode``: a SuperNode that has failed does not live on."""

import subprocess
import sys
from pathlib import Path

import pytest

FAILING = """
import threading, time
from edge_client import supernode

def fail():
    threading.Thread(target=time.sleep, args=(600,)).start()
    {end}

supernode.flower_supernode = fail
supernode.main()
"""


@pytest.mark.parametrize("end", ["raise OSError('handshake')", "raise __import__('ssl').SSLError(1, 'EOF')", "return"])
def test_it_ends_with_an_exit_code_although_other_threads_live(end: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAILING.format(end=end)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "the SuperNode has failed; start it again" in done.stderr
