"""``aggregator.rounds``: whoever is lost at whichever message, a quorum of the others ends in an exact sum."""

from pathlib import Path

import pytest
from flwr.app import Message

from protocol.cohort import decode_cohort
from protocol.errors import QuorumError
from protocol.sharing import threshold
from tests.aggregator.conftest import BAD, BEARER, MakeScene, asked
from tests.aggregator.stub_grid import (
    CONTRIBUTE,
    NODES,
    RELEASE,
    REPORT,
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
    ask.grid.late.append(ask.reply(ask.honest()))


def test_a_client_that_does_not_train_in_time_is_left_behind(scene: MakeScene) -> None:
    s = scene(4)
    s.grid.when(TRAIN, silent, BAD, round=1)
    watch = s.run()
    assert asked(s, CONTRIBUTE) == [(1, 1, (2, 3, 8))]
    assert (watch.records[0].cohort, watch.records[0].dropped) == (3, 1)
    assert watch.texts == ["round 1: 1 of 4 clients did not train"]


def test_where_too_few_train_all_are_asked_again_with_the_next_attempt(scene: MakeScene) -> None:
    s = scene(3)
    s.grid.when(TRAIN, fails("out of memory [ref 0a1b]"), BAD, round=1, attempt=1)
    s.grid.when(TRAIN, silent, BAD, round=1, attempt=2)
    watch = s.run()
    assert asked(s, TRAIN) == [(1, attempt, (2, 3, 5)) for attempt in (1, 2, 3)]
    assert asked(s, CONTRIBUTE) == [(1, 3, (2, 3, 5))]
    assert watch.texts == [
        "round 1: 1 of 3 clients did not train (1 x 'out of memory'); asking again",
        "round 1: 1 of 3 clients did not train; asking again",
    ]
    assert watch.records[0].attempts == 3


def test_an_error_reply_is_told_by_its_reason_or_its_code_and_is_no_refusal(scene: MakeScene) -> None:
    s = scene(8)
    s.grid.when(TRAIN, fails("this node has no usable data [ref 0a1b]"), 2, 3, round=1)
    s.grid.when(TRAIN, fails(None), BAD, round=1)
    watch = s.run()
    assert watch.texts == [
        "round 1: 3 of 8 clients did not train (2 x 'this node has no usable data', 1 x 'Flower error 110')"
    ]
    assert (watch.records[0].cohort, watch.records[0].refused) == (5, 0)


@pytest.mark.parametrize("kind", [TRAIN, CONTRIBUTE])
def test_a_reply_that_comes_too_late_counts_for_nothing(scene: MakeScene, kind: str) -> None:
    s = scene(8, rounds=2)
    s.grid.when(kind, late, BAD, round=1)
    watch = s.run()
    assert [record.cohort for record in watch.records] == [7, 8]
    assert [record.refused for record in watch.records] == [0, 0]
    assert BAD not in watch.sums[0][1].nodes


# --- lost after the cohort was announced -------------------------------------------------------------


@pytest.mark.parametrize("kind", [TRAIN, CONTRIBUTE, RELEASE])
@pytest.mark.parametrize("nodes", [3, 5, 7, 10])
def test_as_many_as_the_quorum_can_spare_are_lost_for_ever_at_any_message_and_the_round_completes(
    scene: MakeScene, nodes: int, kind: str
) -> None:
    s = scene(nodes)
    spare = nodes - threshold(nodes, colluders=1)
    gone = NODES[:spare]
    for each in (TRAIN, CONTRIBUTE, RELEASE)[(TRAIN, CONTRIBUTE, RELEASE).index(kind) :]:
        s.grid.when(each, silent, *gone)
    watch = s.run()
    (record,) = watch.records
    inside = nodes if kind == RELEASE else nodes - spare
    assert (record.cohort, record.dropped, record.attempts) == (inside, nodes - inside, 1)
    assert watch.sums[0][1].nodes == set(NODES[nodes - inside : nodes])
    assert (watch.refusals, watch.failures) == ([], [])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [TRAIN, CONTRIBUTE, RELEASE])
