"""Attack 12: two of ten clients collude. How many may is a field of the plan."""

from pathlib import Path

import pytest

from protocol.call import Call
from protocol.errors import CohortRefused
from tests.attacks.hostile import COLLUDER, VICTIM, Hostile, correlation, loud_plan
from tests.edge_client.federation import RUN

pytestmark = pytest.mark.slow

NODES = (2, 3, 5, 8, 13, 21, 34, 55, 89, 144)
SECOND_COLLUDER = 13
LEFT_OUT = (VICTIM, COLLUDER, SECOND_COLLUDER)
FIRST, AGAIN = Call(RUN, 1, 1), Call(RUN, 1, 2)


def test_with_two_colluders_in_the_plan_no_sum_may_follow_that_leaves_both_and_a_victim_out(tmp_path: Path) -> None:
    hostile = Hostile(tmp_path, loud_plan(colluders=2, min_cohort=4), NODES)
    attendances = hostile.train(FIRST, NODES)
    hostile.sum_of(FIRST, attendances, NODES)
    for left_out in range(1, 7):
        members = [node for node in NODES if node not in (*LEFT_OUT, 3, 5, 21)[:left_out]]
        announced = hostile.cohort(attendances, members).encode()
        for node in (34, 55, 89, 144):
            with pytest.raises(CohortRefused, match="must not follow one of 10"):
                hostile.clients[node].contribute(AGAIN, announced)


def test_a_plan_for_one_colluder_does_not_hold_against_two(tmp_path: Path) -> None:
    """What the plan says is what holds. Three are left out: the two know what they gave, and so the third's update."""
    hostile = Hostile(tmp_path, loud_plan(colluders=1), NODES)
    attendances = hostile.train(FIRST, NODES)
    whole = hostile.updates(FIRST, hostile.sum_of(FIRST, attendances, NODES), attendances, NODES)
    members = [node for node in NODES if node not in LEFT_OUT]
    rest = hostile.updates(AGAIN, hostile.sum_of(AGAIN, attendances, members), attendances, members)
    known = sum(hostile.own(FIRST, attendances, NODES, node) for node in (COLLUDER, SECOND_COLLUDER))
    secret = hostile.pending(VICTIM).values - hostile.start(RUN).vector
    assert correlation(whole - rest - known, secret) > 0.95
    # The victim and one colluder are never left out by themselves.
    smaller = Hostile(tmp_path / "smaller", loud_plan(colluders=1), NODES)
    attendances = smaller.train(FIRST, NODES)
    smaller.sum_of(FIRST, attendances, NODES)
    announced = smaller.cohort(attendances, [node for node in NODES if node not in (VICTIM, COLLUDER)]).encode()
    with pytest.raises(CohortRefused):
        smaller.clients[3].contribute(AGAIN, announced)
