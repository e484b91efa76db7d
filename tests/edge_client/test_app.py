"""``edge_client.app``: what Flower sees of a node. Frames and scalars on success, one public sentence on failure."""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from aggregator.summation import MaskedSum
from edge_client.app import app, egress, guard
from edge_client.client import Reply
from edge_client.keys import COHORT_FILE, PLAN_FILE
from edge_client.learning.network import build_network
from edge_client.ledger import LEDGER_FILE
from edge_client.sums import open_sum
from fleet.flower import be_task, wrap
from protocol.attendance import ATTENDANCE_BYTES
from protocol.call import Call
from protocol.errors import (
    AgreementError,
    CheckpointError,
    CohortRefused,
    ConfigError,
    DataError,
    Duplicate,
    KeyFileError,
    LedgerLost,
    MalformedMessage,
    PeerMismatch,
    PruneSealError,
    SignatureRefused,
    TrainingError,
    VersionRefused,
)
from protocol.messages import STYPE, from_record, to_record
from protocol.openings import encode_nodes
from protocol.plan import Plan
from tests.edge_client.federation import (
    NODES,
    RUN,
    Federation,
    add_up,
    announced,
    announcement,
    cohort_of,
    federation,
    open_up,
    release_of,
    tiny_plan,
)
from tests.edge_client.tampering import claimed
from tests.edge_client.tiny import MARKER

PLAN = tiny_plan()
CALL: Final = {"run": RUN, "round": 1, "attempt": 1}
PHRASE = re.compile(r" \[ref [0-9a-f]{12}\]\Z")


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What Flower's process sets up, and an environment that names nothing."""
    be_task(1, 1)
    for name in ("KIT", "KITS", "STATE", "DATA", "THREADS"):
        monkeypatch.delenv(f"PRUNESEAL_{name}", raising=False)
    monkeypatch.setenv("PRUNESEAL_KITS", str(tmp_path / f"kits of {MARKER}"))


class Nodes:
    """Six nodes behind the app, found through PRUNESEAL_KITS by their positions."""

    def __init__(self, folder: Path, plan: Plan = PLAN, fed: Federation | None = None) -> None:
        self.plan, self.folder = plan, folder / f"kits of {MARKER}"
        self.fed = fed or federation(plan, nodes=6)
        for position, node in enumerate(self.fed.kits):
            kit = self.fed.write(node, self.folder / f"node-{position}")
            (kit / PLAN_FILE).write_text(plan.digest.hex())

    def send(
        self,
        position: int,
        kind: str,
        frames: Mapping[str, bytes] | None = None,
        call: Mapping[str, object] = CALL,
        nodes: int = 6,
    ) -> Message:
        sent = {"invited": encode_nodes(NODES)} | dict(frames or {}) if kind == "train" else frames or {}
        content = RecordDict({"frames": to_record(sent), "call": ConfigRecord(dict(call))})  # type: ignore[arg-type]
        return self.deliver(position, Message(content, 100 + position, kind), nodes)

    def deliver(self, position: int, message: Message, nodes: int = 6) -> Message:
        config: dict[str, bool | float | int | str] = {"partition-id": position, "num-partitions": nodes}
        context = Context(1, 100 + position, config, RecordDict(), self.plan.to_config())
        return app(message, context)

    def train(self, **changes: object) -> dict[int, Reply]:
        replies = [self.send(position, "train", call={**CALL, **changes}) for position in range(6)]
        return {
            node: Reply({name: frame(reply, name) for name in ("attendance", "shares")})
            for node, reply in zip(NODES, replies, strict=True)
        }

    def aggregate(self, inside: int = 6) -> bytes:
        """The sum of the first of all six in round 1."""
        trained, total = self.contributed(inside)
        release = release_of(total, terms=True)
        replies = {node: self.send(k, "train.release", release) for k, node in enumerate(NODES[:inside])}
        assert len(trained) == 6
        return open_up(self.fed, total, {node: frame(reply, "consent") for node, reply in replies.items()})

    def contributed(self, inside: int = 6) -> tuple[dict[int, Reply], MaskedSum]:
        """What all six have answered to `train`, and the sum of what the first of them contribute."""
        trained = self.train()
        replies = {
            node: self.send(k, "train.contribute", self.cohort(trained, node)) for k, node in enumerate(NODES[:inside])
        }
        sent = {node: frame(reply, "contribution") for node, reply in replies.items()}
        return trained, add_up(self.fed, cohort_of(trained, self.fed.roster), Call(RUN, 1, 1), trained, sent)

    def cohort(self, trained: Mapping[int, Reply], to: int = NODES[0]) -> dict[str, bytes]:
        return announcement(cohort_of(trained, self.fed.roster), trained, NODES, to)


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    return Nodes(tmp_path, replace(PLAN, partition="iid"))


