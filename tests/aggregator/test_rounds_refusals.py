"""``aggregator.rounds``: whatever a client sends instead is refused or not believed, and the round goes on."""

from collections import Counter
from collections.abc import Callable
from math import nan
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord

from protocol.figures import FIGURES
from protocol.messages import to_record
from protocol.openings import Opening
from protocol.parameters import MODULUS
from protocol.wire import decode_contribution
from tests.aggregator.conftest import BAD, MakeScene, flower, lines
from tests.aggregator.stub_grid import (
    CONTRIBUTE,
    NODES,
    RELEASE,
    REPORT,
    TRAIN,
    Ask,
    Behaviour,
    attendance_of,
    consent_of,
    of_round_before,
    sends,
    sends_nothing,
    sends_plaintext,
    sign_again,
    signed_by_another,
    silent,
    unsigned,
    with_fields,
)


def flip(index: int) -> Behaviour:
    def flipped(ask: Ask, frame: bytes) -> bytes:
        changed = bytearray(frame)
        changed[index] ^= 0x80
        return bytes(changed)

    return sends(flipped)


def of_node_before(ask: Ask, frame: bytes) -> bytes:
    return ask.grid.frames[ask.kind, ask.call.round, NODES[NODES.index(ask.node) - 1]]


def of_other_kind(ask: Ask, frame: bytes) -> bytes:
    return ask.grid.frames[TRAIN if ask.kind == CONTRIBUTE else CONTRIBUTE, 1, ask.node]


def residue_beyond_the_modulus(ask: Ask, frame: bytes) -> bytes:
    client, parameters = ask.client, ask.client.plan.parameters
    members = len(ask.client.pending.shares) if ask.client.pending else 0
    first = decode_contribution(frame, attendance_of(client), members, parameters, client.kit.roster).first
    first[0] = ((MODULUS - 1) >> parameters.drop_up) + 1
    return sign_again(client, frame, first=first)


def sealed_terms(change: Callable[[bytes], bytes]) -> Behaviour:
    def altered(ask: Ask, frame: bytes) -> bytes:
        assert ask.client.pending is not None
        return sign_again(ask.client, frame, sealed=change(ask.client.pending.sealed))

    return sends(altered)


def shares(change: Callable[[bytes], bytes]) -> Behaviour:
    def altered(ask: Ask, frame: bytes) -> bytes:
        first, *others = consent_of(ask, frame).shares
        return sign_again(ask.client, frame, shares=(change(first), *others))

    return sends(altered)


def resigned_consent(ask: Ask, frame: bytes, **fields: Any) -> bytes:
    return sign_again(ask.client, frame, **fields)


def with_another_frame(ask: Ask) -> Message:
    frames = ask.honest()
    return ask.reply_with({"frames": to_record(frames | {"more": frames[ask.name]})})


def under_another_name(ask: Ask) -> Message:
    return ask.reply_with({"frames": to_record({"update": ask.honest()[ask.name]})})


def in_another_record(ask: Ask) -> Message:
    return ask.reply_with({"update": to_record(ask.honest())})


def as_metrics(ask: Ask) -> Message:
    return ask.reply_with({"frames": MetricRecord({"value": 1.0})})


def without_arrays(ask: Ask) -> Message:
    return ask.reply_with({"frames": ArrayRecord()})


