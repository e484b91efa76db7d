"""``aggregator.rounds``: whoever lies about what others need for a sum is named, and the others go on without it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import Message

from edge_client.dealing import Secrets, deal
from protocol.attendance import SHARE_BYTES
from protocol.errors import CohortRefused, QuorumError, ShareError
from protocol.openings import Opening
from protocol.sharing import dealt_digest
from tests.aggregator.conftest import BAD, MakeScene, asked, flower
from tests.aggregator.stub_grid import (
    CONTRIBUTE,
    NODES,
    RELEASE,
    REPORT,
    TRAIN,
    Ask,
    Behaviour,
    sends,
    sign_again,
    silent,
    with_fields,
)

Deal = Callable[[Ask, bytes], bytes]


def attends_with(**fields: Any) -> Behaviour:
    """The node states something else than the truth, and stands by it."""

    def attend(ask: Ask) -> Message:
        frames = ask.honest()
        return _stand_by(ask, sign_again(ask.client, frames["attendance"], **fields), frames["shares"])

    return attend


def deals(change: Deal) -> Behaviour:
    """The node deals something else than shares of its secrets, and signs for that."""

    def attend(ask: Ask) -> Message:
        frames = ask.honest()
        shares = change(ask, frames["shares"])
        return _stand_by(ask, sign_again(ask.client, frames["attendance"], dealt=dealt_digest(shares)), shares)

    return attend


def _stand_by(ask: Ask, attendance: bytes, shares: bytes) -> Message:
    assert ask.client.pending is not None
    ask.client.pending = replace(ask.client.pending, attendance=attendance, dealt=shares)
    return ask.reply({"attendance": attendance, "shares": shares})


def junk_for(*nodes: int) -> Deal:
    """Shares that these nodes, of the first five, cannot open; the others can."""
    places = [NODES.index(node) for node in nodes]

    def change(ask: Ask, shares: bytes) -> bytes:
        parts = [shares[i : i + SHARE_BYTES] for i in range(0, len(shares), SHARE_BYTES)]
        return b"".join(bytes(SHARE_BYTES) if i in places else part for i, part in enumerate(parts))

    return change


def of_other_secrets(ask: Ask, shares: bytes) -> bytes:
    """Shares that open, as its own do, and give back what the node has not signed for."""
    assert ask.client.pending is not None
    own, invited = ask.client.pending.secrets, ask.client.pending.invited

    class Posing(Secrets):
        @property
        def public(self) -> bytes:
            return own.public

    return deal(Posing.draw(), invited, ask.call, ask.client.kit, ask.client.plan.colluders)


# --- shares --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blind", [NODES[:5], (3, 8), (BAD, 13)], ids=["all", "two others", "itself and another"])
def test_a_client_whose_shares_too_few_can_open_is_named_and_the_next_attempt_goes_on_without_it(
    scene: MakeScene, blind: tuple[int, ...]
) -> None:
    s = scene(5)
    s.grid.when(TRAIN, deals(junk_for(*blind)), BAD, round=1)
    watch = s.run()
    (record,) = watch.records
    assert record.refusals == {"ShareError": 1}
    ((round_, node, error),) = watch.refusals
    assert (round_, node) == (1, *flower(BAD))
    assert isinstance(error, ShareError)
    assert error.node == BAD
    assert asked(s, TRAIN) == [(1, 1, (2, 3, 5, 8, 13)), (1, 2, (2, 3, 8, 13))]
    assert watch.sums[0][1].nodes == {2, 3, 8, 13}
    assert (record.cohort, record.attempts) == (4, 2)
    assert watch.texts[-1] == "round 1: no sum can be opened with node-5; the round starts over without"


def test_a_client_is_left_out_for_one_round_alone(scene: MakeScene) -> None:
    s = scene(5, rounds=2)
    s.grid.when(TRAIN, deals(junk_for(*NODES[:5])), BAD, round=1)
    assert [record.cohort for record in s.run().records] == [4, 5]


def test_shares_that_as_many_can_open_as_a_sum_needs_are_enough(scene: MakeScene) -> None:
    s = scene(5)
    s.grid.when(TRAIN, deals(junk_for(8)), BAD)
    watch = s.run()
    assert watch.sums[0][1].nodes == {2, 3, 5, 8, 13}
    assert (watch.refusals, watch.records[0].attempts) == ([], 1)


def test_a_client_that_says_that_it_can_open_nobodys_shares_changes_nothing_where_all_others_can(
    scene: MakeScene,
) -> None:
    s = scene(5)
    s.grid.when(CONTRIBUTE, sends(with_fields(held=(False,) * 5)), BAD)
    watch = s.run()
    assert watch.sums[0][1].nodes == {2, 3, 5, 8, 13}
    assert (watch.refusals, watch.records[0].attempts) == ([], 1)


def test_where_too_few_are_left_without_those_who_deal_wrong_the_run_stops_and_names_them(scene: MakeScene) -> None:
    s = scene(5)
    s.grid.when(TRAIN, deals(junk_for(*NODES[:5])), 3, BAD)
    told = (
        r"round 1: node 3 has dealt shares that .*\. Without node-3, node-5 too few are left for a sum of at least 4; "
        r"resume the run to ask again, or start a new one\."
    )
    with pytest.raises(QuorumError, match=told):
        s.run()
    assert not list(s.folder.glob("masked-*")), "another sum of the round may still be opened"
    assert scene(5, before=s).run().records[0].cohort == 5


def test_where_shares_fit_no_secret_their_dealer_is_named_and_the_rest_go_on_without_it_and_two_more(
    scene: MakeScene,
) -> None:
    s = scene(10, rounds=2)
    s.grid.when(TRAIN, deals(of_other_secrets), BAD, round=1)
    watch = s.run()
    assert "round 1: its sum can never be opened: node 5 has dealt shares" in watch.texts[0]
    first, second = (total for _, total, _ in watch.sums)
    assert (len(first.nodes), BAD in first.nodes) == (7, False), "its dealer alone would be told apart"
    assert second.nodes == frozenset(NODES)


def test_where_their_dealer_is_lost_the_others_sum_is_asked_for_again(scene: MakeScene) -> None:
    s = scene(5)
    s.grid.when(TRAIN, deals(of_other_secrets), BAD)
    s.grid.when(CONTRIBUTE, silent, BAD)
    watch = s.run()
    assert asked(s, CONTRIBUTE) == [(1, 1, (2, 3, 5, 8, 13)), (1, 2, (2, 3, 8, 13))]
    assert watch.sums[0][1].nodes == {2, 3, 8, 13}


def test_where_too_few_are_left_without_it_the_run_stops_and_names_it(scene: MakeScene) -> None:
    s = scene(5)
    s.grid.when(TRAIN, deals(of_other_secrets), BAD)
    told = "the others are too few for one without node-5 that tells nobody apart. Revoke that node and start a new run"
    for _ in range(2):
        with pytest.raises(QuorumError, match=told):
            s.run()
    s.grid._rules.clear()
    assert s.run().sums[0][1].nodes == frozenset(NODES[:5]), "the same sum may be opened"


# --- memories ------------------------------------------------------------------------------------------


def memory(*sets: set[int], invited: tuple[int, ...] = NODES[:5]) -> frozenset[Opening]:
    """Of an attempt to which these were invited, and in which these sums were opened."""
    return frozenset({Opening(frozenset(invited), frozenset(map(frozenset, sets)))})


@pytest.mark.parametrize("claimed", [{2, 5}, {2, 3, 8}, {2, 3, 8, 13}, {5}], ids=str)
def test_a_client_that_claims_a_memory_of_other_sums_is_named_and_the_others_go_on(
    scene: MakeScene, claimed: set[int]
) -> None:
    s = scene(5)
    s.grid.when(TRAIN, attends_with(memory=memory(claimed)), BAD, round=1)
    watch = s.run()
    ((_, node, error),) = watch.refusals
    assert [node] == flower(BAD)
    assert isinstance(error, CohortRefused)
    assert watch.records[0].refusals == {"CohortRefused": 1}
    assert asked(s, CONTRIBUTE) == [(1, 1, (2, 3, 5, 8, 13)), (1, 2, (2, 3, 8, 13))]
    assert asked(s, RELEASE) == [(1, 2, (2, 3, 8, 13))], "what clients would refuse they are not asked"
    assert watch.sums[0][1].nodes == {2, 3, 8, 13}


def test_a_memory_that_allows_the_sum_is_no_reason_to_leave_anybody_out(scene: MakeScene) -> None:
    s = scene(5)
    s.grid.when(TRAIN, attends_with(memory=memory(set(NODES[:5]))), 3, BAD)
    watch = s.run()
    assert watch.sums[0][1].nodes == {2, 3, 5, 8, 13}
    assert (watch.refusals, watch.records[0].attempts) == ([], 1)


def test_where_most_remember_another_sum_the_run_stops_with_what_to_do_and_nothing_is_released(
    scene: MakeScene,
) -> None:
    s = scene(5)
    opened = memory({2, 3, 5, 8})
    s.grid.when(TRAIN, attends_with(memory=opened), 2, 3, 5, 8)
    with pytest.raises(
        QuorumError,
        match=r"round 1: the difference of two sums .* with a sum of nodes 2, 3, 5, 8, no other may be opened\. They "
        r"have to take part again, .*\. Without node-2, node-3, node-5, node-8 too few are left",
    ):
        s.run()
    assert RELEASE not in {kind for kind, *_ in s.grid.asked}
    again = scene(5, before=s)
    again.grid.when(TRAIN, attends_with(memory=opened), 2, 3, 5, 8)
    again.grid.when(TRAIN, silent, 13)
    assert again.run().sums[0][1].nodes == {2, 3, 5, 8}
    assert {kind for kind, *_ in again.grid.asked} == {TRAIN, CONTRIBUTE, RELEASE, REPORT}
