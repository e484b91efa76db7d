"""A few encrypted rounds of a method, and what its plaintext twin needs to run the same ones in the clear."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_client.client import Client
from edge_client.learning.data import Share, part
from edge_client.learning.network import Network, build_network
from edge_client.learning.partition import partition
from edge_client.sparsify import GlobalState
from edge_client.sums import state_after
from protocol.grid import clips
from protocol.layout import Vector, flatten
from protocol.plan import Plan
from tests.edge_client import tiny
from tests.edge_client.federation import RUN, Federation, federation, play_round
from tests.edge_client.sparsify.plaintext_twin import Model, Rows

CLIENTS = 4


@dataclass(frozen=True, eq=False)
class Encrypted:
    """What came out of some encrypted rounds.

    Attributes:
        network: The network, at its initial weights; the twin may train it.
        learners: The rows of each client.
        seeds: The seed of each client's walk through its rows, by round (from 0) and position.
        states: The state after each round.
        tolerances: How far the twin's weights may be away after each round.
        fed: The federation.
        clients: The clients, by number.
        aggregate: The last aggregate.
    """

    network: Network
    learners: list[Rows]
    seeds: list[list[int]]
    states: list[GlobalState]
    tolerances: list[float]
    fed: Federation
    clients: Mapping[int, Client]
    aggregate: bytes

    def seed_of(self, round_: int, position: int) -> int:
        """The seed of a client's walk through its rows in a round, from 1."""
        return self.seeds[round_ - 1][position]

    def flat(self, tensors: Model) -> Vector:
        """The twin's tensors as our vector."""
        return flatten({name: tensor.numpy() for name, tensor in tensors.items()}, self.network.layout)


def encrypted(plan: Plan, folder: Path, rounds: int) -> Encrypted:
    """Play the rounds between four clients of 16, 24, 32 and 40 rows."""
    fed = federation(plan, nodes=CLIENTS)
    clients, nodes = fed.clients(folder), list(fed.kits)
    network = build_network(plan, (5,), 4, RUN)
    data = tiny.data()
    shares: list[Share] = [
        part(data, rows, k, CLIENTS)
        for k, rows in enumerate(partition("group", data.train_y, data.groups, CLIENTS, plan.seed))
    ]
    seeds = [
        [int(np.random.default_rng([plan.run_seed(RUN), round_, node]).integers(1 << 31)) for node in nodes]
        for round_ in range(1, plan.rounds + 1)
    ]
    aggregate, state, states, tolerances = b"", network.initial, [], []
    for round_ in range(1, rounds + 1):
        # Each client's rounding moves the sum by less than a step; the rounds of training after it pass that on.
        step = float(clips(state.vector, network.layout).max()) / plan.parameters.grid.levels
        tolerances.append(round_ * 2 * CLIENTS * step)
        aggregate = play_round(clients, fed, round_, aggregate).aggregate
        state = state_after(aggregate, RUN, round_, fed.kits[nodes[0]], plan, network)
        states.append(state)
    rows = [(share.x, share.y) for share in shares]
    return Encrypted(network, rows, seeds, states, tolerances, fed, clients, aggregate)