SENT_BY_ANY: dict[str, tuple[Behaviour, str]] = {
    "garbage": (sends(lambda ask, frame: np.random.default_rng(1).bytes(len(frame))), "MalformedMessage"),
    "zeros": (sends(lambda ask, frame: bytes(len(frame))), "MalformedMessage"),
    "one byte less": (sends(lambda ask, frame: frame[:-1]), "MalformedMessage"),
    "half": (sends(lambda ask, frame: frame[: len(frame) // 2]), "MalformedMessage"),
    "one byte more": (sends(lambda ask, frame: frame + b"\0"), "MalformedMessage"),
    "ten megabytes more": (sends(lambda ask, frame: frame + bytes(10_000_000)), "MalformedMessage"),
    "one byte": (sends(lambda ask, frame: b"P"), "MalformedMessage"),
    "nothing in the frame": (sends(lambda ask, frame: b""), "MalformedMessage"),
    "no frame": (without_arrays, "MalformedMessage"),
    "no record": (sends_nothing, "MalformedMessage"),
    "metrics for a frame": (as_metrics, "MalformedMessage"),
    "plaintext": (sends_plaintext, "MalformedMessage"),
    "another frame beside it": (with_another_frame, "MalformedMessage"),
    "another frame's name": (under_another_name, "MalformedMessage"),
    "another record's name": (in_another_record, "MalformedMessage"),
    "a flipped magic": (flip(0), "MalformedMessage"),
    "a flipped version": (flip(4), "VersionRefused"),
    "a flipped kind": (flip(5), "MalformedMessage"),
    "a flipped run": (flip(8), "SignatureRefused"),
    "a flipped plan": (flip(60), "SignatureRefused"),
    "a flipped signature": (flip(-1), "SignatureRefused"),
    "no signature": (sends(unsigned), "SignatureRefused"),
    "another node's signature": (sends(signed_by_another), "SignatureRefused"),
    "another run": (sends(with_fields(run=bytes(16))), "PeerMismatch"),
    "another round": (sends(with_fields(round=9)), "PeerMismatch"),
    "another attempt": (sends(with_fields(attempt=9)), "PeerMismatch"),
    "another plan": (sends(with_fields(plan=bytes(32))), "PeerMismatch"),
    "another key": (sends(with_fields(key=bytes(16))), "PeerMismatch"),
}
ATTENDED = SENT_BY_ANY | {
    "the attendance of another node": (sends(of_node_before), "PeerMismatch"),
    "another invitation": (sends(with_fields(invited=bytes(32))), "PeerMismatch"),
    "other shares than it has signed for": (sends(with_fields(dealt=bytes(32))), "PeerMismatch"),
    "an exchange key of small order": (sends(with_fields(exchange=bytes(32))), "MalformedMessage"),
    "a memory of other nodes": (
        sends(with_fields(memory=frozenset({Opening(frozenset({5, 21}), frozenset())}))),
        "CohortRefused",
    ),
    "a node off the roster": (sends(with_fields(node=4)), "SignatureRefused"),
    "no samples": (sends(with_fields(samples=0)), "MalformedMessage"),
}
CONTRIBUTED = SENT_BY_ANY | {
    "the contribution of another node": (sends(of_node_before), "PeerMismatch"),
    "its attendance": (sends(of_other_kind), "MalformedMessage"),
    "another node": (sends(with_fields(node=4)), "PeerMismatch"),
    "another cohort": (sends(with_fields(cohort=bytes(32))), "PeerMismatch"),
    "another support": (sends(with_fields(support=bytes(32))), "PeerMismatch"),
    "another size": (sends(with_fields(values=7)), "PeerMismatch"),
    "a residue beyond the modulus": (sends(residue_beyond_the_modulus), "MalformedMessage"),
    "a flipped residue": (flip(180), "SignatureRefused"),
}
CONSENTED = SENT_BY_ANY | {
    "the consent of another node": (sends(of_node_before), "PeerMismatch"),
    "its contribution": (sends(of_other_kind), "MalformedMessage"),
    "another cohort": (sends(with_fields(cohort=bytes(32))), "PeerMismatch"),
    "a share of its own making": (shares(lambda old: bytes([old[0] ^ 1]) + old[1:]), "MalformedMessage"),
    "a share that is no number of the field": (shares(lambda old: b"\xff" * 32), "MalformedMessage"),
    "a share too few": (sends(lambda ask, frame: resigned_consent(ask, frame, members=3)), "MalformedMessage"),
    "sealed terms with a flipped bit": (
        sealed_terms(lambda sealed: bytes([sealed[0] ^ 1]) + sealed[1:]),
        "PeerMismatch",
    ),
    "a megabyte of sealed terms": (sealed_terms(lambda sealed: bytes(1 << 20)), "PeerMismatch"),
}
for _name in ("another plan", "another key", "a flipped plan"):
    del CONSENTED[_name]


@pytest.mark.parametrize("sent", ATTENDED)
def test_a_bad_attendance_is_refused_by_its_kind_and_the_round_goes_on(scene: MakeScene, sent: str) -> None:
    behaviour, error = ATTENDED[sent]
    s = scene(4)
    s.grid.when(TRAIN, behaviour, BAD)
    watch = s.run()
    (record,) = watch.records
    assert (record.refused, record.refusals) == (1, {error: 1})
    assert (record.cohort, record.dropped, record.attempts) == (3, 1, 1)
    assert watch.sums[0][1].nodes == {2, 3, 8}
    assert watch.texts[0].startswith(f"round 1: refused a message: {error}: ")
    assert watch.texts[1] == f"round 1: 1 of 4 clients did not train (1 x '{error}')"


@pytest.mark.slow
@pytest.mark.parametrize("sent", CONTRIBUTED)
def test_a_bad_contribution_is_refused_by_its_kind_and_the_round_goes_on(scene: MakeScene, sent: str) -> None:
    behaviour, error = CONTRIBUTED[sent]
    s = scene(5)
    s.grid.when(CONTRIBUTE, behaviour, BAD, round=1)
    watch = s.run()
    (record,) = watch.records
    assert (record.refused, record.refusals) == (1, {error: 1})
    assert (record.cohort, record.dropped, record.attempts) == (4, 1, 1)
    assert watch.sums[0][1].nodes == {2, 3, 8, 13}
    refused, lost = watch.texts
    assert refused.startswith(f"round 1: refused a message: {error}: ")
    assert lost == f"round 1: 1 of 5 clients were lost (1 x '{error}')"


@pytest.mark.slow
@pytest.mark.parametrize("sent", CONSENTED)
def test_a_bad_consent_is_refused_by_its_kind_and_the_sum_is_released_without_it(scene: MakeScene, sent: str) -> None:
    behaviour, error = CONSENTED[sent]
    s = scene(5)
    s.grid.when(RELEASE, behaviour, BAD)
    watch = s.run()
    (record,) = watch.records
    assert record.refusals == {error: 1}
    assert (record.cohort, record.dropped, record.attempts) == (5, 0, 1)


@pytest.mark.parametrize("kind", [TRAIN, CONTRIBUTE])
def test_a_message_of_the_round_before_is_refused(scene: MakeScene, kind: str) -> None:
    s = scene(5, rounds=2)
    s.grid.when(kind, sends(of_round_before), BAD, round=2)
    watch = s.run()
    assert [record.refusals for record in watch.records] == [{}, {"PeerMismatch": 1}]
    assert [BAD in total.nodes for _, total, _ in watch.sums] == [True, False]


def test_a_contribution_to_the_attempt_before_is_refused(scene: MakeScene) -> None:
    s = scene(4)
    s.grid.when(CONTRIBUTE, silent, 2, BAD, attempt=1)
    old = sends(lambda ask, frame: ask.grid.frames[CONTRIBUTE, 1, ask.node])
    s.grid.when(CONTRIBUTE, old, 3, 8, attempt=2)
    watch = s.run()
    assert watch.records[0].refusals == {"PeerMismatch": 2}
    assert watch.sums[0][1].attempt == 3


def test_several_bad_clients_at_once_are_counted_by_kind(scene: MakeScene) -> None:
    s = scene(10)
    s.grid.when(TRAIN, sends(unsigned), 2)
    s.grid.when(TRAIN, sends_plaintext, 3)
    s.grid.when(TRAIN, sends(with_fields(plan=bytes(32))), 5)
    s.grid.when(CONTRIBUTE, sends(of_node_before), 144)
    watch = s.run()
    kinds = ["SignatureRefused", "MalformedMessage", "PeerMismatch", "PeerMismatch"]
    assert watch.records[0].refusals == Counter(kinds)
    assert watch.sums[0][1].nodes == {8, 13, 21, 34, 55, 89}


@pytest.mark.parametrize("sender", [1, *flower(3)], ids=["nobody", "another node"])
def test_what_a_reply_says_of_its_sender_is_not_believed(scene: MakeScene, sender: int) -> None:
    def forge(ask: Ask) -> Message:
        reply = ask.reply(ask.honest())
        reply.metadata.__dict__["_src_node_id"] = sender
        return reply

    s = scene(4)
    for kind in (TRAIN, CONTRIBUTE, RELEASE, REPORT):
        s.grid.when(kind, forge, BAD)
    watch = s.run()
    assert watch.sums[0][1].nodes == {2, 3, 5, 8}
    assert watch.texts == []


@pytest.mark.parametrize("value", [1 << 31, 1 << 60, -7, 0])
@pytest.mark.parametrize("name", FIGURES)
def test_no_figure_that_clients_tell_stops_the_run(scene: MakeScene, name: str, value: int) -> None:
    s = scene(3)
    for client in s.grid.clients.values():
        client.lies = {name: value}
    watch = s.run()
    assert len(watch.records) == len(watch.sums) == 1
    assert lines(s)[0]["cohort"] == 3


def test_of_what_a_client_sends_beside_its_frames_nothing_is_looked_at(scene: MakeScene) -> None:
    def beside(ask: Ask) -> Message:
        told = MetricRecord({"loss": nan, "tested": 10**9, "correct": 10**9})
        return ask.reply_with({"frames": to_record(ask.honest()), "metrics": told})

    s = scene(3)
    for kind in (TRAIN, CONTRIBUTE, RELEASE, REPORT):
        s.grid.when(kind, beside, 2, 3, 5)
    (record,) = s.run().records
    assert (record.accuracy, record.test_loss) == (0.8, 0.5)
