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
from tests.edge_client.federation import RUN, invitation, release_of

OTHERS = tuple(node for node in NODES if node != VICTIM)
LAST = (1 << 32) - 1
SECOND_SUM = "the difference of two sums from the same starting model could expose a member"


@pytest.fixture
def hostile(tmp_path: Path) -> Hostile:
    return Hostile(tmp_path, loud_plan())


def test_a_round_that_all_have_left_is_not_trained_again_without_one(hostile: Hostile) -> None:
    first = hostile.round(Call(RUN, 1, 1), NODES)
    attendances = hostile.train(Call(RUN, 2, 1), NODES, first)
    second = hostile.sum_of(Call(RUN, 2, 1), attendances, NODES)
    hostile.train(Call(RUN, 3, 1), NODES, second)
    for attempt in (1, 2, LAST):
        for node in OTHERS:
            with pytest.raises(PeerMismatch, match="round: ours is at least 3"):
                hostile.clients[node].train(Call(RUN, 2, attempt), invitation(NODES, first))
            announced = hostile.announced(Call(RUN, 2, 1), attendances, OTHERS, node)
            with pytest.raises(PeerMismatch, match="round: ours is at least 3"):
                hostile.clients[node].contribute(Call(RUN, 2, attempt), announced)


@pytest.mark.parametrize("attempt", [2, LAST])
def test_neither_is_the_round_that_they_are_in(hostile: Hostile, attempt: int) -> None:
    hostile.round(Call(RUN, 1, 1), NODES)
    again = Call(RUN, 1, attempt)
    total = hostile.masked(again, hostile.train(again, OTHERS, invited=NODES), OTHERS)
    for node in OTHERS:
        with pytest.raises(CohortRefused, match=SECOND_SUM):
            hostile.clients[node].release(again, release_of(total))


def test_two_sums_of_the_round_before_do_not_make_two_rounds_of_one(hostile: Hostile, tmp_path: Path) -> None:
    """The aggregator has another genuine sum of round 1, of nodes that had forgotten; its model differs by little."""
    one = hostile.round(Call(RUN, 1, 1), NODES)
    copied = Hostile(tmp_path / "copied", hostile.plan)
    attended = copied.train(Call(RUN, 1, 1), NODES)
    other = copied.opened(Call(RUN, 1, 1), copied.masked(Call(RUN, 1, 1), attended, NODES, NODES[:3]))
    hostile.round(Call(RUN, 2, 1), NODES, one)
    states = {hostile.pending(node).state for node in NODES}
    again = Call(RUN, 2, 2)
    total = hostile.masked(again, hostile.train(again, OTHERS, other, invited=NODES), OTHERS)
    assert states.isdisjoint(hostile.pending(node).state for node in OTHERS)
    for node in OTHERS:
        with pytest.raises(CohortRefused, match=SECOND_SUM):
            hostile.clients[node].release(again, release_of(total))


@pytest.mark.parametrize("handler", ["train", "contribute"])
def test_the_last_round_and_attempt_that_can_be_named_end_it_for_good(hostile: Hostile, handler: str) -> None:
    """A hostile count to the end of its range is answered as any other, and nothing before it is."""
    hostile.train(Call(RUN, 1, LAST), NODES)
    ask: Callable[[Call], object] = (
        (lambda call: hostile.clients[3].train(call, invitation(NODES)))
        if handler == "train"
        else (lambda call: hostile.clients[3].contribute(call, {}))
    )
    with pytest.raises(Duplicate, match=f"answers up to attempt {LAST} of round 1"):
        ask(Call(RUN, 1, LAST - 1))