def test_of_fifty_clients_twenty_four_are_lost_for_ever_and_the_round_completes(scene: MakeScene, kind: str) -> None:
    s = scene(50, max_cohort=50)
    nodes = sorted(s.roster.nodes)
    gone = nodes[: 50 - threshold(50, colluders=1)]
    assert len(gone) == 24
    for each in (TRAIN, CONTRIBUTE, RELEASE)[(TRAIN, CONTRIBUTE, RELEASE).index(kind) :]:
        s.grid.when(each, silent, *gone)
    watch = s.run()
    assert watch.records[0].cohort == (50 if kind == RELEASE else 26)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (TRAIN, r"round 1 failed 2 times: too few clients for a sum of at least 4 \(no answer in time\)"),
        (CONTRIBUTE, r"round 1 failed 2 times: too few clients for a sum of at least 4 \(no answer in time\)"),
        (
            RELEASE,
            r"round 1: 3 of the 5 clients in its sum have released it, and 4 are needed\. No other sum of the round "
            r"may be opened\. Bring back some of node-2, node-3, then resume the run\.",
        ),
    ],
)
def test_one_more_loss_is_a_clear_stop_that_names_what_is_missing(scene: MakeScene, kind: str, told: str) -> None:
    s = scene(5, attempts=2)
    s.grid.when(kind, silent, 2, 3)
    with pytest.raises(QuorumError, match=told):
        s.run()
    again = scene(5, attempts=2, before=s)
    watch = again.run()
    assert watch.records[0].cohort == 5


def test_where_too_many_are_lost_with_their_contributions_the_round_starts_over_and_nobody_trains_again(
    scene: MakeScene,
) -> None:
    s, cohorts = scene(4), []

    def note(ask: Ask) -> Message:
        assert ask.client.pending is not None
        cohorts.append(
            (decode_cohort(ask.frames["cohort"], ask.client.kit.roster).encoded, ask.client.pending.values.tolist())
        )
        return ask.reply(ask.honest())

    s.grid.when(CONTRIBUTE, note, 3, round=1)
    s.grid.when(CONTRIBUTE, silent, 2, BAD, round=1, attempt=1)
    watch = s.run()
    (first, values), (second, again) = cohorts
    assert len(first) == len(second) == 4
    assert set(first).isdisjoint(second), "new keys"
    assert values == again
    assert watch.texts == [
        "round 1: 2 of 4 clients were lost; 3 are needed for a sum, so the round starts over",
    ]
    assert watch.records[0].attempts == 2


def test_losses_in_several_messages_of_several_attempts_still_end_in_an_exact_sum(scene: MakeScene) -> None:
    s = scene(10, attempts=10)
    s.grid.when(TRAIN, silent, 2, round=1, attempt=1)
    s.grid.when(CONTRIBUTE, fails("out of memory"), *NODES[1:5], round=1, attempt=1)
    s.grid.when(TRAIN, sends_plaintext, *NODES[:8], round=1, attempt=2)
    s.grid.when(CONTRIBUTE, sends(unsigned), *NODES[:4], round=1, attempt=3)
    asked_once = [False]

    def late_consent(ask: Ask) -> Message | None:
        asked_once[0], again = True, asked_once[0]
        return ask.reply(ask.honest()) if again else None

    s.grid.when(RELEASE, late_consent, NODES[4], round=1, attempt=3)
    watch = s.run()
    assert [(kind, attempt, len(nodes)) for kind, _, attempt, nodes in s.grid.asked] == [
        *((TRAIN, 1, 10), (CONTRIBUTE, 1, 9)),
        (TRAIN, 2, 10),
        *((TRAIN, 3, 10), (CONTRIBUTE, 3, 10), (RELEASE, 3, 6), (RELEASE, 3, 2)),
        *((kind, 1, 10) for kind in (TRAIN, CONTRIBUTE, RELEASE, REPORT)),
    ]
    (record,) = watch.records
    assert record.refusals == {"SignatureRefused": 4, "MalformedMessage": 8}
    assert (record.attempts, record.cohort, record.dropped) == (3, 6, 4)


def test_where_the_first_member_that_is_asked_for_the_terms_is_lost_another_sends_them(scene: MakeScene) -> None:
    s = scene(5)
    s.grid.when(RELEASE, silent, BEARER, round=1)
    watch = s.run()
    first, again = (nodes for _, _, nodes in asked(s, RELEASE))
    assert first == (2, 3, 5, 8, 13)
    assert BEARER in again, "its consent is missing still"
    assert len(again) == 2, "and one that has consented is asked for the terms alone"
    assert watch.texts == ["round 1: 4 of 5 clients released the sum; asking again"]


def test_clipped_values_are_counted_in_the_sum_that_counts(scene: MakeScene) -> None:
    s = scene(8)
    for client in s.grid.clients.values():
        client.lies["clipped"] = client.kit.node
    s.grid.when(CONTRIBUTE, silent, BAD, attempt=1)
    watch = s.run()
    assert watch.records[0].clipped == sum(watch.sums[0][1].nodes)


def test_a_round_gives_its_files_in_memory_back_whatever_happens(scene: MakeScene) -> None:
    s = scene(8, rounds=2)
    s.grid.when(CONTRIBUTE, sends(unsigned), BAD)
    before = len(list(Path("/proc/self/fd").iterdir()))
    s.run()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
