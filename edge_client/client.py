"""One client of one run: what it does when a message of a round arrives. No Flower here; bytes in, bytes out."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from edge_client.consenting import admit_release, consent
from edge_client.dealing import take
from edge_client.keys import load_kit
from edge_client.learning import data as datasets
from edge_client.learning.network import Network, build_network, extract, insert
from edge_client.learning.partition import partition
from edge_client.learning.training import evaluate, gradient_at, local_update
from edge_client.ledger import Ledger
from edge_client.personal import load_personal, save_personal
from edge_client.result import CHECKPOINT_FILE, leave, to_checkpoint
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
    training_seed,
)
from edge_client.settings import NodeSettings
from edge_client.sparsify import GlobalState
from edge_client.state import Measured, Pending, accept_roster, load_pending, save_pending
from edge_client.sums import UNTOLD, Told, next_state, open_sum
from protocol import checkpoint
from protocol.attendance import decode_attendance
from protocol.call import Call
from protocol.errors import CheckpointError, ConfigError, MalformedMessage, PeerError, PeerMismatch
from protocol.figures import figures_to_bytes
from protocol.openings import decode_nodes, spoiled_to_bytes
from protocol.plan import Plan
from protocol.release import decode_release

_log = logging.getLogger("pruneseal.edge_client")


@dataclass(frozen=True)
class Reply:
    """What a message is answered with: frames of the protocol by name. Nothing else leaves a node."""

    frames: Mapping[str, bytes]


class Client:
    """One node's part in a run.

    Args:
        settings: Where its keys, state and data are.
        plan: The plan of the run.

    Raises:
        ConfigError: The plan is not the one that this node was provisioned for.
        KeyFileError: The kit is incomplete or exposed.
        RosterRefused: The roster is not signed by the operator, or older than one that was here before.
        DataError: The node has no usable data.
    """

    def __init__(self, settings: NodeSettings, plan: Plan) -> None:
        self._settings, self._plan = settings, plan
        self._kit = load_kit(settings.kit)
        if self._kit.plan != plan.digest:
            raise ConfigError(
                f"the run's plan is {plan.digest.hex()[:16]}, but this node was provisioned for "
                f"{self._kit.plan.hex()[:16]}; provision it again if the change is intended"
            )
        accept_roster(settings.state, self._kit.roster)
        torch.set_num_threads(settings.threads)

    def train(self, call: Call, frames: Mapping[str, bytes]) -> Reply:
        """Open the last sum, derive model and support, score the model, train it; answer with the attendance.

        A client trains once for a round, whatever its attempts; asked again in one attempt, it answers as before. After
        the last round of the plan one more scores the final model, and trains nothing.

        Args:
            call: Run, round and attempt.
            frames: ``invited``, and after round 1 ``aggregate``.

        Raises:
            Duplicate: A later attempt of this round was already answered.
            PeerMismatch: The plan has no such round, or a later one of this run was already answered.
            CohortRefused: With these invited, no sum may be opened.
            Spoiled: The last sum is none; nothing was noted, so that its round can be asked for again.
            LedgerLost: This node cannot know what it has helped to open.
        """
        if call.round > self._plan.rounds + 1:
            raise PeerMismatch("round", f"at most {self._plan.rounds + 1}", call.round)
        waiting, last = self._waiting()
        ledger = Ledger.open(self._settings.state, call, last, self._kit.node)
        invited = decode_nodes(frames.get("invited", b""))
        if waiting is not None and last == call:
            if waiting.invited != invited:
                raise PeerMismatch("invited", sorted(waiting.invited), sorted(invited))
            return _attending(waiting)
        share, network = self._data(call)
        for note in network.method.notes():
            _log.warning("%s", note)
        state, told = self._state(call, frames.get("aggregate", b""), network)
        memory = ledger.memory(call, state_digest(state))
        require_invited(invited, memory, self._kit, self._plan)
        if waiting is not None and last is not None and _same_work(waiting, last, call, state):
            ledger.note(call)
            again = attend_again(waiting, call, self._kit, self._plan, invited, told, memory)
            save_pending(self._settings.state, again)
            return _attending(again)
        self._load(network, state, call)
        parameters, kept = network.method.sizes(network.model, network.layout, state)
        score = evaluate(network.model, share.test_x, share.test_y)
        update, loss = self._update(call, network, state, share)
        update = replace(update, told=told)
        measured = Measured(loss, score.correct, score.tested, score.loss, parameters, kept)
        pending = attend(call, self._kit, self._plan, network.layout, state, update, invited, memory)
        ledger.note(call)
        save_pending(self._settings.state, replace(pending, measured=measured))
        return _attending(pending)

    def contribute(self, call: Call, frames: Mapping[str, bytes]) -> Reply:
        """Mask the waiting update for exactly the announced cohort, encrypt and sign it.

        Args:
            call: Run, round and attempt.
            frames: ``cohort``, and ``shares``: what its members have dealt this node.
        """
        pending, last = self._waiting()
        ledger = Ledger.open(self._settings.state, call, last, self._kit.node)
        if pending is None:
            pending = load_pending(self._settings.state)  # and fail as that does
        announced = frames.get("cohort", b"")
        cohort = admit_cohort(announced, call, pending, self._kit, self._plan)
        shares = tuple(take(frames.get("shares", b""), cohort.members, call, self._kit))
        ledger.give(sent_to(cohort, call, pending), self._kit.node)
        pending = replace(pending, cohort=announced, shares=shares)
        save_pending(self._settings.state, pending)
        dither = dither_of(self._plan, call, self._kit.node, pending.values.size)
        integers, clipped = quantised(pending, cohort, self._kit.node, self._plan, dither)
        figures = figures_of(pending.measured, clipped, cohort, self._kit.node, self._plan)
        return Reply({"contribution": close_update(integers, figures, cohort, call, self._kit, self._plan, pending)})

    def release(self, call: Call, frames: Mapping[str, bytes]) -> Reply:
        """Consent to open sums, one of which this node is in: answer with shares of what masks them.

        Args:
            call: Run, round and attempt.
            frames: ``release``.
        """
        pending, last = self._waiting()
        ledger = Ledger.open(self._settings.state, call, last, self._kit.node)
        if pending is None:
            pending = load_pending(self._settings.state)  # and fail as that does
        asked = decode_release(frames.get("release", b""))
        cohort = admit_release(asked, pending, call, self._kit, self._plan)
        ledger.release(call, asked.sets, self._kit.node)
        return Reply({"consent": consent(asked, cohort, call, self._kit, self._plan, pending)})

    def report(self, call: Call, frames: Mapping[str, bytes]) -> Reply:
        """Open the last sums; answer with the final model's keyed digest, and with what all have measured of it.

        Where the node has an output folder, the model is left there; a model of its own is left in any case.

        Args:
            call: Of the round after the last one.
            frames: ``aggregate``, that of the last round, and ``scores``, that of the one after it.

        Raises:
            PeerMismatch: The last round is not over.
        """
        if call.round != self._plan.rounds + 1:
            raise PeerMismatch("round", self._plan.rounds + 1, call.round)
        _, network = self._data(call)
        state, _ = self._state(call, frames.get("aggregate", b""), network)
        scores = open_sum(frames.get("scores", b""), call.run, call.round, self._kit, self._plan, network.layout)
        self._load(network, state, call)
        if self._settings.out is not None or network.method.personal(network.model):
            parameters, kept = network.method.sizes(network.model, network.layout, state)
            self._leave(network, call, 1 - kept / parameters)
        return Reply(
            {
                "model": model_digest(state, call, self._kit),
                "figures": figures_to_bytes(scores.told.figures),
                "spoiled": spoiled_to_bytes(scores.told.spoiled),
            }
        )

    def name(self, call: Call, frames: Mapping[str, bytes]) -> Reply:  # noqa: ARG002  # it is the same in every run
        """The name of this node on the roster."""
        return Reply({"name": self._kit.roster.nodes[self._kit.node].name.encode()})

    def _waiting(self) -> tuple[Pending, Call] | tuple[None, None]:
        """The update that waits to be sent, and what it was trained for."""
        try:
            pending = load_pending(self._settings.state)
            own = decode_attendance(pending.attendance, self._kit.roster)
        except (CheckpointError, PeerError):
            return None, None  # nothing waits, or nothing that could still be sent: of other keys, for example
        if own.node != self._kit.node:
            return None, None
        return pending, Call(own.run, own.round, own.attempt)

    def _data(self, call: Call) -> tuple[datasets.Share, Network]:
        plan, settings = self._plan, self._settings
        whole = datasets.load(settings.data or plan.data)
        if settings.data:
            share = datasets.part(whole, np.arange(len(whole.train_y)), 0, 1)
        else:
            parts = partition(plan.partition, whole.train_y, whole.groups, settings.nodes, plan.seed)
            share = datasets.part(whole, parts[settings.position], settings.position, settings.nodes)
        return share, build_network(plan, whole.input_shape, whole.classes, call.run)

    def _state(self, call: Call, aggregate: bytes, network: Network) -> tuple[GlobalState, Told]:
        """The state that the round begins with, and what its sum says of the cohort."""
        if not aggregate:
            if call.round != 1:
                raise MalformedMessage(f"round {call.round} was announced without the aggregate of the round before")
            return network.initial, UNTOLD
        before = call.round - 1
        total = open_sum(aggregate, call.run, before, self._kit, self._plan, network.layout)
        return next_state(total, before, self._plan, network.layout, network.method), total.told

    def _update(self, call: Call, network: Network, state: GlobalState, share: datasets.Share) -> tuple[Update, float]:
        """Train from the state, and the mean loss of it; after the last round there is nothing to train."""
        weight = network.method.weight(len(share.y))
        if call.round > self._plan.rounds:
            return Update(np.zeros(0, np.float32), np.zeros(0, np.bool_), weight), 0.0
        seed = training_seed(self._plan, call, self._kit.node)
        loss = local_update(network, state.mask, share, self._plan, seed)
        gradient = partial(gradient_at, network, state.vector, share, seed)
        values, votes = network.method.submit(extract(network), network.layout, state, gradient)
        save_personal(self._settings.state, call.run, call.round, network.method.personal(network.model))
        return Update(values, votes, weight), loss

    def _load(self, network: Network, state: GlobalState, call: Call) -> None:
        """Put the state into the model, on top of the personal tensors that this run has left here."""
        own = network.method.personal(network.model)
        load_personal(self._settings.state, call.run, call.round, own)
        insert(network, state.vector)

    def _leave(self, network: Network, call: Call, sparsity: float) -> None:
        """Leave the final model: in the output folder, or, a model that nobody else has, with the node's state."""
        settings, plan = self._settings, self._plan
        whole = datasets.load(settings.data or plan.data)
        made = to_checkpoint(network, call.run, call.round - 1, plan, whole, sparsity)
        if settings.out is not None:
            leave(settings.out, made, plan.model)
            return
        settings.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = settings.state / CHECKPOINT_FILE
        checkpoint.save(path, made)
        path.chmod(0o600)


def _attending(pending: Pending) -> Reply:
    """The answer to `train`."""
    return Reply({"attendance": pending.attendance, "shares": pending.dealt})


def _same_work(waiting: Pending, last: Call, call: Call, state: GlobalState) -> bool:
    """Whether what waits was trained in an earlier attempt of this round, from this very state."""
    return (last.run, last.round) == (call.run, call.round) and waiting.state == state_digest(state)
