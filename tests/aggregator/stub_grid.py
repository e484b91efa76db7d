"""A grid in memory whose clients are honest until a test scripts them otherwise, node by node and attempt by attempt.

The clients use the functions of ``edge_client.round`` on synthetic trained vectors, so a round takes milliseconds and
its clear sum is known. The deadline passes when the aggregator has taken every reply that there is, and not before: no
test waits for it, and none depends on how fast the machine is.
"""

import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from aggregator.journal import Journal
from aggregator.observer import refusal
from aggregator.records import MaskFigures, Record
from aggregator.rounds import Run
from aggregator.summation import MaskedSum
from edge_client.consenting import admit_release, consent
from edge_client.dealing import take
from edge_client.keys import Kit
from edge_client.learning.network import first_state
from edge_client.ledger import Ledger
from edge_client.round import (
    Update,
    admit_cohort,
    attend,
    attend_again,
    close_update,
    dither_of,
    figures_of,
    model_digest,
    quantised,
    require_invited,
    sent_to,
    state_digest,
)
from edge_client.sparsify import GlobalState, sparsifier
from edge_client.state import Measured, Pending
from edge_client.sums import UNTOLD, Sum, Told, next_state, open_sum
from fleet import flower
from protocol.attendance import Attendance, decode_attendance, encode_attendance
from protocol.call import Action, Call
from protocol.cohort import Cohort, decode_cohort
from protocol.errors import PeerError, Spoiled
from protocol.figures import figures_to_bytes
from protocol.frame import ATTENDANCE, CONTRIBUTION, SIGNATURE_BYTES, kind_of, signed
from protocol.grid import Integers
from protocol.layout import Layout, TensorSpec, Vector
from protocol.messages import from_request, to_error, to_reply
from protocol.openings import decode_nodes, spoiled_to_bytes, unspoiled
from protocol.parameters import MODULUS
from protocol.plan import Plan
from protocol.release import Consent, decode_consent, decode_release, encode_consent
from protocol.roster import Roster
from protocol.wire import decode_contribution, encode_contribution
from tests import factories

TRAIN, CONTRIBUTE, RELEASE, REPORT = Action.TRAIN, Action.CONTRIBUTE, Action.RELEASE, Action.REPORT
NAME = Action.NAME
NODES = (2, 3, 5, 8, 13, 21, 34, 55, 89, 144)
"""Numbers on the roster: neither consecutive nor positions, so nothing can mistake the one for the other."""

FIRST_FLOWER_NODE, FLOWER_STEP = 7000, 13
LAYOUT = Layout((TensorSpec("bias", (4,), True), TensorSpec("count", (2,), False), TensorSpec("weight", (4, 5), True)))
Frames = dict[str, bytes]


def small_plan(**changes: Any) -> Plan:
    """A plan whose rounds take milliseconds: one round of the dense method by default."""
    return replace(Plan(method="fedavg", rounds=1, deadline=60.0, attempts=4), **changes)


def make_kits(nodes: int, plan: Plan) -> list[Kit]:
    """What the first of `NODES`, and of those that follow upon them, were provisioned with."""
    numbers = [*NODES, *range(200, 200 + nodes)][:nodes]
    return list(factories.kits(plan, numbers).values())


_STATES: dict[bytes, tuple[GlobalState, Told]] = {}  # every client derives the same one; here it is derived once


class MemoryLedger(Ledger):
    """A ledger that no process has to find again."""

    def save(self) -> None:
        """Stay in memory."""


