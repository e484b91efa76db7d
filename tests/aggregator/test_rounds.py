"""``aggregator.rounds``: who is asked in a round, and the exact sum in which a round of honest clients ends."""

from collections.abc import Iterable
from math import ceil
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from aggregator.journal import Journal
from fleet.flower import NodeInfo
from protocol.attendance import ATTENDANCE_BYTES, SHARE_BYTES
from protocol.errors import QuorumError
from protocol.openings import decode_nodes
from protocol.release import Release, encode_release
from tests.aggregator.conftest import BAD, BEARER, MakeScene, asked, flower, lines
from tests.aggregator.stub_grid import (
    CONTRIBUTE,
    LAYOUT,
    NODES,
    RELEASE,
    REPORT,
    TRAIN,
    Ask,
    Scene,
    silent,
)

# --- a round in which everybody is honest -----------------------------------------------------------


def test_every_sum_of_a_run_is_the_clear_sum_and_every_round_has_its_line(scene: MakeScene) -> None:
    s = scene(4, rounds=3)
    watch = s.run()
    assert [number for number, *_ in watch.sums] == [1, 2, 3]
    assert [record.round for record in watch.records] == [1, 2, 3]
    assert lines(s) == [record.model_dump() for record in watch.records]
    assert (
        asked(s, TRAIN)
        == asked(s, CONTRIBUTE)
        == asked(s, RELEASE)
        == [(number, 1, (2, 3, 5, 8)) for number in (1, 2, 3)]
    )
    assert [record.accuracy for record in watch.records] == [0.8] * 3
    whole = [(4, 1, (2, 3, 5, 8))]
    assert [asked(s, kind, after=True) for kind in (TRAIN, CONTRIBUTE, RELEASE, REPORT)] == [whole] * 4
    (scores,) = watch.scores
    assert (scores.values.size, scores.votes.size, scores.told.figures.tested) == (0, 0, 40)


def test_a_round_is_recorded_with_its_counts_its_bytes_and_its_mean_loss(scene: MakeScene) -> None:
    s = scene(4, rounds=1)
    (record,) = s.run().records
    samples = {client.kit.node: client.samples for client in s.grid.clients.values()}
    assert record.loss == pytest.approx(sum((0.5 + n) * k for n, k in samples.items()) / sum(samples.values()))
    assert (record.cohort, record.dropped, record.attempts) == (4, 0, 1)
    assert (record.refused, record.refusals) == (0, {})
    assert record.values == 4 * LAYOUT.size
    assert record.uplink_bytes == s.grid.sent
    invited, announced = 4 * (4 + 4 * 4), 4 * (4 + 4 * (ATTENDANCE_BYTES + SHARE_BYTES))
    release = 4 * len(encode_release(Release(bytes(16), 1, 1, 4, bytes(32), False, (frozenset({2, 3, 5, 8}),))))
    journal = Journal(s.folder, s.plan)
    aggregate, scores = 4 * len(journal.last().aggregate), 4 * len(journal.scores())
    assert record.downlink_bytes == 2 * (invited + announced + release) + aggregate + (aggregate + scores)
    assert set(record.seconds.by_phase()) == {"train", "contribute", "release", "add", "other"}
    assert min(record.seconds.by_phase().values()) >= 0
    assert (record.accuracy, record.test_loss, record.kept, record.sparsity) == (0.8, 0.5, 24, 0.0)


def test_what_travels_shrinks_with_the_model(scene: MakeScene) -> None:
    s = scene(3, rounds=3, method="fedsparsify-global", sparsity=0.75, options=(("first-prune", 0),))
    records = s.run().records
    kept = [record.kept or 0 for record in records]
    assert kept[-1] == 6
    assert kept == sorted(kept, reverse=True)
    assert [record.sparsity for record in records] == [1 - k / 24 for k in kept]
    buffers = LAYOUT.size - 24
    assert [record.values for record in records] == [3 * (k + buffers) for k in [24, *kept[:-1]]]


def test_votes_are_added_with_the_values(scene: MakeScene) -> None:
    s = scene(5, votes=True)
    ((_, _, total),) = s.run().sums
    assert total.votes.shape == (LAYOUT.size,)
    assert 0 < total.votes.max() <= 5


def test_messages_expire_with_their_deadline_and_belong_to_their_round(scene: MakeScene) -> None:
    s, seen = scene(3, rounds=2), []

    def note(ask: Ask) -> Message:
        metadata = ask.message.metadata
        seen.append((ask.kind, metadata.ttl, metadata.group_id))
        return ask.reply(ask.honest())

    for kind in (TRAIN, CONTRIBUTE, RELEASE, REPORT):
        s.grid.when(kind, note, BEARER)
    s.run()
    assert seen == [
        *((kind, s.plan.deadline, group) for group in ("1", "2", "3") for kind in (TRAIN, CONTRIBUTE, RELEASE)),
        (REPORT, s.plan.deadline, "3"),
    ]


