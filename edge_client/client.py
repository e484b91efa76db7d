"""One client of one run: what it does when a message of a round arrives. No Flower here; bytes in, bytes out."""

import logging
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

import numpy as np
import torch

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
    close_update,
    dither_of,
    model_digest,
    quantised,
    sent_to,
    state_after,
)
from edge_client.settings import NodeSettings
from edge_client.sparsify import GlobalState
from edge_client.state import Pending, accept_roster, load_pending, save_pending
from protocol import checkpoint
from protocol.call import Call
from protocol.errors import CheckpointError, ConfigError, MalformedMessage, PeerError, PeerMismatch
from protocol.plan import Plan
from protocol.wire import decode_attendance

_log = logging.getLogger("pruneseal.edge_client")
Metrics = dict[str, int | float]


@dataclass(frozen=True)
class Reply:
    """What a message is answered with: one message of the protocol, and scalars that the aggregator may know."""

    payload: bytes
    metrics: Metrics


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

    def train(self, call: Call, aggregate: bytes) -> Reply:
        """Open the last sum, derive model and support, score the model, train it; answer with the attendance.

        A client trains once for each attempt, and attempts rise: asked again, it answers as before.

        Raises:
            Duplicate: A later attempt of this round was already answered.
            PeerMismatch: The plan has no such round, or a later one of this run was already answered.
            LedgerLost: This node cannot know what it has helped to open.
        """
        start = perf_counter()
        if call.round > self._plan.rounds:
            raise PeerMismatch("round", f"at most {self._plan.rounds}", call.round)
        waiting, last = self._waiting()
        ledger = Ledger.open(self._settings.state, call, last, self._kit.node)
        if waiting is not None and last == call:
            return Reply(waiting.attendance, dict(waiting.metrics))
        share, network = self._data(call)
        for note in network.method.notes():
            _log.warning("%s", note)
        state = self._state(call, aggregate, network)
        self._load(network, state, call)
        parameters, kept = network.method.sizes(network.model, network.layout, state)
        score = evaluate(network.model, share.test_x, share.test_y)
        opened = perf_counter()
        source = [self._plan.run_seed(call.run), call.round, call.attempt, self._kit.node]
        seed = int(np.random.default_rng(source).integers(1 << 31))
        loss = local_update(network, state.mask, share, self._plan, seed)
        gradient = partial(gradient_at, network, state.vector, share, seed)
        values, votes = network.method.submit(extract(network), network.layout, state, gradient)
        save_personal(self._settings.state, call.run, call.round, network.method.personal(network.model))
        update = Update(values, votes, network.method.weight(len(share.y)))
        pending = attend(call, self._kit, self._plan, network.layout, state, update)
        metrics: Metrics = {
            "loss": loss,
            "correct": score.correct,
            "tested": score.tested,
            "test-loss": score.loss,
            "parameters": parameters,
            "kept": kept,
            "seconds-open": opened - start,
            "seconds-train": perf_counter() - opened,
        }
        ledger.note(call)
        save_pending(self._settings.state, replace(pending, metrics=metrics))
        return Reply(pending.attendance, metrics)

    def contribute(self, call: Call, announced: bytes) -> Reply:
        """Blind the waiting update for exactly the announced cohort, encrypt and sign it."""
        start = perf_counter()
        pending, last = self._waiting()
        ledger = Ledger.open(self._settings.state, call, last, self._kit.node)
        if pending is None:
            pending = load_pending(self._settings.state)  # and fail as that does
        cohort = admit_cohort(announced, call, pending, ledger, self._kit, self._plan)
        ledger.give(sent_to(cohort, call, pending))
        dither = dither_of(self._plan, call, self._kit.node, pending.values.size)
        integers, clipped = quantised(pending, cohort, self._kit.node, self._plan, dither)
        payload = close_update(integers, pending.votes, cohort, call, self._kit, self._plan, pending.sealed)
        return Reply(payload, {"clipped": clipped, "seconds-encrypt": perf_counter() - start})

    def evaluate(self, call: Call, aggregate: bytes) -> Reply:
        """Open the sum of the last round and score its model; answer with the model's keyed digest.

        Where the node has an output folder, the model is left there; a model of its own is left in any case.

        Raises:
            PeerMismatch: The last round is not over: a score in mid-run would be an answer to a question of somebody's.
        """
        if call.round != self._plan.rounds + 1:
            raise PeerMismatch("round", self._plan.rounds + 1, call.round)
        share, network = self._data(call)
        state = self._state(call, aggregate, network)
        self._load(network, state, call)
        score = evaluate(network.model, share.test_x, share.test_y)
        parameters, kept = network.method.sizes(network.model, network.layout, state)
        metrics: Metrics = {
            "correct": score.correct,
            "tested": score.tested,
            "test-loss": score.loss,
            "parameters": parameters,
            "kept": kept,
        }
        if self._settings.out is not None or network.method.personal(network.model):
            self._leave(network, call, 1 - kept / parameters)
        return Reply(model_digest(state, call, self._kit), metrics)

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

    def _state(self, call: Call, aggregate: bytes, network: Network) -> GlobalState:
        if not aggregate:
            if call.round != 1:
                raise MalformedMessage(f"round {call.round} was announced without the aggregate of the round before")
            return network.initial
        return state_after(aggregate, call.run, call.round - 1, self._kit, self._plan, network)

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
