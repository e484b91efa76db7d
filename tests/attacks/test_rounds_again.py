"""Attack 1: open the sum of all, go on, and ask the same round again without one.

A node that forgets what it gave to a round as soon as it trains for another would answer; the difference of the two
sums is the victim's update.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.call import Call
from protocol.errors import CohortRefused, Duplicate, PeerMismatch
from tests.attacks.hostile import NODES, VICTIM, Hostile, loud_plan
from tests.edge_client.federation import RUN

OTHERS = tuple(node for node in NODES if node != VICTIM)
LAST = (1 << 32) - 1


@pytest.fixture
def hostile(tmp_path: Path) -> Hostile:
    return Hostile(tmp_path, loud_plan())


def test_a_round_that_all_have_left_is_not_trained_again_without_one(hostile: Hostile) -> None:
    first = hostile.round(Call(RUN, 1, 1), NODES)
    attendances = hostile.train(Call(RUN, 2, 1), NODES, first)
    second = hostile.sum_of(Call(RUN, 2, 1), attendances, NODES)
    hostile.train(Call(RUN, 3, 1), NODES, second)
    announced = hostile.cohort(attendances, OTHERS).encode()
    for attempt in (1, 2, LAST):
        for node in OTHERS:
            with pytest.raises(PeerMismatch, match="round: ours is at least 3"):
                hostile.clients[node].train(Call(RUN, 2, attempt), first)
            with pytest.raises(PeerMismatch, match="round: ours is at least 3"):
                hostile.clients[node].contribute(Call(RUN, 2, attempt), announced)


@pytest.mark.parametrize("attempt", [2, LAST])
def test_neither_is_the_round_that_they_are_in(hostile: Hostile, attempt: int) -> None:
    hostile.round(Call(RUN, 1, 1), NODES)
    again = Call(RUN, 1, attempt)
    announced = hostile.cohort(hostile.train(again, OTHERS), OTHERS).encode()
    for node in OTHERS:
        with pytest.raises(CohortRefused, match="must not follow one of 4"):
            hostile.clients[node].contribute(again, announced)


def test_two_sums_of_the_round_before_do_not_make_two_rounds_of_one(hostile: Hostile) -> None:
    """Both are genuine and differ by the attempt alone, and so do the models that they lead to."""
    one, other = (hostile.round(Call(RUN, 1, attempt), NODES) for attempt in (1, 2))
    hostile.round(Call(RUN, 2, 1), NODES, one)
    states = {hostile.pending(node).state for node in NODES}
    again = Call(RUN, 2, 2)
    announced = hostile.cohort(hostile.train(again, OTHERS, other), OTHERS).encode()
    assert states.isdisjoint(hostile.pending(node).state for node in OTHERS)
    for node in OTHERS:
        with pytest.raises(CohortRefused, match="must not follow one of 4"):
            hostile.clients[node].contribute(again, announced)


@pytest.mark.parametrize("handler", ["train", "contribute"])
def test_the_last_round_and_attempt_that_can_be_named_end_it_for_good(hostile: Hostile, handler: str) -> None:
    """A hostile count to the end of its range is answered as any other, and nothing before it is."""
    hostile.train(Call(RUN, 1, LAST), NODES)
    ask: Callable[[Call], object] = (
        (lambda call: hostile.clients[3].train(call, b""))
        if handler == "train"
        else (lambda call: hostile.clients[3].contribute(call, b""))
    )
    with pytest.raises(Duplicate, match=f"answers up to attempt {LAST} of round 1"):
        ask(Call(RUN, 1, LAST - 1))
