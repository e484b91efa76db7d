"""An aggregator that does what it likes, with one client's kit in its hands, before real clients with kits on disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator.summation import MaskedSum
from edge_client.client import Client, Reply
from edge_client.learning import data as datasets
from edge_client.learning.network import Network, build_network
from edge_client.round import dither_of, quantised, terms_of
from edge_client.sparsify import GlobalState
from edge_client.state import Pending, load_pending
from edge_client.sums import open_sum
from protocol.call import Call
from protocol.cohort import Cohort
from protocol.grid import Integers, steps
from protocol.layout import Vector
from protocol.openings import Nodes
from protocol.plan import Plan
from tests.edge_client.federation import (
    add_up,
    announcement,
    cohort_of,
    federation,
    invitation,
    open_up,
    release_of,
    tiny_plan,
)

Reals = NDArray[np.float64]
COLLUDER = 2
"""The node whose kit the aggregator holds."""

VICTIM = 8
NODES = (2, 3, 5, 8)


def loud_plan(**changes: Any) -> Plan:
    """A plan whose clients send all that they have trained, finely quantised."""
    return tiny_plan(**{"bits": 20, "partition": "iid", "max_cohort": 10} | changes)


class Hostile:
    """The aggregator.

    Args:
        folder: Where the clients' kits and states are.
        plan: The plan that all were provisioned for.
        nodes: Their numbers.
    """

    def __init__(self, folder: Path, plan: Plan, nodes: Sequence[int] = NODES) -> None:
        self.folder, self.plan = folder, plan
        self.fed = federation(plan, nodes=len(nodes), numbers=nodes)
        self.clients: Mapping[int, Client] = self.fed.clients(folder)
        self.invited: dict[Call, frozenset[int]] = {}

    def state_folder(self, node: int) -> Path:
        """Where a node keeps its state."""
        return self.folder / str(node) / "state"

    def pending(self, node: int) -> Pending:
        """What waits at a node, which nobody else sees."""
        return load_pending(self.state_folder(node))

    def train(
        self, call: Call, nodes: Sequence[int], last: bytes = b"", invited: Sequence[int] | None = None
    ) -> dict[int, Reply]:
        """Ask these nodes to train; those who are invited are the same, unless it is said otherwise."""
        self.invited[call] = frozenset(invited or nodes)
        frames = invitation(self.invited[call], last)
        return {node: self.clients[node].train(call, frames) for node in nodes}

    def cohort(self, trained: Mapping[int, Reply], nodes: Sequence[int], groups: Sequence[Nodes] = ()) -> Cohort:
        """The cohort of these nodes, in these groups."""
        return cohort_of({node: trained[node] for node in nodes}, self.fed.roster, groups)

    def announced(
        self, call: Call, trained: Mapping[int, Reply], nodes: Sequence[int], to: int, groups: Sequence[Nodes] = ()
    ) -> dict[str, bytes]:
        """What a node is told of the cohort of these."""
        return announcement(self.cohort(trained, nodes, groups), trained, self.invited[call], to)

    def contributions(
        self,
        call: Call,
        trained: Mapping[int, Reply],
        nodes: Sequence[int],
        inside: Sequence[int] | None = None,
        groups: Sequence[Nodes] = (),
    ) -> dict[int, bytes]:
        """Announce a cohort, by default to all of its members: what they send."""
        return {
            node: self.clients[node]
            .contribute(call, self.announced(call, trained, nodes, node, groups))
            .frames["contribution"]
            for node in inside or nodes
        }

    def masked(
        self,
        call: Call,
        trained: Mapping[int, Reply],
        nodes: Sequence[int],
        inside: Sequence[int] | None = None,
        groups: Sequence[Nodes] = (),
    ) -> MaskedSum:
        """Announce a cohort, by default to all of its members, and add up what they send."""
        sent = self.contributions(call, trained, nodes, inside, groups)
        return self.added(call, trained, nodes, sent, groups)

    def added(
        self,
        call: Call,
        trained: Mapping[int, Reply],
        nodes: Sequence[int],
        sent: Mapping[int, bytes],
        groups: Sequence[Nodes] = (),
    ) -> MaskedSum:
        """Add up what the members of a cohort have sent."""
        return add_up(self.fed, self.cohort(trained, nodes, groups), call, trained, sent, self.invited[call])

    def opened(self, call: Call, total: MaskedSum) -> bytes:
        """Ask all who are in a sum to release it: the aggregate."""
        release = release_of(total, terms=True)
        consents = {node: self.clients[node].release(call, release).frames["consent"] for node in sorted(total.nodes)}
        return open_up(self.fed, total, consents)

    def sum_of(self, call: Call, trained: Mapping[int, Reply], nodes: Sequence[int]) -> bytes:
        """Announce a cohort, add up what its members send, and have it released: the aggregate."""
        return self.opened(call, self.masked(call, trained, nodes))

    def round(self, call: Call, nodes: Sequence[int], last: bytes = b"") -> bytes:
        """A whole round: the aggregate."""
        return self.sum_of(call, self.train(call, nodes, last), nodes)

    def start(self, run: bytes) -> GlobalState:
        """The state that a run begins with, which every client knows."""
        return self.network(run).initial

    def network(self, run: bytes) -> Network:
        """The network of a run."""
        whole = datasets.load(self.plan.data)
        return build_network(self.plan, whole.input_shape, whole.classes, run)

    def updates(self, call: Call, aggregate: bytes, attendances: Mapping[int, Reply], nodes: Sequence[int]) -> Reals:
        """What the colluder reads: the weighted sum of these nodes' updates in round 1, float64[P]."""
        network = self.network(call.run)
        opened = open_sum(aggregate, call.run, call.round, self.fed.kits[COLLUDER], self.plan, network.layout)
        terms, total = terms_of(network.initial, network.layout), self._total(attendances, nodes)
        step = steps(terms.clips, network.layout, terms.support, self.plan.parameters.grid)
        moved: Reals = (opened.values * step - network.initial.vector) * total
        return moved

    def own(self, call: Call, attendances: Mapping[int, Reply], nodes: Sequence[int], node: int) -> Reals:
        """What a colluding node itself has added to that sum."""
        pending, cohort = self.pending(node), self.cohort(attendances, nodes)
        dither = dither_of(self.plan, call, node, pending.values.size)
        integers, _ = quantised(pending, cohort, node, self.plan, dither)
        weight = cohort.weights(self.plan.max_share)[node]
        moved: Reals = integers * pending.step * self._total(attendances, nodes) - weight * self.start(call.run).vector
        return moved

    def _total(self, attendances: Mapping[int, Reply], nodes: Sequence[int]) -> int:
        return sum(self.cohort(attendances, nodes).weights(self.plan.max_share).values())


def correlation(guess: Vector | Reals | Integers, truth: Vector | Reals) -> float:
    """How much a guess tells of the truth, between 0 and 1."""
    return float(abs(np.corrcoef(guess, truth)[0, 1]))


def beyond(public: Reals, vector: Vector | Reals) -> Reals:
    """What a vector holds that is no multiple of one that everybody knows anyway."""
    rest: Reals = vector - public * (vector @ public / (public @ public))
    return rest
