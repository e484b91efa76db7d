"""``protocol.call``: a call names a run, a round and an attempt, all in range; it knows no Flower."""

import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from protocol.call import Call
from protocol.errors import MalformedMessage

RUN = bytes(range(16))


@pytest.mark.parametrize("run", [b"", RUN[:-1], RUN + b"\0"])
def test_a_run_has_sixteen_bytes(run: bytes) -> None:
    with pytest.raises(MalformedMessage, match="names no run"):
        Call(run, 1, 1)


@pytest.mark.parametrize("number", [-1, 0, 1 << 32])
def test_rounds_and_attempts_are_counted_from_one_in_32_bits(number: int) -> None:
    Call(RUN, (1 << 32) - 1, (1 << 32) - 1)
    for round_, attempt in ((number, 1), (1, number)):
        with pytest.raises(MalformedMessage, match="counted from 1"):
            Call(RUN, round_, attempt)


def test_a_call_is_not_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Call(RUN, 1, 1).round = 2  # type: ignore[misc]


def test_it_knows_no_flower() -> None:
    code = "import sys, protocol.call; print('flwr' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
