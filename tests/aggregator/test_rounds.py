"""``aggregator.rounds``: whatever a client does, the round goes on with the others, and the sum is exact."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from math import ceil, inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord
from numpy.typing import NDArray

from aggregator.journal import METRICS_FILE, Journal, Record
from protocol.carry import to_record
from protocol.cohort import Cohort, successor_sizes
from protocol.errors import AgreementError, QuorumError
from protocol.parameters import MODULUS
from protocol.wire import ATTENDANCE_BYTES, SIGNATURE_BYTES, decode_contribution
from tests.aggregator.stub_grid import (
    CONTRIBUTE,
    EVALUATE,
    FIRST_FLOWER_NODE,
    FLOWER_STEP,
    LAYOUT,
    NODES,
    TRAIN,
    Ask,
    Behaviour,
    Metrics,
    Scene,
    Watch,
    attendance_of,
    fails,
    late,
    make_kits,
    make_scene,
    of_round_before,
    sends,
    sends_nothing,
    sends_plaintext,
    sign_again,
    signed_by_another,
    silent,
    small_plan,
    with_fields,
)

BAD = 5
BEARER = 2
MakeScene = Callable[..., Scene]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeScene:
    def make(nodes: int, folder: str = "run", votes: bool = False, kits: Any = None, **changes: Any) -> Scene:
        return make_scene(tmp_path / folder, monkeypatch, small_plan(**changes), nodes, votes, kits)

    return make


def lines(scene: Scene) -> list[Record]:
    path = scene.folder / METRICS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def flower(*nodes: int) -> list[int]:
    return [FIRST_FLOWER_NODE + FLOWER_STEP * node for node in nodes]


def asked(scene: Scene, kind: str) -> list[tuple[int, int, tuple[int, ...]]]:
    """Round, attempt and nodes of each message of a kind."""
    return [(round_, attempt, nodes) for name, round_, attempt, nodes in scene.grid.asked if name == kind]


# --- a round in which everybody is honest -----------------------------------------------------------


def test_every_sum_of_a_run_is_the_clear_sum_and_every_round_has_its_line(scene: MakeScene) -> None:
    s = scene(4, rounds=3)
    watch = s.run()
    assert [number for number, *_ in watch.sums] == [1, 2, 3]
    assert [record["round"] for record in watch.records] == [1, 2, 3]
    assert lines(s) == watch.records
    assert asked(s, TRAIN) == asked(s, CONTRIBUTE) == [(number, 1, (2, 3, 5, 8)) for number in (1, 2, 3)]
    assert asked(s, EVALUATE) == [(4, 1, (2, 3, 5, 8))]


def test_a_round_is_recorded_with_its_counts_its_bytes_and_its_mean_loss(scene: MakeScene) -> None:
    s = scene(4, rounds=1)
    (record,) = s.run().records
    samples = {client.kit.node: client.samples for client in s.grid.clients.values()}
    assert record["loss"] == pytest.approx(sum((0.5 + n) * k for n, k in samples.items()) / sum(samples.values()))
    assert (record["cohort"], record["dropped"], record["left_out"], record["attempts"]) == (4, 0, 0, 1)
    assert (record["refused"], record["refusals"]) == (0, {})
    assert record["values"] == 4 * LAYOUT.size
    assert record["uplink_bytes"] == sum(map(len, s.grid.frames.values()))
    announced, aggregate = 4 * 4 * ATTENDANCE_BYTES, 4 * len(Journal(s.folder, s.plan).last().aggregate)
    assert record["downlink_bytes"] == announced + aggregate
    assert set(record["seconds"]) == {"train", "contribute", "add", "other"}
    assert min(record["seconds"].values()) >= 0
    assert (record["accuracy"], record["test_loss"], record["kept"], record["sparsity"]) == (0.8, 0.5, 24, 0.0)


def test_what_travels_shrinks_with_the_model(scene: MakeScene) -> None:
    s = scene(3, rounds=3, method="fedsparsify-global", sparsity=0.75, first_prune=0)
    records = s.run().records
    kept = [record["kept"] for record in records]
    assert kept[-1] == 6
    assert kept == sorted(kept, reverse=True)
    assert [record["sparsity"] for record in records] == [1 - k / 24 for k in kept]
    buffers = LAYOUT.size - 24
    assert [record["values"] for record in records] == [3 * (k + buffers) for k in [24, *kept[:-1]]]


def test_votes_are_added_with_the_values(scene: MakeScene) -> None:
    s = scene(5, votes=True)
    ((_, _, _, total),) = s.run().sums
    assert total.votes.shape == (LAYOUT.size,)
    assert 0 < total.votes.max() <= 5


def test_messages_expire_with_their_deadline_and_belong_to_their_round(scene: MakeScene) -> None:
    s, seen = scene(3, rounds=2), []

    def note(ask: Ask) -> Message:
        metadata = ask.message.metadata
        seen.append((ask.kind, metadata.ttl, metadata.group_id))
        return ask.reply(*ask.honest())

    for kind in (TRAIN, CONTRIBUTE, EVALUATE):
        s.grid.when(kind, note, BEARER)
    s.run()
    assert seen == [
        *((kind, s.plan.deadline, group) for group in ("1", "2") for kind in (TRAIN, CONTRIBUTE)),
        (EVALUATE, s.plan.deadline, "3"),
    ]


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
    assert [record["cohort"] for record in records] == [count, count]


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
    assert s.run().records[0]["cohort"] == 3
    assert looks[:3] == [0, 0, 0]


def test_a_run_without_enough_nodes_stops_and_says_what_to_do(scene: MakeScene) -> None:
    s = scene(3, deadline=0.05)
    s.grid.online -= set(flower(BAD))
    with pytest.raises(QuorumError, match=r"2 nodes are there; the plan needs 3\. Start more clients"):
        s.run()
    assert s.grid.asked == []


def without_the_lost(s: Scene, monkeypatch: pytest.MonkeyPatch, looks: float) -> None:
    """Let a node be lost with its contribution, and stay away for so many looks."""
    s.grid.when(CONTRIBUTE, silent, BAD, attempt=1)
    left = [looks]

    def nodes() -> Iterable[int]:
        if not asked(s, CONTRIBUTE) or left[0] <= 0:
            return sorted(s.grid.online)
        left[0] -= 1
        return sorted(s.grid.online - set(flower(BAD)))

    monkeypatch.setattr(s.grid, "get_node_ids", nodes)


def test_a_round_that_needs_its_lost_member_waits_until_it_is_back(
    scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = scene(4)
    without_the_lost(s, monkeypatch, 3)
    record = s.run().records[0]
    assert (record["cohort"], record["attempts"]) == (4, 2), "no attempt was spent on those who are there alone"


def test_a_lost_member_that_stays_away_stops_the_run_and_is_told(
    scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = scene(4, deadline=0.05)
    without_the_lost(s, monkeypatch, float("inf"))
    with pytest.raises(QuorumError, match=r"3 nodes of the round's last cohort are there; a safe sum needs 4\. Start"):
        s.run()


# --- lost before the cohort is announced -------------------------------------------------------------


def test_a_client_that_does_not_train_in_time_is_left_behind(scene: MakeScene) -> None:
    s = scene(4)
    s.grid.when(TRAIN, silent, BAD)
    watch = s.run()
    assert asked(s, CONTRIBUTE) == [(1, 1, (2, 3, 8))]
    assert (watch.records[0]["cohort"], watch.records[0]["dropped"]) == (3, 1)
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
    assert watch.records[0]["attempts"] == 3


def test_an_error_reply_is_told_by_its_reason_or_its_code_and_is_no_refusal(scene: MakeScene) -> None:
    s = scene(6)
    s.grid.when(TRAIN, fails("this node has no usable data [ref 0a1b]"), 2, 3)
    s.grid.when(TRAIN, fails(None), BAD)
    watch = s.run()
    assert watch.texts == [
        "round 1: 3 of 6 clients did not train (2 x 'this node has no usable data', 1 x 'Flower error 110')"
    ]
    assert (watch.records[0]["cohort"], watch.records[0]["refused"]) == (3, 0)


@pytest.mark.parametrize("kind", [TRAIN, CONTRIBUTE])
def test_a_reply_that_comes_too_late_counts_for_nothing(scene: MakeScene, kind: str) -> None:
    s = scene(8, rounds=2)
    s.grid.when(kind, late, BAD, round=1)
    watch = s.run()
    assert [record["cohort"] for record in watch.records] == ([7, 8] if kind == TRAIN else [5, 8])
    assert [record["refused"] for record in watch.records] == [0, 0]
    assert BAD not in watch.sums[0][2].nodes


# --- what a client may send instead ------------------------------------------------------------------


def flip(index: int) -> Behaviour:
    return sends(lambda ask, frame: frame[:index] + bytes([frame[index] ^ 0x80]) + frame[index + 1 :])


def unsigned(ask: Ask, frame: bytes) -> bytes:
    return frame[:-SIGNATURE_BYTES] + bytes(SIGNATURE_BYTES)


def of_node_before(ask: Ask, frame: bytes) -> bytes:
    return ask.grid.frames[ask.kind, ask.call.round, NODES[NODES.index(ask.node) - 1]]


def of_other_kind(ask: Ask, frame: bytes) -> bytes:
    return ask.grid.frames[TRAIN if ask.kind == CONTRIBUTE else CONTRIBUTE, 1, ask.node]


def residue_beyond_the_modulus(ask: Ask, frame: bytes) -> bytes:
    client, parameters = ask.client, ask.client.plan.parameters
    first = decode_contribution(frame, attendance_of(client), parameters, client.kit.roster).first
    first[0] = ((MODULUS - 1) >> parameters.drop_up) + 1
    return sign_again(client, frame, first=first)


def sealed_terms(change: Callable[[bytes], bytes]) -> Behaviour:
    def altered(ask: Ask, frame: bytes) -> bytes:
        assert ask.client.pending is not None
        return sign_again(ask.client, frame, sealed=change(ask.client.pending.sealed))

    return sends(altered)


def in_two_frames(ask: Ask) -> Message:
    frame = ask.honest()[0]
    return ask.reply_with({ask.record: to_record({ask.record: frame, "more": frame})})


def under_another_name(ask: Ask) -> Message:
    return ask.reply_with({ask.record: to_record({"update": ask.honest()[0]})})


def in_another_record(ask: Ask) -> Message:
    return ask.reply_with({"update": to_record({ask.record: ask.honest()[0]})})


def as_metrics(ask: Ask) -> Message:
    return ask.reply_with({ask.record: MetricRecord({"value": 1.0})})


def without_arrays(ask: Ask) -> Message:
    return ask.reply_with({ask.record: ArrayRecord()})


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
    "two frames": (in_two_frames, "MalformedMessage"),
    "another frame's name": (under_another_name, "MalformedMessage"),
    "another record's name": (in_another_record, "MalformedMessage"),
    "a flipped magic": (flip(0), "MalformedMessage"),
    "a flipped version": (flip(4), "MalformedMessage"),
    "a flipped kind": (flip(5), "MalformedMessage"),
    "a flipped run": (flip(8), "SignatureRefused"),
    "a flipped plan": (flip(60), "SignatureRefused"),
    "a flipped signature": (flip(-1 - SIGNATURE_BYTES), "SignatureRefused"),
    "no signature": (sends(unsigned), "SignatureRefused"),
    "another node's signature": (sends(signed_by_another), "SignatureRefused"),
    "another run": (sends(with_fields(run=bytes(16))), "PeerMismatch"),
    "another round": (sends(with_fields(round=9)), "PeerMismatch"),
    "another attempt": (sends(with_fields(attempt=9)), "PeerMismatch"),
    "another plan": (sends(with_fields(plan=bytes(32))), "PeerMismatch"),
    "another key": (sends(with_fields(key=bytes(16))), "PeerMismatch"),
}
ATTENDED = SENT_BY_ANY | {
    "the attendance of another node": (sends(of_node_before), "Duplicate"),
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
    "the bearer's sealed terms": (sealed_terms(lambda sealed: sealed), "MalformedMessage"),
}
BORNE: dict[str, tuple[Behaviour, str]] = {
    "no sealed terms": (sealed_terms(lambda sealed: b""), "MalformedMessage"),
    "sealed terms with a flipped bit": (
        sealed_terms(lambda sealed: bytes([sealed[0] ^ 1]) + sealed[1:]),
        "PeerMismatch",
    ),
    "sealed terms cut short": (sealed_terms(lambda sealed: sealed[:-1]), "PeerMismatch"),
    "a megabyte of sealed terms": (sealed_terms(lambda sealed: bytes(1 << 20)), "PeerMismatch"),
}


@pytest.mark.parametrize("sent", ATTENDED)
def test_a_bad_attendance_is_refused_by_its_kind_and_the_round_goes_on(scene: MakeScene, sent: str) -> None:
    behaviour, error = ATTENDED[sent]
    s = scene(4)
    s.grid.when(TRAIN, behaviour, BAD)
    watch = s.run()
    (record,) = watch.records
    assert (record["refused"], record["refusals"]) == (1, {error: 1})
    assert (record["cohort"], record["dropped"], record["attempts"]) == (3, 1, 1)
    assert watch.sums[0][2].nodes == {2, 3, 8}
    assert watch.texts[0].startswith(f"round 1: refused a message: {error}: ")
    assert watch.texts[1] == f"round 1: 1 of 4 clients did not train (1 x '{error}')"


@pytest.mark.parametrize("sent", [*CONTRIBUTED, *BORNE])
def test_a_bad_contribution_is_refused_by_its_kind_and_the_round_goes_on(scene: MakeScene, sent: str) -> None:
    behaviour, error = (CONTRIBUTED | BORNE)[sent]
    bad = BEARER if sent in BORNE else BAD
    s = scene(8)
    s.grid.when(CONTRIBUTE, behaviour, bad)
    watch = s.run()
    (record,) = watch.records
    assert (record["refused"], record["refusals"]) == (1, {error: 1})
    assert (record["cohort"], record["dropped"], record["left_out"], record["attempts"]) == (5, 1, 2, 2)
    ((_, attempt, cohort, total),) = watch.sums
    assert (attempt, total.clients) == (2, 5)
    assert bad not in cohort.nodes
    assert watch.texts[0].startswith(f"round 1: refused a message: {error}: ")
    assert watch.texts[1] == f"round 1: 1 of 8 clients were lost (1 x '{error}'); asking 5 of 7 survivors again"


@pytest.mark.parametrize("kind", [TRAIN, CONTRIBUTE])
def test_a_message_of_the_round_before_is_refused(scene: MakeScene, kind: str) -> None:
    s = scene(8, rounds=2)
    s.grid.when(kind, sends(of_round_before), BAD, round=2)
    watch = s.run()
    assert [record["refusals"] for record in watch.records] == [{}, {"PeerMismatch": 1}]
    assert [BAD in cohort.nodes for _, _, cohort, _ in watch.sums] == [True, False]


def test_a_contribution_to_the_attempt_before_is_refused(scene: MakeScene) -> None:
    s = scene(8)
    s.grid.when(CONTRIBUTE, silent, BAD, attempt=1)
    s.grid.when(CONTRIBUTE, sends(lambda ask, frame: ask.grid.frames[CONTRIBUTE, 1, ask.node]), *NODES[:8], attempt=2)
    watch = s.run()
    assert watch.records[0]["refusals"] == {"PeerMismatch": 5}
    assert watch.sums[0][1] == 3


def test_several_bad_clients_at_once_are_counted_by_kind(scene: MakeScene) -> None:
    s = scene(10)
    s.grid.when(TRAIN, sends(unsigned), 2)
    s.grid.when(TRAIN, sends_plaintext, 3)
    s.grid.when(TRAIN, sends(with_fields(plan=bytes(32))), 5)
    s.grid.when(TRAIN, sends(of_node_before), 144)
    s.grid.when(CONTRIBUTE, sends(of_round_before), BAD)
    watch = s.run()
    assert watch.records[0]["refusals"] == Counter(
        ["SignatureRefused", "MalformedMessage", "PeerMismatch", "Duplicate"]
    )
    assert watch.sums[0][2].nodes == {8, 13, 21, 34, 55, 89}


@pytest.mark.parametrize("sender", [1, *flower(3)], ids=["nobody", "another node"])
def test_what_a_reply_says_of_its_sender_is_not_believed(scene: MakeScene, sender: int) -> None:
    def forge(ask: Ask) -> Message:
        reply = ask.reply(*ask.honest())
        reply.metadata.__dict__["_src_node_id"] = sender
        return reply

    s = scene(4)
    for kind in (TRAIN, CONTRIBUTE, EVALUATE):
        s.grid.when(kind, forge, BAD)
    watch = s.run()
    assert watch.sums[0][2].nodes == {2, 3, 5, 8}
    assert watch.texts == []


@pytest.mark.parametrize("value", [nan, inf, -inf, 1e308, -7, [1.0, 2.0]])
@pytest.mark.parametrize("name", ["loss", "clipped", "correct", "tested", "test-loss", "parameters", "kept"])
def test_no_metric_that_a_client_reports_stops_the_run(scene: MakeScene, name: str, value: Any) -> None:
    s = scene(3)
    for client in s.grid.clients.values():
        client.metrics[name] = value
    watch = s.run()
    assert len(watch.records) == len(watch.sums) == 1
    assert lines(s)[0]["cohort"] == 3


def test_replies_without_metrics_leave_the_accuracy_open(scene: MakeScene) -> None:
    s = scene(3)
    for kind in (TRAIN, CONTRIBUTE, EVALUATE):
        s.grid.when(kind, lambda ask: ask.reply_with({ask.record: to_record({ask.record: ask.honest()[0]})}), 2, 3, 5)
    (record,) = s.run().records
    assert (record["accuracy"], record["test_loss"], record["loss"]) == (None, None, 0.0)


def test_one_client_that_lies_about_the_model_does_not_change_the_sparsity(scene: MakeScene) -> None:
    s = scene(4)
    s.grid.clients[flower(BEARER)[0]].metrics = {"parameters": 1000, "kept": 1}
    (record,) = s.run().records
    assert (record["kept"], record["sparsity"]) == (24, 0.0)


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
    safe = [size for size in successor_sizes(nodes, nodes, 3) if size <= nodes - lost]
    first, second = asked(s, CONTRIBUTE)
    assert set(first[2]) == set(NODES[:nodes])
    if safe:
        assert len(second[2]) == max(safe)
        assert set(second[2]) <= set(NODES[lost:nodes])
        assert asked(s, TRAIN) == [(1, 1, NODES[:nodes])]
        assert record["left_out"] == nodes - lost - max(safe)
        assert record["dropped"] == lost
    else:
        assert asked(s, TRAIN) == [(1, attempt, NODES[:nodes]) for attempt in (1, 2)]
        assert set(second[2]) == set(NODES[:nodes])
        assert (record["left_out"], record["dropped"]) == (0, 0)
        assert watch.texts[-1].endswith("too many for a safe sum of the others; the round starts over")
    assert second[:2] == (1, 2)
    assert watch.sums[0][2].nodes == set(second[2])


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
    assert record["refusals"] == {"SignatureRefused": 6, "MalformedMessage": 8}
    assert (record["attempts"], record["cohort"], record["dropped"], record["left_out"]) == (4, 6, 0, 4)


def test_clipped_values_are_counted_in_the_sum_that_counts(scene: MakeScene) -> None:
    s = scene(8)
    for client in s.grid.clients.values():
        client.metrics["clipped"] = client.kit.node
    s.grid.when(CONTRIBUTE, silent, BAD, attempt=1)
    watch = s.run()
    assert watch.records[0]["clipped"] == sum(watch.sums[0][2].nodes)


def test_a_round_gives_its_files_in_memory_back_whatever_happens(scene: MakeScene) -> None:
    s = scene(8, rounds=2)
    s.grid.when(CONTRIBUTE, sends(unsigned), BAD)
    before = len(list(Path("/proc/self/fd").iterdir()))
    s.run()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- when a run stops ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TRAIN, CONTRIBUTE])
def test_a_round_that_keeps_failing_stops_the_run_with_its_reasons_and_what_to_do(scene: MakeScene, kind: str) -> None:
    s = scene(3, rounds=2, attempts=3)
    s.grid.when(kind, fails("this node's keys are missing or exposed [ref 0a1b]"), BAD, round=2)
    s.grid.when(kind, sends(unsigned), 3, round=2, attempt=2)
    with pytest.raises(QuorumError) as caught:
        s.run()
    back = " Those who were lost must come back: the others refuse a sum that would expose them."
    assert str(caught.value) == (
        "round 2 failed 3 times: too few clients for a safe sum of at least 3 "
        f"(3 x \"this node's keys are missing or exposed\", 1 x 'SignatureRefused')."
        f"{back if kind == CONTRIBUTE else ''}"
        " Look at the clients' logs, then resume the run; it goes on from the last complete round."
    )


def test_a_round_in_which_nobody_says_why_is_told_as_time_out(scene: MakeScene) -> None:
    s = scene(3, attempts=1)
    s.grid.when(CONTRIBUTE, silent, BAD)
    with pytest.raises(QuorumError, match=r"round 1 failed 1 times: .* \(no answer in time\)"):
        s.run()


def test_a_stopped_run_goes_on_from_the_last_complete_round_when_the_cause_is_gone(scene: MakeScene) -> None:
    s = scene(3, rounds=3, attempts=1)
    s.grid.when(TRAIN, silent, BAD, round=2)
    with pytest.raises(QuorumError):
        s.run()
    assert Journal(s.folder, s.plan).last().round == 1
    again = scene(3, kits=s.kits, rounds=3, attempts=1)
    watch = again.run()
    assert watch.texts == ["resuming after round 1 of 3"]
    assert [number for number, *_ in watch.sums] == [2, 3]
    assert [line["round"] for line in lines(again)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", bytes(32)), ("support", bytes(32)), ("values", 7)],
    ids=["model", "support", "values"],
)
def test_clients_that_derived_different_models_stop_the_run_by_name(
    scene: MakeScene, field: str, value: bytes | int
) -> None:
    s = scene(4, rounds=2)
    s.grid.when(TRAIN, sends(with_fields(**{field: value})), BAD, round=2)
    with pytest.raises(AgreementError) as caught:
        s.run()
    assert (caught.value.field, caught.value.nodes) == (field, (2, BAD))
    assert f"nodes 2 and {BAD} report different values of the {field}" in str(caught.value)
    assert Journal(s.folder, s.plan).last().round == 1


def test_clients_that_score_different_final_models_stop_the_run_by_name(scene: MakeScene) -> None:
    s = scene(3)
    s.grid.when(EVALUATE, sends(lambda ask, frame: bytes(32)), BAD)
    with pytest.raises(AgreementError) as caught:
        s.run()
    assert set(caught.value.nodes) & set(flower(BAD))
    assert len(set(caught.value.nodes)) == 2
    assert lines(s) == []


def test_a_final_model_is_scored_by_those_who_answer(scene: MakeScene) -> None:
    s = scene(5)
    s.grid.when(EVALUATE, fails("this node has no usable data"), 2)
    s.grid.when(EVALUATE, sends_plaintext, 3)
    s.grid.when(EVALUATE, silent, 5)
    watch = s.run()
    assert watch.records[0]["accuracy"] == 0.8
    assert [phase for phase in watch.phases if phase[1] == "evaluate"] == [(1, "evaluate", n, 5) for n in (1, 2)]


def test_a_final_model_that_nobody_scores_stops_the_run_which_asks_again_when_resumed(scene: MakeScene) -> None:
    s = scene(3)
    s.grid.when(EVALUATE, fails("this node has no usable data [ref 1]"), 2, 3, 5)
    with pytest.raises(QuorumError, match=r"\(3 x 'this node has no usable data'\); resume the run"):
        s.run()
    again = scene(3, kits=s.kits)
    again.run()
    assert [kind for kind, *_ in again.grid.asked] == [EVALUATE]
    assert [(line["round"], line["accuracy"]) for line in lines(again)] == [(1, 0.8)]


# --- when the aggregator is killed -------------------------------------------------------------------


class KilledError(BaseException):
    """What no handler of errors catches."""


class Killer(Watch):
    """An observer that is the end of the process at one of its calls."""

    calls = 0
    at = 0

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise KilledError

    def phase(self, round_: int, name: str, done: int, total: int) -> None:
        super().phase(round_, name, done, total)
        self._count()

    def summed(self, round_: int, attempt: int, cohort: Cohort, aggregate: bytes) -> Record:
        figures = super().summed(round_, attempt, cohort, aggregate)
        self._count()
        return figures

    def round_done(self, record: Record) -> None:
        super().round_done(record)
        self._count()


def final_integers(watch: Watch) -> NDArray[np.int64]:
    return watch.sums[-1][3].values


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Watch:
    with pytest.MonkeyPatch.context() as patch:
        return make_scene(tmp_path_factory.mktemp("unbroken"), patch, small_plan(rounds=3), 3).run()


ROUND_EVENTS = 3 + 3 + 1 + 1
"""What the observer of three clients is told in a round: who trained, the record of the round before, …"""


@pytest.mark.parametrize("at", range(1, 3 * ROUND_EVENTS + 4))
def test_a_run_that_is_killed_anywhere_ends_with_the_same_integers_as_an_unbroken_one(
    scene: MakeScene, unbroken: Watch, at: int
) -> None:
    kits = make_kits(3, small_plan(rounds=3))
    broken = scene(3, rounds=3, kits=kits)
    killer = Killer(broken.grid)
    broken.watch, killer.at = killer, at
    with pytest.raises(KilledError):
        broken.run()
    done = Journal(broken.folder, broken.plan).last().round
    resumed = scene(3, rounds=3, kits=kits)
    watch = resumed.run()
    assert [number for number, *_ in watch.sums] == list(range(done + 1, 4))
    if watch.sums:
        assert np.array_equal(final_integers(watch), final_integers(unbroken))
    assert [line["round"] for line in lines(resumed)] == [1, 2, 3]
    assert [line["cohort"] for line in lines(resumed)] == [3, 3, 3]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("round_", [1, 2, 3])
def test_a_run_that_is_killed_before_or_after_its_round_is_written_loses_at_most_that_round(
    scene: MakeScene, unbroken: Watch, monkeypatch: pytest.MonkeyPatch, round_: int, after: bool
) -> None:
    save = Journal.save

    def dying(self: Journal, aggregate: bytes, record: Record) -> None:
        if after or record["round"] != round_:
            save(self, aggregate, record)
        if record["round"] == round_:
            raise KilledError

    broken = scene(3, rounds=3)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", dying)
        with pytest.raises(KilledError):
            broken.run()
    assert Journal(broken.folder, broken.plan).last().round == (round_ if after else round_ - 1)
    resumed = scene(3, rounds=3, kits=broken.kits)
    watch = resumed.run()
    assert [number for number, *_ in watch.sums] == list(range(round_ + after, 4))
    sums = broken.watch.sums + watch.sums
    assert np.array_equal(sums[-1][3].values, final_integers(unbroken))
    assert [line["round"] for line in lines(resumed)] == [1, 2, 3]


def test_a_finished_run_that_is_resumed_is_only_scored_again(scene: MakeScene) -> None:
    s = scene(3, rounds=2)
    s.run()
    before = lines(s)
    again = scene(3, rounds=2, kits=s.kits)
    again.run()
    assert [kind for kind, *_ in again.grid.asked] == [EVALUATE]
    assert lines(again) == before


def test_a_run_that_is_killed_in_every_round_has_one_line_a_round(scene: MakeScene) -> None:
    kits = make_kits(3, small_plan(rounds=3))
    for _ in range(3):
        s = scene(3, rounds=3, kits=kits)
        killer = Killer(s.grid)
        s.watch, killer.at = killer, ROUND_EVENTS + 1
        with pytest.raises(KilledError):
            s.run()
    s = scene(3, rounds=3, kits=kits)
    s.run()
    assert [line["round"] for line in lines(s)] == [1, 2, 3]


def test_the_samples_decide_the_weights_and_no_metric_does(scene: MakeScene) -> None:
    totals = []
    metrics: list[Metrics] = [{}, {"loss": 9.0, "clipped": 5, "tested": 1}]
    for folder, reported in zip("ab", metrics, strict=True):
        s = scene(3, folder)
        for client in s.grid.clients.values():
            client.metrics = reported
        totals.append(final_integers(s.run()))
    assert np.array_equal(totals[0], totals[1])


def test_the_smallest_part_of_ten_nodes_is_the_ceiling(scene: MakeScene) -> None:
    s = scene(10, fraction=0.31)
    s.run()
    assert len(asked(s, TRAIN)[0][2]) == ceil(3.1)
