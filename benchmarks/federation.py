"""One federation, twice: the product with all its encryption, and the same arithmetic in the clear.

*In the clear* takes the product's own steps in one process, client after client: local training, what a method submits,
the grid with its dither, the exact sum, merge and purge. It leaves out lanes, blinding, encryption, signatures, Flower.
Since sums are exact, it derives the very model that an encrypted run of the same plan derives, to the last bit, and its
bytes follow from the lengths of the messages that would have been sent (`tests/benchmarks/test_federation.py`).

This lives here alone: the product has no switch that turns encryption off.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from aggregator.records import Record, read_records
from edge_client.learning import data as datasets
from edge_client.learning.network import Network, build_network, extract, insert
from edge_client.learning.partition import Partition, partition
from edge_client.learning.training import Score, evaluate, gradient_at, local_update
from edge_client.round import dither_of, terms_of, training_seed
from edge_client.sparsify import GlobalState
from edge_client.sums import UNTOLD, Sum, next_state
from fleet.results.finish import SUMMARY_FILE
from fleet.results.summary import Summary
from fleet.running import local
from protocol.attendance import ATTENDANCE_BYTES, SHARE_BYTES
from protocol.call import Call
from protocol.cohort import bounded_weights
from protocol.errors import ConfigError
from protocol.figures import FIGURES_BYTES
from protocol.grid import Integers, Share, quantise, steps
from protocol.layout import Mask, Vector
from protocol.plan import Plan
from protocol.release import consent_length
from protocol.support import gather
from protocol.terms import encode_terms
from protocol.wire import contribution_length

_SIV_TAG = 16
_DIGEST = 32
_SPOILED = 8
Tensors = dict[str, torch.Tensor]


def submission(
    plan: Plan, network: Network, share: datasets.Share, state: GlobalState, call: Call, node: int
) -> tuple[Vector, Mask]:
    """One client's round, as the product's client plays its first attempt: values, float32[P], and votes, bool[P or 0].

    Args:
        plan: The plan.
        network: Its model, with the client's personal tensors; trained in place.
        share: The client's rows.
        state: What the round begins with.
        call: The run, round and attempt.
        node: The client's number.
    """
    insert(network, state.vector)
    seed = training_seed(plan, call, node)
    local_update(network, state.mask, share, plan, seed)
    gradient = partial(gradient_at, network, state.vector, share, seed)
    return network.method.submit(extract(network), network.layout, state, gradient)


@dataclass(frozen=True)
class Step:
    """What one round in the clear came to.

    Attributes:
        score: Of the model after the round, on all test rows.
        sparsity: The share of zero parameters in it.
        values: How many values each client sent.
        vote_bytes: Bytes of votes in what all clients sent.
        uplink: Bytes that all clients sent.
        clipped: Values that were clipped.
    """

    score: Score
    sparsity: float
    values: int
    vote_bytes: int
    uplink: int
    clipped: int


class Clear:
    """A federation in the clear.

    Args:
        plan: The plan; all of its largest cohort take part in every round.

    Raises:
        ConfigError, DataError: As in the product.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.clients = plan, plan.max_cohort
        self.data = datasets.load(plan.data)
        self.parts: Partition = partition(plan.partition, self.data.train_y, self.data.groups, self.clients, plan.seed)
        self.run = local.run_name(plan)
        self.network = build_network(plan, self.data.input_shape, self.data.classes, self.run)
        self.state = self.network.initial
        self._fresh: Tensors = {name: tensor.clone() for name, tensor in self.network.model.state_dict().items()}
        self._personal: list[Tensors] = [{} for _ in self.parts]

    def share(self, node: int) -> datasets.Share:
        """One client's rows."""
        return datasets.part(self.data, self.parts[node], node, self.clients)

    def round(self) -> Step:
        """Play one round."""
        plan, layout, state = self.plan, self.network.layout, self.state
        terms = terms_of(state, layout)
        step = steps(terms.clips, layout, terms.support, plan.parameters.grid)
        weights = bounded_weights([self.network.method.weight(len(rows)) for rows in self.parts], plan.max_share)
        values, votes, clipped = np.zeros(len(terms.support), np.int64), np.zeros(0, np.int64), 0
        call = Call(self.run, state.round + 1, 1)
        for node, weight in enumerate(weights):
            self.enter(node)
            given, elected = submission(plan, self.network, self.share(node), state, call, node)
            self._leave(node)
            dither = dither_of(plan, call, node, len(terms.support))
            kept = gather(given, terms.support)
            integers, cut = quantise(kept, step, Share(weight, sum(weights)), plan.parameters.grid, dither)
            values += integers
            votes = _added(votes, elected[terms.support.positions] if elected.size else elected)
            clipped += cut
        self.state = next_state(
            Sum(terms, self.clients, 1.0, values, votes, UNTOLD), state.round + 1, plan, layout, self.network.method
        )
        uplink, vote_bytes = self._bytes(values.size, votes.size, self._sealed(state))
        score, sparsity = self.score()
        return Step(score, sparsity, values.size, vote_bytes, uplink, clipped)

    def score(self) -> tuple[Score, float]:
        """Of the global model on all test rows, or of each client's own on its part of them; and the share of zeros."""
        network, data = self.network, self.data
        alone = bool(network.method.personal(network.model))
        scores, parameters, kept = [], 0, 0
        for node in range(self.clients if alone else 1):
            self.enter(node)
            insert(network, self.state.vector)
            own, left = network.method.sizes(network.model, network.layout, self.state)
            parameters, kept = parameters + own, kept + left
            x, y = (data.test_x[node :: self.clients], data.test_y[node :: self.clients]) if alone else (
                data.test_x, data.test_y
            )  # fmt: skip
            scores.append(evaluate(network.model, x.copy(), y.copy()))
        total = Score(*(sum(getattr(each, name) for each in scores) for name in ("correct", "tested", "loss")))
        return total, 1 - kept / parameters

    def own_accuracy(self) -> float:
        """The mean over clients of the accuracy on test rows mixed like the client's own classes."""
        network, classes = self.network, self.data.classes
        found = []
        for node, rows in enumerate(self.parts):
            self.enter(node)
            insert(network, self.state.vector)
            mix = np.bincount(self.data.train_y[rows], minlength=classes) / len(rows)
            right = [
                evaluate(network.model, self.data.test_x[mine], self.data.test_y[mine]).correct / max(1, mine.sum())
                for mine in (self.data.test_y == label for label in range(classes))
            ]
            found.append(float(mix @ np.array(right)))
        return float(np.mean(found))

    def enter(self, node: int) -> None:
        """Make the model this client's: as it was built, with what the client has kept."""
        self.network.model.load_state_dict(self._fresh | self._personal[node])

    def _leave(self, node: int) -> None:
        personal = self.network.method.personal(self.network.model)
        self._personal[node] = {name: tensor.detach().clone() for name, tensor in personal.items()}

    def _sealed(self, state: GlobalState) -> int:
        """How many bytes the sealed terms take of the round that begins with a state."""
        return len(encode_terms(terms_of(state, self.network.layout))) + _SIV_TAG

    def _bytes(self, values: int, votes: int, sealed: int) -> tuple[int, int]:
        """What all clients of a round send, and the part of it that is votes: from the lengths of the messages."""
        p = self.plan.parameters
        whole, bare, none = (
            contribution_length(*each, self.clients, p) for each in ((values, votes), (values, 0), (0, 0))
        )
        others = ATTENDANCE_BYTES + self.clients * SHARE_BYTES + consent_length(self.clients, 0)
        sent = self.clients * (others + whole) + sealed
        if self.state.round == self.plan.rounds:  # one round more, of no values, and what it came to
            sent += self.clients * (others + none + _DIGEST + FIGURES_BYTES + _SPOILED) + self._sealed(self.state)
        return sent, self.clients * (whole - bare)


