"""``aggregator.recovery``: a quorum of consents gives the masks that are left in a sum, and nobody's lie does."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.recovery import Recovery
from aggregator.summation import MaskedSum
from edge_client.dealing import Secrets, deal
from edge_client.learning.network import build_network
from edge_client.state import load_pending
from edge_client.sums import open_sum
from protocol.errors import Duplicate, MalformedMessage, PeerMismatch, ShareError, SignatureRefused
from protocol.frame import SIGNATURE_BYTES, signed
from protocol.grid import Integers
from protocol.release import Consent, decode_consent, encode_consent
from protocol.sharing import SECRET_BYTES
from protocol.wire import encode_aggregate
from tests.edge_client.federation import FIRST, NODES, PLAN, RUN, Stage, tiny_plan

INSIDE = NODES[:5]
"""Five of six contribute, and four are a quorum."""

Change = Callable[[Consent], Consent]


class Released:
    """Six clients of whom one was lost, and what the others consent with."""

    def __init__(self, folder: Path) -> None:
        self.stage = Stage(folder, replace(PLAN, partition="iid"))
        self.total = self.stage.contribute(*INSIDE)
        self.consents = self.stage.consents(self.total)
        self.plan, self.roster = self.stage.fed.plan, self.stage.fed.roster

    def recovery(self, total: MaskedSum | None = None) -> Recovery:
        return Recovery(total or self.total, self.plan, self.roster)

    def given(self, nodes: Sequence[int]) -> Recovery:
        """After these have consented."""
        recovery = self.recovery()
        for node in nodes:
            recovery.admit(node, self.consents[node])
        return recovery

    def changed(self, node: int, change: Change) -> bytes:
        """A consent that its own node has changed."""
        body = encode_consent(change(decode_consent(self.consents[node], self.roster)))
        return signed(body, self.stage.fed.kits[node].sign(body))

    def clear(self) -> Integers:
        """What those in the sum have quantised."""
        made: Integers = np.sum([self.stage.integers(node) for node in INSIDE], axis=0)
        return made

    def opened(self, recovery: Recovery) -> Integers:
        (aggregate,) = self.total.aggregates(recovery.masks(), self.plan, recovery.vouchers, recovery.sealed)
        layout = build_network(self.plan, (5,), 4, RUN).layout
        data = encode_aggregate(aggregate, self.plan.parameters)
        return open_sum(data, RUN, 1, self.stage.fed.kits[2], self.plan, layout).values


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    return Released(tmp_path_factory.mktemp("released"))


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(INSIDE))
def test_any_quorum_gives_the_clear_sum(order: list[int], released: Released) -> None:
    recovery = released.given(order[:3])
    assert not recovery.complete
    recovery.admit(order[3], released.consents[order[3]])
    assert recovery.complete
    assert released.opened(recovery).tolist() == released.clear().tolist()
    assert recovery.answered == set(order[:4])


def test_more_consents_than_a_quorum_give_the_same(released: Released) -> None:
    assert released.given(INSIDE).masks()[0].tolist() == released.given(INSIDE[:4]).masks()[0].tolist()


def test_a_sum_is_not_complete_without_the_terms_and_takes_them_from_one_that_has_consented(released: Released) -> None:
    recovery = released.recovery()
    for node in INSIDE:
        recovery.admit(node, released.changed(node, lambda consent: replace(consent, sealed=b"")))
    assert not recovery.complete
    recovery.admit(3, released.consents[3])
    assert recovery.complete
    with pytest.raises(Duplicate):
        recovery.admit(5, released.consents[5])


def test_a_node_consents_once(released: Released) -> None:
    recovery = released.given(INSIDE[:1])
    with pytest.raises(Duplicate, match="node 2 has already sent its consent"):
        recovery.admit(2, released.consents[2])


def test_a_voucher_that_only_one_gives_is_not_enough_and_does_not_win(released: Released) -> None:
    recovery = released.recovery()
    recovery.admit(2, released.changed(2, lambda consent: replace(consent, vouchers=(bytes(32),))))
    for node in INSIDE[1:4]:
        recovery.admit(node, released.consents[node])
    assert recovery.complete
    assert recovery.vouchers == decode_consent(released.consents[3], released.roster).vouchers


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"run": bytes(16)}, "run"),
        ({"round": 2}, "round"),
        ({"attempt": 2}, "attempt"),
        ({"cohort": bytes(32)}, "cohort"),
        ({"members": 5, "shares": (bytes(SECRET_BYTES),) * 5}, "members"),
    ],
)
def test_a_consent_to_something_else_is_refused(change: dict[str, object], field: str, released: Released) -> None:
    data = released.changed(2, lambda consent: replace(consent, **change))  # type: ignore[arg-type]
    with pytest.raises(PeerMismatch) as caught:
        released.recovery().admit(2, data)
    assert caught.value.field == field


def test_a_consent_that_comes_from_where_another_node_is_reached_is_refused(released: Released) -> None:
    with pytest.raises(PeerMismatch, match="node: ours is 3, the peer's is 2"):
        released.recovery().admit(3, released.consents[2])


def test_a_consent_that_is_not_signed_or_was_changed_is_refused(released: Released) -> None:
    data = released.consents[2]
    for wrong in (data[:-SIGNATURE_BYTES] + bytes(SIGNATURE_BYTES), data[:150] + bytes(1) + data[151:]):
        with pytest.raises(SignatureRefused):
            released.recovery().admit(2, wrong)


@pytest.mark.parametrize("place", [0, 5])
@pytest.mark.parametrize("share", [bytes(31) + b"\1", b"\xff" * 32])
def test_a_share_that_was_not_dealt_is_refused_and_named(place: int, share: bytes, released: Released) -> None:
    def lie(consent: Consent) -> Consent:
        return replace(consent, shares=(*consent.shares[:place], share, *consent.shares[place + 1 :]))

    recovery = released.recovery()
    with pytest.raises(MalformedMessage, match=f"the share of node {NODES[place]} is not the one that was dealt"):
        recovery.admit(2, released.changed(2, lie))
    assert recovery.answered == frozenset()


def test_a_share_of_the_wrong_kind_is_refused(released: Released) -> None:
    """Of a member in the sum the key, with which its pairs' masks could be taken off."""
    both = load_pending(released.stage.state(2)).shares[1]
    assert both is not None
    key = both[:SECRET_BYTES]
    with pytest.raises(MalformedMessage, match="the share of node 3 is not the one"):
        released.recovery().admit(
            2,
            released.changed(2, lambda consent: replace(consent, shares=(consent.shares[0], key, *consent.shares[2:]))),
        )