class StubClient:
    """What `edge_client.client.Client` does, with a made-up training, and the waiting update and ledger in memory."""

    def __init__(self, kit: Kit, plan: Plan, layout: Layout = LAYOUT, votes: bool = False) -> None:
        self.kit, self.plan, self.layout, self.votes = kit, plan, layout, votes
        self.samples = 10 + 7 * kit.node
        self.pending: Pending | None = None
        self.lies: dict[str, int] = {}
        """Figures that the client tells instead of the true ones."""
        self.ledger = MemoryLedger(Path())
        self.answered: Call | None = None

    def state(self, call: Call, aggregate: bytes) -> tuple[GlobalState, Told]:
        """The model that the last aggregate stands for, and the figures in it."""
        if not aggregate:
            assert call.round == 1
            return first_state(np.linspace(-1, 1, self.layout.size, dtype=np.float32), self.layout), UNTOLD
        if aggregate not in _STATES:
            total = open_sum(aggregate, call.run, call.round - 1, self.kit, self.plan, self.layout)
            state = next_state(total, call.round - 1, self.plan, self.layout, sparsifier(self.plan))
            _STATES[aggregate] = state, total.told
        return _STATES[aggregate]

    def train(self, call: Call, frames: Mapping[str, bytes]) -> Frames:
        """Attend; asked again, as before, and in another attempt with what was trained before."""
        self.ledger.require(call, self.kit.node)
        last, invited = self.answered, decode_nodes(frames["invited"])
        if last != call:
            state, told = self.state(call, frames.get("aggregate", b""))
            memory = self.ledger.memory(call, state_digest(state))
            require_invited(invited, memory, self.kit, self.plan)
            if self.pending is not None and last is not None and last.round == call.round:
                self.pending = attend_again(self.pending, call, self.kit, self.plan, invited, told, memory)
            else:
                update = replace(self._update(call, state), told=told)
                waiting = attend(call, self.kit, self.plan, self.layout, state, update, invited, memory)
                self.pending = replace(waiting, measured=self._measure(state))
            self.ledger.note(call)
            self.answered = call
        assert self.pending is not None
        return {"attendance": self.pending.attendance, "shares": self.pending.dealt}

    def _update(self, call: Call, state: GlobalState) -> Update:
        if call.round > self.plan.rounds:
            return Update(np.zeros(0, np.float32), np.zeros(0, np.bool_), self.samples)
        moved = np.random.default_rng([self.kit.node, call.round]).normal(size=self.layout.size)
        trained: Vector = np.where(state.mask, state.vector + moved, 0).astype(np.float32)
        return Update(trained, moved > 0 if self.votes else np.zeros(0, np.bool_), self.samples)

    def contribute(self, call: Call, frames: Mapping[str, bytes]) -> Frames:
        """Mask for the announced cohort, encrypt, sign."""
        assert self.pending is not None
        self.ledger.require(call, self.kit.node)
        cohort = admit_cohort(frames["cohort"], call, self.pending, self.kit, self.plan)
        shares = tuple(take(frames["shares"], cohort.members, call, self.kit))
        self.ledger.give(sent_to(cohort, call, self.pending), self.kit.node)
        self.pending = replace(self.pending, cohort=frames["cohort"], shares=shares)
        integers, clipped = self.integers(cohort, call)
        figures = figures_of(self.pending.measured, clipped, cohort, self.kit.node, self.plan)
        figures = replace(figures, **self.lies)
        return {"contribution": close_update(integers, figures, cohort, call, self.kit, self.plan, self.pending)}

    def release(self, call: Call, frames: Mapping[str, bytes]) -> Frames:
        """Consent to a sum."""
        assert self.pending is not None
        self.ledger.require(call, self.kit.node)
        asked = decode_release(frames["release"])
        cohort = admit_release(asked, self.pending, call, self.kit, self.plan)
        self.ledger.release(call, asked.sets, self.kit.node)
        return {"consent": consent(asked, cohort, call, self.kit, self.plan, self.pending)}

    def report(self, call: Call, frames: Mapping[str, bytes]) -> Frames:
        """Say what the last sum says."""
        state, _ = self.state(call, frames["aggregate"])
        scores = open_sum(frames["scores"], call.run, call.round, self.kit, self.plan, self.layout)
        return {
            "model": model_digest(state, call, self.kit),
            "figures": figures_to_bytes(scores.told.figures),
            "spoiled": spoiled_to_bytes(scores.told.spoiled),
        }

    def name(self, call: Call, frames: Mapping[str, bytes]) -> Frames:
        """Say who this is."""
        return {"name": f"node-{self.kit.node}".encode()}

    def integers(self, cohort: Cohort, call: Call) -> tuple[Integers, int]:
        """What this client adds to the sum of a cohort."""
        assert self.pending is not None
        dither = dither_of(self.plan, call, self.kit.node, self.pending.values.size)
        return quantised(self.pending, cohort, self.kit.node, self.plan, dither)

    def _measure(self, state: GlobalState) -> Measured:
        parameters, kept = int(self.layout.prunable.sum()), int((state.mask & self.layout.prunable).sum())
        return Measured(0.5 + self.kit.node, 8, 10, 5.0, parameters, kept)


