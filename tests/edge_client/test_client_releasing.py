"""``edge_client.client``: a consent is for one sum, remembered before it is given, and refused to others."""

from dataclasses import replace
from pathlib import Path

import pytest

from edge_client.ledger import Ledger
from edge_client.state import load_pending
from edge_client.sums import voucher
from protocol.attendance import decode_attendance
from protocol.call import Call
from protocol.errors import CheckpointError, CohortRefused, Duplicate, MalformedMessage, PeerMismatch, PruneSealError
from protocol.openings import Opening
from protocol.release import Consent, decode_consent, decode_release, encode_release
from protocol.sharing import SECRET_BYTES
from tests.edge_client.federation import (
    FIRST,
    NODES,
    PLAN,
    RUN,
    Stage,
    federation,
    invitation,
    one_client,
    release_of,
)
from tests.edge_client.tampering import claimed

INSIDE = NODES[:5]
"""Whose contributions are in the sum; the sixth was lost."""


def consent(stage: Stage, node: int, release: dict[str, bytes]) -> Consent:
    return decode_consent(stage.clients[node].release(FIRST, release).frames["consent"], stage.fed.roster)


def test_a_client_gives_a_share_of_the_seed_of_each_in_the_sum_and_of_the_key_of_each_lost(stage: Stage) -> None:
    release = release_of(stage.contribute(*INSIDE))
    for node in INSIDE:
        held = load_pending(stage.state(node)).shares
        given = consent(stage, node, release)
        for member, both, share in zip(NODES, held, given.shares, strict=True):
            assert both is not None
            assert share == (both[SECRET_BYTES:] if member in INSIDE else both[:SECRET_BYTES])


def test_asked_again_for_the_same_sum_a_client_answers_as_before(stage: Stage) -> None:
    release = release_of(stage.contribute(*INSIDE))
    assert consent(stage, 2, release) == consent(stage, 2, release)


def test_the_terms_go_with_a_consent_where_they_are_asked_for(stage: Stage) -> None:
    total = stage.contribute(*INSIDE)
    assert consent(stage, 2, release_of(total)).sealed == b""
    assert consent(stage, 2, release_of(total, terms=True)).sealed == load_pending(stage.state(2)).sealed


def test_no_other_sum_of_the_attempt_is_consented_to(stage: Stage) -> None:
    total = stage.contribute(*INSIDE)
    consent(stage, 2, release_of(total))
    for nodes in (frozenset(NODES), frozenset(NODES[:4])):
        with pytest.raises(Duplicate, match="consent to sums of attempt 1"):
            stage.clients[2].release(FIRST, release_of(claimed(total, nodes)))


def test_a_consent_is_remembered_before_it_is_given(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    total = stage.contribute(*INSIDE)
    with monkeypatch.context() as patch:
        patch.delattr("edge_client.client.consent")
        with pytest.raises(NameError):
            stage.clients[2].release(FIRST, release_of(total))
    (sent,) = Ledger.open(stage.state(2), FIRST, None, 2).given
    assert sent.opened == {frozenset(INSIDE)}


def test_what_was_opened_stands_in_the_next_attendance(stage: Stage) -> None:
    consent(stage, 2, release_of(stage.contribute(*INSIDE)))
    again = stage.clients[2].train(Call(RUN, 1, 2), invitation(NODES)).frames["attendance"]
    opening = Opening(frozenset(NODES), frozenset({frozenset(INSIDE)}))
    assert decode_attendance(again, stage.fed.roster).memory == {opening}


def test_the_voucher_is_over_those_in_the_sum_and_their_weight(stage: Stage) -> None:
    total = stage.contribute(*INSIDE)
    weights = total.cohort.weights(stage.fed.plan.max_share)
    inside = sum(weights[node] for node in INSIDE)
    made = voucher(
        stage.fed.kits[2].secret,
        total.cohort.members[0],
        total.cohort.digest(1),
        0,
        (5, 6),
        (inside, sum(weights.values())),
    )
    assert {consent(stage, node, release_of(total)).vouchers for node in INSIDE} == {(made,)}


def refused(stage: Stage, release: dict[str, bytes], error: type[PruneSealError], call: Call = FIRST) -> None:
    """The first node refuses, and remembers no consent."""
    with pytest.raises(error):
        stage.clients[2].release(call, release)
    assert [sent.opened for sent in Ledger.open(stage.state(2), FIRST, None, 2).given] == [frozenset()]


def test_a_sum_without_the_node_of_strangers_or_of_too_few_is_refused(stage: Stage) -> None:
    total = stage.contribute(*INSIDE)
    for nodes in (NODES[1:], (*INSIDE, 34), NODES[:3]):
        refused(stage, release_of(claimed(total, frozenset(nodes))), CohortRefused)


def test_a_release_of_another_attempt_or_cohort_is_refused(stage: Stage) -> None:
    total = stage.contribute(*INSIDE)
    for call in (Call(RUN, 2, 1), Call(bytes(16), 1, 1), Call(RUN, 1, 2)):
        refused(stage, release_of(total), PeerMismatch, call)
    asked = decode_release(release_of(total)["release"])
    refused(stage, {"release": encode_release(replace(asked, cohort=bytes(32)))}, PeerMismatch)


@pytest.mark.parametrize("frame", [b"", b"garbage", bytes(100)])
def test_what_is_no_release_is_refused(frame: bytes, stage: Stage) -> None:
    stage.contribute(*INSIDE)
    refused(stage, {"release": frame}, MalformedMessage)


def test_a_sum_is_not_consented_to_by_a_node_that_has_not_contributed_or_not_trained(
    stage: Stage, tmp_path: Path
) -> None:
    total = stage.contribute(*INSIDE)
    with pytest.raises(PeerMismatch, match="cohort"):
        stage.clients[21].release(FIRST, release_of(claimed(total, frozenset(NODES))))
    with pytest.raises(CheckpointError, match="has not answered `train`"):
        one_client(tmp_path / "new", federation(PLAN), PLAN).release(FIRST, release_of(total))


def test_an_attempt_that_was_left_is_not_released_any_more(stage: Stage) -> None:
    """Its shares and those of the next attempt would be of one update."""
    total = stage.contribute(*INSIDE)
    stage.clients[2].train(Call(RUN, 1, 2), invitation(NODES))
    with pytest.raises(Duplicate):
        stage.clients[2].release(FIRST, release_of(total))


def test_with_the_next_round_the_secrets_of_this_one_are_gone(stage: Stage) -> None:
    before = load_pending(stage.state(2)).secrets
    stage.clients[2].train(Call(bytes(16), 1, 1), invitation(NODES))
    left = b"".join(file.read_bytes() for file in stage.state(2).rglob("*") if file.is_file())
    for secret in (before.exchange, before.seed):
        assert secret not in left
        assert secret.hex().encode() not in left