def _added(total: Integers, votes: Mask) -> Integers:
    """The sum of votes; it starts without any."""
    return votes.astype(np.int64) + (total if total.size else 0)


def encrypted_run(plan: Plan, folder: Path, workers: int, *, fresh: bool) -> tuple[Summary, list[Record]]:
    """Run the product with every sum verified, or read what it has left in the folder; an unfinished run goes on.

    Returns:
        The run's summary and the records of its rounds.

    Raises:
        ConfigError: The folder holds a run of another plan.
        PruneSealError: What the run met; it can be resumed.
    """
    if fresh and folder.exists():
        shutil.rmtree(folder)
    if (folder / local.OPTIONS_FILE).exists():
        if local.stored_run(folder)[0] != plan:
            raise ConfigError(f"{folder} holds a run of another plan; use --fresh or another --work")
    else:
        local.start(folder, plan, local.Options(plan.max_cohort, 0.0, verify=True, workers=workers))
    if not (folder / SUMMARY_FILE).exists():
        local.go(folder, Console())
    return Summary.read(folder / SUMMARY_FILE), read_records(folder)


def weighted_mean(trained: Sequence[tuple[Vector, int]]) -> Vector:
    """The sample-weighted mean in plain floats, float32[P], of vectors and their numbers of samples."""
    total = sum(samples for _, samples in trained)
    mean = np.sum([vector.astype(np.float64) * (samples / total) for vector, samples in trained], axis=0)
    return np.asarray(mean, np.float32)