def frame(reply: Message, name: str) -> bytes:
    assert reply.has_content(), reply
    return from_record(reply.content.array_records["frames"])[name]


def wire(message: Message) -> bytes:
    """Every byte of a message that would travel, object by object, as Flower takes it apart."""
    return b"".join(wrap(message).objects.values())


def assert_refused(reply: Message, error: type[PruneSealError], secrets: Iterable[str] = ()) -> None:
    """An error reply of this kind, in which nothing of the node can be found."""
    assert reply.has_error()
    assert not reply.has_content()
    assert reply.error.code == error.code
    assert reply.error.reason is not None
    assert PHRASE.sub("", reply.error.reason) == error.public
    assert PHRASE.search(reply.error.reason)
    data = wire(reply)
    for secret in (MARKER, *secrets):
        assert secret.encode() not in data


# --- a round through Flower's messages ----------------------------------------------------------


def test_a_round_passes_through_the_app_as_frames_alone(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, tiny_plan(rounds=1, partition="iid"))
    trained, total = nodes.contributed()
    release = release_of(total, terms=True)
    replies = [nodes.send(k, "train.release", release) for k in range(6)]
    replies += [nodes.send(k, "train.contribute", nodes.cohort(trained, node)) for k, node in enumerate(NODES)]
    consents = {node: frame(reply, "consent") for node, reply in zip(NODES, replies, strict=False)}
    aggregate = open_up(nodes.fed, total, consents)
    layout = build_network(nodes.plan, (5,), 4, RUN).layout
    assert open_sum(aggregate, RUN, 1, nodes.fed.kits[2], nodes.plan, layout).clients == 6

    for reply in replies:
        assert list(reply.content) == ["frames"]
        assert {array.stype for record in reply.content.array_records.values() for array in record.values()} == {STYPE}
        assert MARKER.encode() not in wire(reply)


def test_a_node_says_its_name(nodes: Nodes) -> None:
    assert [frame(nodes.send(k, "query.name"), "name") for k in range(3)] == [
        f"node-{node}".encode() for node in NODES[:3]
    ]


def test_a_reply_answers_its_message(nodes: Nodes) -> None:
    reply = nodes.send(3, "train")
    assert reply.metadata.src_node_id == 103
    assert reply.metadata.message_type == "train"
    assert len(frame(reply, "attendance")) == ATTENDANCE_BYTES


# --- failures -----------------------------------------------------------------------------------