@dataclass(frozen=True)
class Ask:
    """One message that has reached one node."""

    grid: "StubGrid"
    client: StubClient
    message: Message
    kind: Action
    call: Call
    frames: Frames

    @property
    def node(self) -> int:
        """The node's number on the roster."""
        return self.client.kit.node

    @property
    def name(self) -> str:
        """The name of the frame that the message is answered with, or of the first of them."""
        return self.kind.reply[0]

    def honest(self) -> Frames:
        """The frames of an honest client."""
        client = self.client
        answer = {
            TRAIN: client.train,
            CONTRIBUTE: client.contribute,
            RELEASE: client.release,
            REPORT: client.report,
            NAME: client.name,
        }
        frames = answer[self.kind](self.call, self.frames)
        self.grid.frames.setdefault((self.kind, self.call.round, self.node), frames[self.name])
        self.grid.sent += sum(map(len, frames.values()))
        return frames

    def answer(self) -> Message:
        """What an honest client answers, be it that the sum is none."""
        try:
            return self.reply(self.honest())
        except Spoiled as error:
            return Message(to_error(error, "00000000"), reply_to=self.message)

    def reply(self, frames: Frames) -> Message:
        """A reply that carries these frames."""
        return Message(to_reply(self.kind, frames), reply_to=self.message)

    def reply_with(self, records: dict[str, Any]) -> Message:
        """A reply that carries these records."""
        return Message(RecordDict(records), reply_to=self.message)


Behaviour = Callable[[Ask], "Message | None"]
Change = Callable[[Ask, bytes], bytes]


@dataclass(frozen=True)
class _Rule:
    behaviour: Behaviour
    kind: str
    nodes: frozenset[int]
    round: int | None
    attempt: int | None

    def fits(self, ask: Ask) -> bool:
        return (
            (self.kind, self.round or ask.call.round, self.attempt or ask.call.attempt)
            == (ask.kind, ask.call.round, ask.call.attempt)
        ) and ask.node in self.nodes


