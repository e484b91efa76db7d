"""Attack 12: two of ten clients collude. How many may is a field of the plan."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from protocol.call import Call
from protocol.errors import CohortRefused
from protocol.sharing import threshold
from tests.attacks.hostile import COLLUDER, VICTIM, Hostile, correlation, loud_plan
from tests.edge_client.federation import RUN, release_of

pytestmark = pytest.mark.slow

NODES = (2, 3, 5, 8, 13, 21, 34, 55, 89, 144)
SECOND_COLLUDER = 13
LEFT_OUT = (VICTIM, COLLUDER, SECOND_COLLUDER)
FIRST, AGAIN = Call(RUN, 1, 1), Call(RUN, 1, 2)


def opens(hostile: Hostile, call: Call, members: Sequence[int]) -> bool:
    """Whether honest clients help to open a sum of these, after one of all; two more consent to anything."""
    total = hostile.masked(call, hostile.train(call, NODES), NODES, members)
    consents = 0
    for node in sorted(total.nodes - {COLLUDER, SECOND_COLLUDER}):
        with suppress(CohortRefused):
            hostile.clients[node].release(call, release_of(total))
            consents += 1
    return consents + 2 >= threshold(len(NODES), hostile.plan.colluders)


@pytest.mark.parametrize("left_out", range(1, 4))
def test_with_two_colluders_in_the_plan_no_sum_is_opened_that_leaves_both_and_a_victim_out(
    left_out: int, tmp_path: Path
) -> None:
    hostile = Hostile(tmp_path, loud_plan(colluders=2, min_cohort=4), NODES)
    hostile.round(FIRST, NODES)
    assert not opens(hostile, AGAIN, [node for node in NODES if node not in LEFT_OUT[:left_out]])


def test_a_plan_for_one_colluder_does_not_hold_against_two(tmp_path: Path) -> None:
    """What the plan says is what holds. Three are left out: the two know what they gave, and so the third's update."""
    hostile = Hostile(tmp_path, loud_plan(colluders=1), NODES)
    attendances = hostile.train(FIRST, NODES)
    whole = hostile.updates(FIRST, hostile.sum_of(FIRST, attendances, NODES), attendances, NODES)
    secret = hostile.pending(VICTIM).values - hostile.start(RUN).vector
    known = sum(hostile.own(FIRST, attendances, NODES, node) for node in (COLLUDER, SECOND_COLLUDER))
    members = [node for node in NODES if node not in LEFT_OUT]
    attendances = hostile.train(AGAIN, members, invited=NODES)
    rest = hostile.updates(AGAIN, hostile.sum_of(AGAIN, attendances, members), attendances, members)
    assert correlation(whole - rest - known, secret) > 0.95


@pytest.mark.parametrize("left_out", [(VICTIM,), (VICTIM, COLLUDER)])
def test_the_victim_and_one_colluder_are_never_left_out_by_themselves(
    left_out: tuple[int, ...], tmp_path: Path
) -> None:
    hostile = Hostile(tmp_path, loud_plan(colluders=1), NODES)
    hostile.round(FIRST, NODES)
    assert not opens(hostile, AGAIN, [node for node in NODES if node not in left_out])