def test_the_samples_decide_the_weights_and_no_figure_does(scene: MakeScene) -> None:
    totals = []
    for folder, lies in zip("ab", ({}, {"loss": 9, "clipped": 5, "tested": 1}), strict=True):
        s = scene(3, folder)
        for client in s.grid.clients.values():
            client.lies = lies
        totals.append(s.run().sums[-1][2].values)
    assert np.array_equal(totals[0], totals[1])


# --- who is asked ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"fraction": 0.5}, 5),
        ({"fraction": 0.41}, 5),
        ({"fraction": 0.1}, 3),
        ({"fraction": 0.1, "min_cohort": 4}, 4),
        ({"fraction": 1.0, "max_cohort": 6}, 6),
        ({"fraction": 1.0}, 10),
    ],
)
def test_a_fraction_of_the_nodes_is_asked_within_the_limits_of_the_cohort(
    scene: MakeScene, changes: dict[str, Any], count: int
) -> None:
    s = scene(10, rounds=2, **changes)
    records = s.run().records
    assert [len(nodes) for _, _, nodes in asked(s, TRAIN)] == [count, count]
    assert [record.cohort for record in records] == [count, count]


def test_the_smallest_part_of_ten_nodes_is_the_ceiling(scene: MakeScene) -> None:
    s = scene(10, fraction=0.31)
    s.run()
    assert len(asked(s, TRAIN)[0][2]) == ceil(3.1)


def test_the_choice_changes_from_round_to_round_and_repeats_from_run_to_run(scene: MakeScene) -> None:
    runs = []
    for folder in ("a", "b"):
        s = scene(10, folder, rounds=4, fraction=0.3)
        s.run()
        runs.append([nodes for _, _, nodes in asked(s, TRAIN)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 1
    other = scene(10, "c", rounds=4, fraction=0.3, seed=7)
    other.run()
    assert [nodes for _, _, nodes in asked(other, TRAIN)] != runs[0]


def test_a_round_waits_for_the_smallest_cohort_to_be_there(scene: MakeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    s = scene(4)
    arriving, looks = iter([2, 2, 3]), []

    def nodes() -> Iterable[int]:
        looks.append(len(s.grid.asked))
        return sorted(s.grid.online)[: next(arriving, 3)]

    monkeypatch.setattr(s.grid, "get_node_ids", nodes)
    assert s.run().records[0].cohort == 3
    assert looks[:3] == [0, 0, 0]


def test_a_run_without_enough_nodes_stops_and_says_what_to_do(scene: MakeScene) -> None:
    s = scene(3, deadline=0.05)
    s.grid.online -= set(flower(BAD))
    with pytest.raises(QuorumError, match=r"2 nodes are online; the plan needs 3\. Start more clients"):
        s.run()
    assert s.grid.asked == []


def test_a_node_that_is_registered_under_a_name_off_the_roster_is_not_invited(
    scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = scene(4)
    named = s.grid.get_nodes()
    there = [
        NodeInfo(node_id=one.node_id, name="guest" if one.node_id == flower(BAD)[0] else one.name) for one in named
    ]
    monkeypatch.setattr(s.grid, "get_nodes", lambda: there)
    s.run()
    assert asked(s, TRAIN) == [(1, 1, (2, 3, 8))]


# --- a round that was begun -------------------------------------------------------------------------


def lost_with_too_many(s: Scene, monkeypatch: pytest.MonkeyPatch, looks: float) -> None:
    """Let two of four be lost with their contributions, and stay away for so many looks."""
    s.grid.when(CONTRIBUTE, silent, BAD, 8, attempt=1)
    left = [looks]

    def nodes() -> Iterable[int]:
        if not asked(s, CONTRIBUTE) or left[0] <= 0:
            return sorted(s.grid.online)
        left[0] -= 1
        return sorted(s.grid.online - set(flower(BAD, 8)))

    monkeypatch.setattr(s.grid, "get_node_ids", nodes)


def test_a_round_that_was_begun_waits_until_a_quorum_of_its_nodes_is_back(
    scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = scene(4)
    lost_with_too_many(s, monkeypatch, 3)
    record = s.run().records[0]
    assert (record.cohort, record.attempts) == (4, 2), "no attempt was spent on those who are there alone"


def test_nodes_that_stay_away_stop_the_run_and_are_told(scene: MakeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    s = scene(4, deadline=0.05)
    lost_with_too_many(s, monkeypatch, float("inf"))
    with pytest.raises(QuorumError, match=r"2 nodes of the 4 that this round was begun with are online; .* needs 3\."):
        s.run()


def test_a_round_that_was_begun_invites_the_same_nodes_in_every_attempt(scene: MakeScene) -> None:
    s = scene(10, fraction=0.5)
    (first, *_) = asked_in(s)
    assert all(nodes == first for nodes in asked_in(s))


def asked_in(s: Scene) -> list[frozenset[int]]:
    """Who was invited in each attempt of a round whose first cohorts are lost."""
    invited = []

    def note(ask: Ask) -> Message:
        invited.append(decode_nodes(ask.frames["invited"]))
        return ask.reply(ask.honest())

    s.grid.when(TRAIN, note, *NODES)
    for attempt in (1, 2):
        s.grid.when(CONTRIBUTE, silent, *NODES, attempt=attempt)
    s.run()
    return invited
