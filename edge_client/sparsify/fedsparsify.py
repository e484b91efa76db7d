"""FedSparsify-Global and the paper's two baselines that share its schedule.

Stripelis, Gupta, Ver Steeg and Ambite, "Federated Progressive Sparsification (Purge-Merge-Tune)+", arXiv:2204.12430.

One round t: every client tunes w_{t-1} under m_{t-1} = 1[w_{t-1} survives]; *merge*: w = sum_k n_k / n * w_k;
*purge*: of all trainable positions together, the ones of smallest magnitude go until the share of zeros is s_t.
Ranking is over the whole model, biases, normalisation and the first and last layer included; statistics of batch
normalisation always stay. A purged position never returns, so masks are nested. After the last round the model is
purged but not tuned again.

Here every client computes the purge from the same decrypted integers; the aggregator never learns which positions stay.

With granularity *filter* whole filters and neurons are purged by the same schedule: in each layer but the heads those
of the smallest mean magnitude, until the share s_t of the layer's filters is dead. A layer is ranked for itself: mean
magnitudes of two layers differ by their fan-in before training has said anything. So work and memory fall in every
layer, to about (1 - s_t)^2, and one filter of each always stays. With a dead filter go the weights that read it and its
channel of batch norm, statistics included; so about s_t of the parameters or more are zero as well.
"""

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

import numpy as np
from torch import nn

from edge_client.filters.structure import Structure
from edge_client.filters.trace import trace
from edge_client.sparsify.allocation import Allocating, allocate
from edge_client.sparsify.interface import GlobalState
from edge_client.sparsify.options import POSITIVE, Option, at_least
from edge_client.sparsify.powerprop import Reparametrised
from edge_client.sparsify.schedule import sparsity_after
from edge_client.sparsify.topk import kept_at, top_k
from protocol.errors import ConfigError
from protocol.grid import Integers
from protocol.layout import Layout, Mask, Vector, unflatten
from protocol.plan import Plan

_TUNING = 10  # rounds that one-shot has left after its purge, as in the paper


class Scheduled(Allocating, Reparametrised):
    """A method that after round t keeps the highest scores that its schedule leaves room for."""

    granularities: ClassVar[tuple[str, ...]] = ("weight", "filter")
    first_prune = Option(1, "The last round after which nothing is pruned.", at_least(0))

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._structure = Structure()
        if plan.rounds <= self.first_prune:
            raise ConfigError(
                f"rounds ({plan.rounds}) must exceed first-prune ({self.first_prune}), or nothing is ever pruned"
            )
        if self.layer_floor > 1 - plan.sparsity:
            raise ConfigError(f"layer-floor ({self.layer_floor}) is more than sparsity {plan.sparsity} leaves")
        if plan.granularity == "filter" and (self.allocation, self.layer_floor) != ("global", 0.0):
            raise ConfigError("filters go evenly from every layer: leave allocation and layer-floor at their defaults")

    def wear(self, model: nn.Module) -> nn.Module:
        """As every method wears it; where filters are purged, its structure is read.

        Raises:
            ConfigError: It has no filters.
        """
        worn = super().wear(model)
        if self.plan.granularity == "filter":
            self._structure = trace(worn)
            if not self._structure.filters:
                raise ConfigError(
                    "the network has no plain linear or convolutional layer before its output: use granularity weight"
                )
        return worn

    def notes(self) -> tuple[str, ...]:
        """Where dead filters cannot be taken out of the network that is trained."""
        return tuple(f"filters are masked, not removed, at {reason}" for reason in self._structure.unproved)

    @abstractmethod
    def sparsity(self, round_: int) -> float:
        """s_t, a fraction."""

    def scores(self, vector: Vector) -> Vector:
        """What the positions are ranked by, float32[P], not negative."""
        return np.abs(vector)

    def purge(self, vector: Vector, round_: int, layout: Layout, alive: Mask) -> Mask:
        """The top of a vector's scores, among what is alive, that s_t leaves room for; buffers always.

        Where filters are purged, a dead one takes its statistics along.
        """
        if self.plan.granularity == "filter":
            return self._structure.closed(self._filters(vector, round_, layout, alive), layout)
        kept = kept_at(self.sparsity(round_), int(layout.prunable.sum()))
        scores, candidates = self.scores(vector), layout.prunable & alive
        return ~layout.prunable | allocate(scores, candidates, kept, layout, self.allocation, self.layer_floor)

    def _filters(self, vector: Vector, round_: int, layout: Layout, alive: Mask) -> Mask:
        """The mask without the filters of the smallest mean scores in each layer."""
        mask = alive.copy()
        kept, scores = unflatten(mask, layout), unflatten(self.scores(vector), layout)
        trainable = {spec.name for spec in layout.tensors if spec.trainable}
        for name in self._structure.filters:
            weight, bias = f"{name}.weight", f"{name}.bias"
            if weight not in trainable:
                continue  # frozen, or kept at home
            rows = len(kept[weight])
            living = np.flatnonzero(kept[weight].reshape(rows, -1).any(axis=1))
            count = kept_at(self.sparsity(round_), rows)
            if count >= living.size:
                continue
            ranks = scores[weight].reshape(rows, -1).mean(axis=1, dtype=np.float64)
            dead = living[~top_k(ranks[living], count)]
            kept[weight][dead] = False
            if bias in trainable:
                kept[bias][dead] = False
        return mask

    def survivors(self, mean: Vector, votes: Integers, clients: int, layout: Layout, state: GlobalState) -> Mask:
        """The mean, purged."""
        return self.purge(mean, state.round, layout, state.mask)


class Progressive(Scheduled):
    """A method whose sparsity rises from round to round, by the cubic schedule."""

    exponent = Option(3.0, "The exponent of the schedule; a larger one prunes sooner.", POSITIVE)
    frequency = Option(1, "Prune every this many rounds.", at_least(1))

    def sparsity(self, round_: int) -> float:
        """s_t, a fraction."""
        return sparsity_after(
            round_,
            final=self.plan.sparsity,
            first=self.first_prune,
            rounds=self.plan.rounds,
            frequency=self.frequency,
            exponent=self.exponent,
        )


class FedSparsifyGlobal(Progressive):
    """The mean is pruned by magnitude, a little more every round (FedSparsify-Global, arXiv:2204.12430)."""

    name = "fedsparsify-global"


class RandomPruning(Progressive):
    """FedSparsify's ablation: the same schedule, but one fixed random order of the positions, from the plan's seed."""

    name = "random"

    def scores(self, vector: Vector) -> Vector:
        """The ranks of one random permutation."""
        return np.random.default_rng([self.plan.seed, 0x52414E44]).permutation(vector.size).astype(np.float32)


class OneShot(Scheduled):
    """FedSparsify's baseline: dense until round t0, then S at once, then tuning under that mask to the end.

    The paper prunes at round 90 of 100 or 190 of 200.
    """

    name = "one-shot"
    first_prune = replace(
        Scheduled.first_prune, derived=lambda plan: max(1, plan.rounds - _TUNING), derived_text=f"(rounds-{_TUNING})"
    )

    def sparsity(self, round_: int) -> float:
        """S from the first round after t0, 0 until then."""
        return self.plan.sparsity if round_ > self.first_prune else 0.0