def test_a_share_that_a_node_was_not_dealt_is_done_without(released: Released) -> None:
    recovery = released.recovery()
    none = released.changed(2, lambda consent: replace(consent, shares=(bytes(32), *consent.shares[1:])))
    recovery.admit(2, none)
    for node in INSIDE[1:4]:
        recovery.admit(node, released.consents[node])
    assert not recovery.complete, "of node 2 itself there are three shares"
    recovery.admit(INSIDE[4], released.consents[INSIDE[4]])
    assert recovery.complete
    assert released.opened(recovery).tolist() == released.clear().tolist()


def test_other_terms_than_the_members_have_signed_for_are_refused(released: Released) -> None:
    with pytest.raises(PeerMismatch, match="support"):
        released.recovery().admit(2, released.changed(2, lambda consent: replace(consent, sealed=b"others")))


@pytest.mark.parametrize("dealer", [INSIDE[2], NODES[5]], ids=["in the sum", "lost"])
def test_a_dealer_whose_shares_fit_no_secret_that_it_has_signed_for_is_named(dealer: int, tmp_path: Path) -> None:
    """Each share is the one that it has committed to, and all the same they give back something else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge_client.round.deal", lying(dealer))
        scene = Released(tmp_path)
    recovery = scene.given(INSIDE)
    assert recovery.complete
    with pytest.raises(ShareError, match=f"node {dealer} has dealt shares that do not give back") as caught:
        recovery.masks()
    assert caught.value.node == dealer


def lying(dealer: int) -> Callable[..., bytes]:
    """What deals out the shares of other secrets under the keys of its own."""

    def dealt(secret: Secrets, *rest: object) -> bytes:
        kit = rest[2]
        if kit.node != dealer:  # type: ignore[attr-defined]
            return deal(secret, *rest)  # type: ignore[arg-type]
        other = Secrets.draw()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Secrets, "public", secret.public)
            return deal(other, *rest)  # type: ignore[arg-type]

    return dealt


def test_as_many_as_the_plans_colluders_do_not_vouch_alone_unless_nobody_is_left(tmp_path: Path) -> None:
    stage = Stage(tmp_path, tiny_plan(partition="iid", colluders=2, min_cohort=4))
    total = stage.contribute(*INSIDE)
    consents = stage.consents(total)
    recovery = Recovery(total, stage.fed.plan, stage.fed.roster)
    for number, node in enumerate(INSIDE, start=1):
        body = encode_consent(
            replace(decode_consent(consents[node], stage.fed.roster), vouchers=(bytes([number % 3]) * 32,))
        )
        recovery.admit(node, signed(body, stage.fed.kits[node].sign(body)))
        assert recovery.complete == (number == len(INSIDE)), FIRST