def test_a_missing_kit_says_nothing_of_where_it_was_looked_for(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    (nodes.folder / "node-0" / COHORT_FILE).unlink()
    assert_refused(nodes.send(0, "train"), KeyFileError, [str(tmp_path), COHORT_FILE])


def test_an_exposed_key_is_refused_and_no_part_of_it_leaves(nodes: Nodes) -> None:
    (nodes.folder / "node-0" / COHORT_FILE).chmod(0o644)
    assert_refused(nodes.send(0, "train"), KeyFileError, [nodes.fed.secret.hex(), nodes.fed.secret.hex()[:8]])


def test_another_plan_is_refused(nodes: Nodes) -> None:
    (nodes.folder / "node-0" / PLAN_FILE).write_text(replace(PLAN, epochs=9).digest.hex())
    assert_refused(nodes.send(0, "train"), ConfigError)


def test_a_run_config_that_is_no_plan_is_refused(nodes: Nodes) -> None:
    message = Message(RecordDict({"call": ConfigRecord(dict(CALL))}), 100, "train")  # type: ignore[arg-type]
    config = {**nodes.plan.to_config(), MARKER: 1}
    assert_refused(app(message, Context(1, 100, {}, RecordDict(), config)), ConfigError)


def test_a_node_without_a_kit_is_refused(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRUNESEAL_KITS")
    assert_refused(nodes.send(0, "train"), ConfigError)


@pytest.mark.parametrize("kind", ["absent", "not an archive", "not finite", "text"])
def test_data_that_cannot_be_used_is_named_nowhere(
    kind: str, nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f"{MARKER}.npz"
    if kind == "not an archive":
        file.write_bytes(MARKER.encode())
    elif kind == "not finite":
        np.savez(file, x=np.full((9, 2), np.nan), y=np.arange(9) % 2)
    elif kind == "text":
        np.savez(file, x=np.array([[MARKER]] * 9), y=np.arange(9) % 2)
    monkeypatch.setenv("PRUNESEAL_DATA", f"npz:{file}")
    assert_refused(nodes.send(0, "train"), DataError, [str(tmp_path)])


def test_training_that_diverges_is_reported_as_that(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, tiny_plan(partition="iid", learning_rate=1e38))
    assert_refused(nodes.send(0, "train"), TrainingError)


def test_a_contribution_without_training_or_with_a_damaged_state_is_refused(nodes: Nodes) -> None:
    assert_refused(nodes.send(0, "train.contribute"), CheckpointError, [str(nodes.folder)])
    nodes.train()
    state = nodes.folder / "node-0" / "state"
    (state / "pending.npz").write_bytes(MARKER.encode())
    assert_refused(nodes.send(0, "train.contribute"), CheckpointError, [str(nodes.folder)])
    (state / LEDGER_FILE).write_bytes(MARKER.encode())
    for kind in ("train", "train.contribute"):
        assert_refused(nodes.send(0, kind), LedgerLost, [str(nodes.folder)])


@pytest.mark.parametrize("garbage", [b"garbage", b"PRSL\x02" + bytes(400), MARKER.encode() * 30])
@pytest.mark.parametrize("kind", ["train", "query"])
def test_an_aggregate_that_does_not_parse_is_refused(kind: str, garbage: bytes, nodes: Nodes) -> None:
    nodes.train()
    call = {**CALL, "round": 2 if kind == "train" else nodes.plan.rounds + 1}
    assert_refused(nodes.send(0, kind, {"aggregate": garbage}, call), MalformedMessage)


@pytest.mark.parametrize("version", [0, 1, 3])
@pytest.mark.parametrize("kind", ["train", "query"])
def test_an_aggregate_of_another_version_is_refused_with_this_nodes_version(
    kind: str, version: int, nodes: Nodes
) -> None:
    nodes.train()
    call = {**CALL, "round": 2 if kind == "train" else nodes.plan.rounds + 1}
    answer = nodes.send(0, kind, {"aggregate": b"PRSL" + bytes([version]) + bytes(400)}, call)
    assert_refused(answer, VersionRefused)
    assert "speaks protocol version 2" in str(answer.error.reason)


def test_refusals_of_a_cohort_have_their_own_codes(nodes: Nodes) -> None:
    trained = nodes.train()
    good = nodes.cohort(trained)

    def of(*places: int) -> dict[str, bytes]:
        return nodes.cohort({node: trained[node] for node in (NODES[place] for place in places)})

    def contribute(cohort: Mapping[str, bytes], **changes: object) -> Message:
        return nodes.send(0, "train.contribute", cohort, {**CALL, **changes})

    tampered = bytearray(good["cohort"])
    tampered[-1] ^= 1
    assert_refused(contribute({**good, "cohort": bytes(tampered)}), SignatureRefused)
    assert_refused(contribute({**good, "cohort": good["cohort"][:-1]}), MalformedMessage)
    assert_refused(contribute({**good, "shares": good["shares"][:-1]}), MalformedMessage)
    assert_refused(contribute(good, round=2), PeerMismatch)
    assert_refused(contribute(good, attempt=2), PeerMismatch)
    assert_refused(contribute({}), MalformedMessage)
    assert_refused(contribute(of(0, 1)), CohortRefused)
    assert_refused(contribute(of(1, 2, 3, 4, 5)), CohortRefused)
    assert contribute(good).has_content()
    assert_refused(contribute(of(0, 1, 2, 3, 4)), Duplicate)


def test_refusals_of_a_release_have_their_own_codes(nodes: Nodes) -> None:
    _, total = nodes.contributed()
    good = release_of(total)

    def release(frames: Mapping[str, bytes], **changes: object) -> Message:
        return nodes.send(0, "train.release", frames, {**CALL, **changes})

    assert_refused(release({}), MalformedMessage)
    assert_refused(release({"release": good["release"][:-1]}), MalformedMessage)
    assert_refused(release(good, attempt=2), PeerMismatch)
    for nodes_ in (NODES[1:], NODES[:3]):
        assert_refused(release(release_of(claimed(total, frozenset(nodes_)))), CohortRefused)
    assert release(good).has_content()
    assert_refused(release(release_of(claimed(total, frozenset(NODES[:5])))), Duplicate)


def test_members_that_disagree_have_their_own_code(nodes: Nodes) -> None:
    attendances = [answer.frames["attendance"] for answer in nodes.train().values()]
    attendances[3] = frame(nodes.send(3, "train", call={**CALL, "attempt": 2}), "attendance")
    assert_refused(nodes.send(0, "train.contribute", {"cohort": announced(attendances)}), AgreementError)


def test_the_text_of_any_other_exception_stays_here_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nodes = Nodes(tmp_path, tiny_plan(data="tests.edge_client.tiny:explode"))
    with caplog.at_level(logging.ERROR, "pruneseal.edge_client"):
        reply = nodes.send(0, "train")
    assert_refused(reply, PruneSealError)
    # Its reference leads to the whole story in the node's own log.
    reference = str(reply.error.reason)[-13:-1]
    (record,) = caplog.records
    assert reference in record.getMessage()
    assert record.exc_info is not None
    assert MARKER in caplog.text


def test_the_nodes_own_log_names_a_known_failure_with_its_reference(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    (nodes.folder / "node-0" / COHORT_FILE).unlink()
    with caplog.at_level(logging.ERROR, "pruneseal.edge_client"):
        reply = nodes.send(0, "train")
    (record,) = caplog.records
    assert str(reply.error.reason)[-13:-1] in record.getMessage()
    assert record.getMessage().startswith("node 100, round 1, attempt 1: KeyFileError: ")
    assert MARKER in record.getMessage()
    assert record.exc_info is None


def test_a_cohort_below_the_minimum_is_named_in_the_log(nodes: Nodes, caplog: pytest.LogCaptureFixture) -> None:
    trained = nodes.train(attempt=2)
    two = nodes.cohort({node: trained[node] for node in NODES[:2]})
    reply = nodes.send(0, "train.contribute", two, {**CALL, "attempt": 2})
    assert_refused(reply, CohortRefused)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith(
        "node 100, round 1, attempt 2: CohortRefused: a sum of 2 of 6 invited was announced; "
    )


def test_another_model_shown_to_one_node_is_named_in_the_log_with_the_nodes_that_differ(
    nodes: Nodes, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The aggregator has two valid sums of round 1, of six and of five, and hands one of them to a single node."""
    with monkeypatch.context() as patch:  # the same nodes before they remembered anything
        copied = Nodes(tmp_path / "copied", nodes.plan)
        patch.setenv("PRUNESEAL_KITS", str(copied.folder))
        other = copied.aggregate(5)
    one, call = nodes.aggregate(), {**CALL, "round": 2}
    replies = [nodes.send(k, "train", {"aggregate": other if k == 3 else one}, call) for k in range(6)]
    cohort = announced(frame(reply, "attendance") for reply in replies)
    assert_refused(nodes.send(0, "train.contribute", {"cohort": cohort}, call), AgreementError)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith(
        f"node 100, round 2, attempt 1: AgreementError: nodes {NODES[0]} and {NODES[3]} report different values of "
        "the model."
    )


def test_a_message_that_names_no_round_is_in_the_log_without_one(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    nodes.send(0, "train", call={**CALL, "round": MARKER})
    nodes.deliver(0, Message(Error(code=1), reply_to=Message(RecordDict(), 100, "train")))
    known, unknown = caplog.records
    assert known.getMessage().startswith("node 100: MalformedMessage: the message names no run, round and attempt [ref")
    assert unknown.getMessage().startswith("node 100: unexpected failure [ref")
    assert MARKER not in caplog.text


def test_two_failures_have_two_references(nodes: Nodes) -> None:
    reasons = {nodes.send(0, "train.contribute").error.reason for _ in range(2)}
    assert len(reasons) == 2


# --- the call -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"run": RUN, "round": 1},
        {"run": RUN, "attempt": 1},
        {"round": 1, "attempt": 1},
        {**CALL, "run": RUN[:-1]},
        {**CALL, "run": RUN.hex()},
        {**CALL, "round": 0},
        {**CALL, "round": -1},
        {**CALL, "round": 1 << 32},
        {**CALL, "round": 1.0},
        {**CALL, "attempt": 0},
        {**CALL, "attempt": 1 << 32},
        {**CALL, "attempt": "1"},
    ],
)
@pytest.mark.parametrize("kind", ["train", "train.contribute", "train.release", "query", "query.name"])
def test_a_message_that_does_not_say_what_it_is_of_is_refused(kind: str, call: dict[str, object], nodes: Nodes) -> None:
    assert_refused(nodes.send(0, kind, call=call), MalformedMessage)


def test_a_message_without_a_call_or_without_content_is_refused(nodes: Nodes) -> None:
    empty = Message(RecordDict(), 100, "train")
    assert_refused(nodes.deliver(0, empty), MalformedMessage)
    failed = Message(Error(code=1, reason=MARKER), reply_to=empty)
    assert_refused(nodes.deliver(0, failed), PruneSealError)


def test_the_largest_numbers_that_fit_the_protocol_are_understood(nodes: Nodes) -> None:
    reply = nodes.send(0, "train", call={**CALL, "attempt": (1 << 32) - 1})
    assert len(frame(reply, "attendance")) == ATTENDANCE_BYTES


def test_plaintext_where_a_frame_belongs_is_refused(nodes: Nodes) -> None:
    nodes.train()
    content = RecordDict({"frames": ArrayRecord([np.ones(3)]), "call": ConfigRecord({**CALL, "round": 2})})  # type: ignore[dict-item]
    assert_refused(nodes.deliver(0, Message(content, 100, "train")), MalformedMessage)


def test_a_frame_under_another_name_is_refused(nodes: Nodes) -> None:
    nodes.train()
    content = RecordDict({"frames": to_record({"other": b"frame"}), "call": ConfigRecord({**CALL, "round": 2})})  # type: ignore[dict-item]
    assert_refused(nodes.deliver(0, Message(content, 100, "train")), MalformedMessage)


# --- the two guards alone -----------------------------------------------------------------------


def context() -> Context:
    return Context(1, 100, {}, RecordDict(), {})


def request() -> Message:
    return Message(RecordDict(), 100, "train")


@pytest.mark.parametrize(
    "array",
    [
        Array(np.ones(3, np.float32)),
        Array("bytes", (3,), "numpy.ndarray", b"abc"),
        Array("bytes", (3,), "", b"abc"),
        Array("bytes", (3,), "pruneseal.v1", b"abc"),
    ],
)
def test_an_array_in_clear_never_leaves(array: Array) -> None:
    records = RecordDict({"model": to_record({"model": b"frame"}), "spare": ArrayRecord({"weights": array})})

    def leak(message: Message, _: Context) -> Message:
        return Message(records, reply_to=message)

    with pytest.raises(MalformedMessage, match="something would leave this node in clear"):
        egress(request(), context(), leak)


@pytest.mark.parametrize("record", [MetricRecord({"loss": 1.0}), ConfigRecord({"name": "node-1"})])
def test_a_number_or_a_word_in_clear_never_leaves(record: MetricRecord | ConfigRecord) -> None:
    records = RecordDict({"model": to_record({"model": b"frame"}), "spare": record})
    with pytest.raises(MalformedMessage, match="something would leave this node in clear"):
        egress(request(), context(), lambda message, context: Message(records, reply_to=message))


def test_frames_and_errors_may_leave() -> None:
    records = RecordDict({"model": to_record({"model": b"frame"})})
    good = Message(records, reply_to=request())
    bad = Message(Error(code=1), reply_to=request())
    assert egress(request(), context(), lambda message, context: good) is good
    assert egress(request(), context(), lambda message, context: bad) is bad


def test_the_apps_own_egress_stands_inside_its_guard(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a handler's own wrapping ever failed, the refusal must reach the aggregator as an error and nothing else."""
    clear = ArrayRecord({"model": Array(np.ones(3, np.float32))})
    content = RecordDict({"frames": to_record({"invited": encode_nodes(NODES)}), "call": ConfigRecord(dict(CALL))})  # type: ignore[arg-type]
    monkeypatch.setattr("protocol.messages.to_record", lambda blobs: clear)
    assert_refused(nodes.deliver(0, Message(content, 100, "train")), MalformedMessage)


@pytest.mark.parametrize("error", [ValueError(MARKER), KeyError(MARKER), MemoryError(MARKER), RecursionError(MARKER)])
def test_the_guard_answers_whatever_goes_wrong(error: Exception) -> None:
    def fail(message: Message, _: Context) -> Message:
        raise error

    assert_refused(guard(request(), context(), fail), PruneSealError)


def test_the_guard_lets_a_good_answer_pass() -> None:
    reply = Message(RecordDict(), reply_to=request())
    assert guard(request(), context(), lambda message, context: reply) is reply