class StubGrid(Grid):
    """Flower's grid over clients in this process."""

    def __init__(self, clients: Sequence[StubClient]) -> None:
        self.clients = {FIRST_FLOWER_NODE + FLOWER_STEP * c.kit.node: c for c in clients}
        self.online = set(self.clients)
        self.frames: dict[tuple[str, int, int], bytes] = {}
        self.sent = 0
        self.asked: list[tuple[str, int, int, tuple[int, ...]]] = []
        self.late: list[Message] = []
        self._rules: list[_Rule] = []
        self._ready: dict[str, Message] = {}
        self._overdue: list[Message] = []
        self._pulling = threading.Lock()
        self._now, self._left = 0.0, 0
        self._run = flower.empty_run(1)
        flower.be_task(1, 1)

    def when(
        self, kind: str, behaviour: Behaviour, *nodes: int, round: int | None = None, attempt: int | None = None
    ) -> None:
        """Let nodes answer a kind of message with a behaviour: in one round, one attempt, or always."""
        self._rules.append(_Rule(behaviour, kind, frozenset(nodes), round, attempt))

    def monotonic(self) -> float:
        """Seconds: the same as long as there are replies that the reader has not taken, then a deadline later."""
        if self._left:
            self._left -= 1
        else:
            self._now += 1e6
        return self._now

    def set_run(self, run: flower.Run) -> None:
        self._run = run

    @property
    def run(self) -> flower.Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self.online)

    def get_nodes(self) -> Iterable[flower.NodeInfo]:
        """The nodes that are online, registered by their names on the roster."""
        return [flower.NodeInfo(node_id=i, name=f"node-{self.clients[i].kit.node}") for i in self.get_node_ids()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let every client answer at once; the replies lie ready."""
        self._overdue, self.late = self.late, []
        ids, numbers, head = [], [], ("", 0, 0)
        for message in messages:
            identity = secrets.token_hex(16)
            message.metadata.__dict__["_message_id"] = identity
            ids.append(identity)
            ask = self._ask(message)
            head = (ask.kind, ask.call.round, ask.call.attempt)
            numbers.append(ask.node)
            rules = [rule for rule in self._rules if rule.fits(ask)]
            reply = rules[-1].behaviour(ask) if rules else ask.answer()
            if reply is not None:
                self._ready[identity] = reply
        self.asked.append((*head, tuple(numbers)))
        self._left = len(self._ready) + len(self._overdue)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """What is ready; and, asked for or not, what has come too late for the message before."""
        with self._pulling:
            late, self._overdue = self._overdue, []
        return late + [self._ready.pop(i) for i in message_ids if i in self._ready]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError

    def _ask(self, message: Message) -> Ask:
        kind = Action(message.metadata.message_type)
        client = self.clients[message.metadata.dst_node_id]
        return Ask(self, client, message, kind, *from_request(kind, message.content))


# --- behaviours ------------------------------------------------------------------------------------


def silent(ask: Ask) -> None:
    """The node is gone before it does anything."""


def fails(reason: str | None) -> Behaviour:
    """The node answers with Flower's error reply."""
    return lambda ask: Message(Error(110, reason), reply_to=ask.message)


def sends(change: Change) -> Behaviour:
    """The node changes its honest frame, or the first of them, before it sends it."""

    def changed(ask: Ask) -> Message:
        frames = ask.honest()
        return ask.reply(frames | {ask.name: change(ask, frames[ask.name])})

    return changed


def unsigned(ask: Ask, frame: bytes) -> bytes:
    """The same message, with zeros for its signature."""
    return frame[:-SIGNATURE_BYTES] + bytes(SIGNATURE_BYTES)


def signed_by_another(ask: Ask, frame: bytes) -> bytes:
    """The same message, signed by another node than the one that it names."""
    other = next(client for client in ask.grid.clients.values() if client.kit.node != ask.node)
    return signed(frame[:-SIGNATURE_BYTES], other.kit.sign(frame[:-SIGNATURE_BYTES]))


def of_round_before(ask: Ask, frame: bytes) -> bytes:
    """What the node has sent in the round before."""
    return ask.grid.frames[ask.kind, ask.call.round - 1, ask.node]


def spoils(ask: Ask) -> Message:
    """The node contributes random residues, so that nobody can read the sum that they are in."""
    assert ask.client.pending is not None
    frame, p = ask.honest()[ask.name], ask.client.plan.parameters
    cohort = decode_cohort(ask.frames["cohort"], ask.client.kit.roster)
    mine = attendance_of(ask.client)
    sent = decode_contribution(frame, mine, len(cohort.members), p, ask.client.kit.roster)
    noise = np.random.default_rng(ask.node).integers(1 << p.width_up, size=sent.first.size, dtype=np.uint64)
    return ask.reply({ask.name: sign_again(ask.client, frame, first=noise % np.uint64(MODULUS >> p.drop_up))})


def refuses_the_sum(ask: Ask) -> Message:
    """The node says that the sum is none."""
    return Message(to_error(Spoiled("it is none"), "00000000"), reply_to=ask.message)


def sends_plaintext(ask: Ask) -> Message:
    """The node sends the values themselves, as Flower's own clients do."""
    return ask.reply_with({"frames": ArrayRecord([np.ones(26, np.float32)])})


def sends_nothing(ask: Ask) -> Message:
    """The reply holds no record at all."""
    return ask.reply_with({})


def attendance_of(client: StubClient) -> Attendance:
    """The attendance that a client has just sent."""
    assert client.pending is not None
    return decode_attendance(client.pending.attendance, client.kit.roster)


def sign_again(client: StubClient, frame: bytes, **fields: Any) -> bytes:
    """Change fields of a client's message and sign it again, so that only a comparison can refuse it."""
    parameters, roster = client.plan.parameters, client.kit.roster
    if (kind := kind_of(frame)) == ATTENDANCE:
        body = encode_attendance(replace(attendance_of(client), **fields))
    elif kind == CONTRIBUTION:
        assert client.pending is not None
        members = len(client.pending.shares)
        contribution = decode_contribution(frame, attendance_of(client), members, parameters, roster)
        body = encode_contribution(replace(contribution, **fields), parameters)
    else:
        body = encode_consent(replace(decode_consent(frame, roster), **fields))
    return signed(body, client.kit.sign(body))


def consent_of(ask: Ask, frame: bytes) -> Consent:
    """What a client has just consented with."""
    return decode_consent(frame, ask.client.kit.roster)


def with_fields(**fields: Any) -> Change:
    """As :func:`sign_again`."""
    return lambda ask, frame: sign_again(ask.client, frame, **fields)


# --- a run -------------------------------------------------------------------------------------------


@dataclass
class Watch:
    """An observer that keeps what it is told, and compares every sum with the clear sum while it can be known."""

    grid: StubGrid
    records: list[Record] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    phases: list[tuple[int, str, int, int]] = field(default_factory=list)
    sums: list[tuple[int, MaskedSum, Sum]] = field(default_factory=list)
    scores: list[Sum] = field(default_factory=list)
    spoiled: list[tuple[int, MaskedSum]] = field(default_factory=list)
    nodes: list[tuple[int, dict[int, str]]] = field(default_factory=list)
    refusals: list[tuple[int, int, PeerError]] = field(default_factory=list)
    failures: list[tuple[int, int, str]] = field(default_factory=list)

    def online(self, round_: int, nodes: Mapping[int, str]) -> None:
        self.nodes.append((round_, dict(nodes)))

    def phase(self, round_: int, name: str, done: int, total: int) -> None:
        self.phases.append((round_, name, done, total))

    def refused(self, round_: int, node: int, error: PeerError) -> None:
        self.refusals.append((round_, node, error))
        self.texts.append(refusal(round_, error))

    def failed(self, round_: int, node: int, reason: str) -> None:
        self.failures.append((round_, node, reason))

    def summed(self, round_: int, total: MaskedSum, aggregate: bytes) -> MaskFigures:
        one, call = next(iter(self.grid.clients.values())), Call(total.cohort.members[0].run, round_, total.attempt)
        try:
            opened = open_sum(aggregate, call.run, round_, one.kit, one.plan, one.layout)
        except Spoiled:
            self.spoiled.append((round_, total))
            return MaskFigures()
        nodes = frozenset().union(*unspoiled(total.sets, opened.told.spoiled))
        clients = {client.kit.node: client for client in self.grid.clients.values() if client.kit.node in nodes}
        clear = [client.integers(total.cohort, call)[0] for client in clients.values()]
        assert np.array_equal(opened.values, sum(clear))
        votes = [client.pending.votes.astype(np.int64) for client in clients.values() if client.pending is not None]
        if one.votes:
            assert np.array_equal(opened.votes, sum(votes))
        assert opened.clients == len(clear)
        if round_ > one.plan.rounds:
            self.scores.append(opened)
            return MaskFigures()
        self.sums.append((round_, total, opened))
        return MaskFigures(regrown=len(self.sums))

    def round_done(self, record: Record) -> None:
        self.records.append(record)

    def message(self, text: str) -> None:
        self.texts.append(text)


@dataclass
class Scene:
    """A federation, its grid and its journal's folder."""

    plan: Plan
    folder: Path
    kits: list[Kit]
    grid: StubGrid
    watch: Watch

    @property
    def roster(self) -> Roster:
        """The public keys."""
        return self.kits[0].roster

    def run(self) -> Watch:
        """Run, or resume, to the end."""
        Run(self.grid, self.plan, self.roster, Journal(self.folder, self.plan, factories.RUN), self.watch).run()
        return self.watch


def make_scene(
    folder: Path,
    patch: pytest.MonkeyPatch,
    plan: Plan,
    nodes: int,
    votes: bool = False,
    before: Scene | None = None,
) -> Scene:
    """A federation of honest clients, those of the scene before if any, and an aggregator on the grid's clock."""
    kits = before.kits if before else make_kits(nodes, plan)
    clients = list(before.grid.clients.values()) if before else [StubClient(kit, plan, votes=votes) for kit in kits]
    grid = StubGrid(clients)
    patch.setattr("aggregator.replies.time", SimpleNamespace(monotonic=grid.monotonic))
    patch.setattr("aggregator.replies._Puller.next", lambda puller, timeout: puller._ready.get())  # one is there
    for module in ("rounds", "releasing", "selection"):
        patch.setattr(f"aggregator.{module}._WAIT_SECONDS", 0.01)
    return Scene(plan, folder, kits, grid, Watch(grid))
