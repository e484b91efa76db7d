"""Attack 2: run a plan twice, one client missing the second time; whoever was in both runs subtracts the sums.

Where both runs begin with the same weights and draw the same numbers, the difference is the missing client's update.
Nobody has to be malicious. (What the mean itself tells of each of its members is no leak: it is taken off first.)
"""

from pathlib import Path

import pytest

from protocol.call import Call
from tests.attacks.hostile import COLLUDER, NODES, VICTIM, Hostile, beyond, correlation
from tests.edge_client.federation import RUN, tiny_plan

PLAN = tiny_plan(model="digits-mlp", data="digits", partition="iid", bits=20, epochs=1)
OTHERS = tuple(node for node in NODES if node != VICTIM)


def leak(folder: Path, second_run: bytes, second: Path) -> float:
    """What the difference of the sums of two runs tells of the victim."""
    one, call = Hostile(folder, PLAN), Call(RUN, 1, 1)
    attendances = one.train(call, NODES)
    mean = one.updates(call, one.sum_of(call, attendances, NODES), attendances, NODES)
    secret = one.pending(VICTIM).values - one.start(RUN).vector
    other, call = Hostile(second, PLAN), Call(second_run, 1, 1)
    attendances = other.train(call, OTHERS)
    rest = other.updates(call, other.sum_of(call, attendances, OTHERS), attendances, OTHERS)
    assert COLLUDER in OTHERS
    return correlation(beyond(mean, mean - rest), beyond(mean, secret))


def test_two_runs_of_a_plan_do_not_tell_who_was_missing_in_one(tmp_path: Path) -> None:
    assert leak(tmp_path / "one", bytes(16), tmp_path / "other") < 0.05


def test_two_runs_of_one_name_would(tmp_path: Path) -> None:
    """The control: clients that never saw the first run, whose second begins and draws alike."""
    assert leak(tmp_path / "one", RUN, tmp_path / "other") > 0.95


@pytest.mark.parametrize("run", [RUN, bytes(16)])
def test_clients_that_were_in_the_first_refuse_a_second_from_the_same_weights(tmp_path: Path, run: bytes) -> None:
    """Under another name a run begins elsewhere; under the same name it is the same run."""
    hostile, call = Hostile(tmp_path, PLAN), Call(RUN, 1, 1)
    hostile.round(call, NODES)
    known = hostile.pending(3).state
    hostile.train(Call(run, 1, 2), OTHERS, invited=NODES)
    assert (hostile.pending(3).state == known) == (run == RUN)
