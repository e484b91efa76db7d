"""``aggregator.rounds``: whoever is lost before or after the cohort is announced, the others end in an exact sum."""

from pathlib import Path

import pytest
from flwr.app import Message

from protocol.cohort import successor_sizes
from protocol.wire import ATTENDANCE_BYTES
from tests.aggregator.conftest import BAD, MakeScene, asked
from tests.aggregator.stub_grid import (
    CONTRIBUTE,
    EVALUATE,
    NODES,
    TRAIN,
    Ask,
    fails,
    sends,
    sends_plaintext,
    silent,
    unsigned,
)

# --- lost before the cohort is announced -------------------------------------------------------------


def late(ask: Ask) -> None:
    """The reply arrives after the deadline, among the replies to the next message."""
    ask.grid.late.append(ask.reply(*ask.honest()))


def test_a_client_that_does_not_train_in_time_is_left_behind(scene: MakeScene) -> None:
    s = scene(4)
    s.grid.when(TRAIN, silent, BAD)
    watch = s.run()
    assert asked(s, CONTRIBUTE) == [(1, 1, (2, 3, 8))]
    assert (watch.records[0].cohort, watch.records[0].dropped) == (3, 1)
    assert watch.texts == ["round 1: 1 of 4 clients did not train"]


def test_where_too_few_train_all_are_asked_again_with_the_next_attempt(scene: MakeScene) -> None:
    s = scene(3)
    s.grid.when(TRAIN, fails("out of memory [ref 0a1b]"), BAD, attempt=1)
    s.grid.when(TRAIN, silent, BAD, attempt=2)
    watch = s.run()
    assert asked(s, TRAIN) == [(1, attempt, (2, 3, 5)) for attempt in (1, 2, 3)]
    assert asked(s, CONTRIBUTE) == [(1, 3, (2, 3, 5))]
    assert watch.texts == [
        "round 1: 1 of 3 clients did not train (1 x 'out of memory'); asking again",
        "round 1: 1 of 3 clients did not train; asking again",
    ]
    assert watch.records[0].attempts == 3


def test_an_error_reply_is_told_by_its_reason_or_its_code_and_is_no_refusal(scene: MakeScene) -> None:
    s = scene(6)
    s.grid.when(TRAIN, fails("this node has no usable data [ref 0a1b]"), 2, 3)
    s.grid.when(TRAIN, fails(None), BAD)
    watch = s.run()
    assert watch.texts == [
        "round 1: 3 of 6 clients did not train (2 x 'this node has no usable data', 1 x 'Flower error 110')"
    ]
    assert (watch.records[0].cohort, watch.records[0].refused) == (3, 0)


@pytest.mark.parametrize("kind", [TRAIN, CONTRIBUTE])
def test_a_reply_that_comes_too_late_counts_for_nothing(scene: MakeScene, kind: str) -> None:
    s = scene(8, rounds=2)
    s.grid.when(kind, late, BAD, round=1)
    watch = s.run()
    assert [record.cohort for record in watch.records] == ([7, 8] if kind == TRAIN else [5, 8])
    assert [record.refused for record in watch.records] == [0, 0]
    assert BAD not in watch.sums[0][2].nodes


# --- lost after the cohort was announced -------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "lost"),
    [(3, 1), (3, 3), (5, 1), (7, 1), (8, 1), (8, 3), (8, 4), (9, 1), (9, 3), (9, 4)]
    + [(10, lost) for lost in (1, 2, 3, 4, 5, 10)],
)
def test_the_survivors_are_asked_again_in_a_cohort_that_may_follow_or_the_round_starts_over(
    scene: MakeScene, nodes: int, lost: int
) -> None:
    s = scene(nodes)
    gone = NODES[:lost]
    s.grid.when(CONTRIBUTE, silent, *gone, attempt=1)
    watch = s.run()
    (record,) = watch.records
    safe = [size for size in successor_sizes(nodes, nodes, 3, colluders=1) if size <= nodes - lost]
    first, second = asked(s, CONTRIBUTE)
    assert set(first[2]) == set(NODES[:nodes])
    if safe:
        assert len(second[2]) == max(safe)
        assert set(second[2]) <= set(NODES[lost:nodes])
        assert asked(s, TRAIN) == [(1, 1, NODES[:nodes])]
        assert record.left_out == nodes - lost - max(safe)
        assert record.dropped == lost
    else:
        assert asked(s, TRAIN) == [(1, attempt, NODES[:nodes]) for attempt in (1, 2)]
        assert set(second[2]) == set(NODES[:nodes])
        assert (record.left_out, record.dropped) == (0, 0)
        assert watch.texts[-1].endswith("too many for a safe sum of the others; the round starts over")
    assert second[:2] == (1, 2)
    assert watch.sums[0][2].nodes == set(second[2])


@pytest.mark.slow
def test_who_is_left_out_among_the_survivors_is_chosen_at_random_but_repeats(scene: MakeScene) -> None:
    chosen = []
    for folder in ("a", "b"):
        s = scene(8, folder, rounds=4)
        s.grid.when(CONTRIBUTE, silent, 2, attempt=1)
        s.run()
        chosen.append([nodes for _, attempt, nodes in asked(s, CONTRIBUTE) if attempt == 2])
    assert chosen[0] == chosen[1]
    assert len({frozenset(nodes) for nodes in chosen[0]}) > 1


def test_a_round_that_starts_over_is_trained_again_with_new_nonces(scene: MakeScene) -> None:
    s, cohorts = scene(4), []

    def note(ask: Ask) -> Message:
        cohorts.append(ask.frame)
        return ask.reply(*ask.honest())

    s.grid.when(CONTRIBUTE, note, 3)
    s.grid.when(CONTRIBUTE, silent, BAD, attempt=1)
    s.run()
    size = ATTENDANCE_BYTES
    first, second = ({c[i : i + size] for i in range(0, len(c), size)} for c in cohorts)
    assert len(first) == len(second) == 4
    assert first.isdisjoint(second)


def test_losses_in_both_messages_of_several_attempts_still_end_in_an_exact_sum(scene: MakeScene) -> None:
    s = scene(10, attempts=10)
    s.grid.when(TRAIN, silent, 2, attempt=1)
    s.grid.when(CONTRIBUTE, fails("out of memory"), 3, attempt=1)
    s.grid.when(CONTRIBUTE, sends(unsigned), *NODES, attempt=2)
    s.grid.when(TRAIN, sends_plaintext, *NODES[:8], attempt=3)
    watch = s.run()
    assert [(kind, attempt, len(nodes)) for kind, _, attempt, nodes in s.grid.asked] == [
        *((TRAIN, 1, 10), (CONTRIBUTE, 1, 9), (CONTRIBUTE, 2, 6)),
        *((TRAIN, 3, 10), (TRAIN, 4, 10), (CONTRIBUTE, 4, 6)),
        (EVALUATE, 1, 10),
    ]
    (record,) = watch.records
    assert record.refusals == {"SignatureRefused": 6, "MalformedMessage": 8}
    assert (record.attempts, record.cohort, record.dropped, record.left_out) == (4, 6, 0, 4)


def test_clipped_values_are_counted_in_the_sum_that_counts(scene: MakeScene) -> None:
    s = scene(8)
    for client in s.grid.clients.values():
        client.metrics["clipped"] = client.kit.node
    s.grid.when(CONTRIBUTE, silent, BAD, attempt=1)
    watch = s.run()
    assert watch.records[0].clipped == sum(watch.sums[0][2].nodes)


def test_a_round_gives_its_files_in_memory_back_whatever_happens(scene: MakeScene) -> None:
    s = scene(8, rounds=2)
    s.grid.when(CONTRIBUTE, sends(unsigned), BAD)
    before = len(list(Path("/proc/self/fd").iterdir()))
    s.run()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
