"""A round of six nodes up to the announcement of its cohort, by the functions of ``edge_client.round`` alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from edge_client.keys import Kit
from edge_client.learning.network import first_state
from edge_client.ledger import Ledger, Sent
from edge_client.round import Sum, Update, admit_cohort, attend, close_update, dither_of, open_sum, quantised
from edge_client.sparsify import GlobalState
from edge_client.state import Pending
from protocol.call import Call
from protocol.cohort import Cohort, gather_cohort
from protocol.plan import Plan
from protocol.wire import Aggregate, decode_aggregate, encode_aggregate
from tests import factories
from tests.edge_client.federation import FIRST, NODES, RUN, Federation, add_up, federation, random_vector

SIZE = 51
LAYOUT = factories.layout(SIZE)
STATE = first_state(random_vector(0, SIZE), LAYOUT)
PLAN = Plan(max_cohort=6)


@dataclass(frozen=True)
class Scene:
    """A round up to the announcement: six nodes are provisioned, some are ready, and the aggregator has heard them."""

    fed: Federation
    waiting: Mapping[int, Pending]
    cohort: Cohort

    @property
    def kits(self) -> Mapping[int, Kit]:
        return self.fed.kits

    def admit(self, node: int, announced: bytes, call: Call = FIRST, given: Sequence[Sent] = ()) -> Cohort:
        return admit_cohort(
            announced, call, self.waiting[node], Ledger(Path(), given=list(given)), self.kits[node], PLAN
        )

    def contribution(self, node: int, cohort: Cohort, call: Call = FIRST) -> bytes:
        pending, kit = self.waiting[node], self.kits[node]
        dither = dither_of(PLAN, call, node, pending.values.size)
        integers, _ = quantised(pending, cohort, node, PLAN, dither)
        return close_update(integers, pending.votes, cohort, call, kit, PLAN, pending.sealed)

    @cached_property
    def aggregate_bytes(self) -> bytes:
        sent = {node: self.contribution(node, self.cohort) for node in self.waiting}
        return add_up(PLAN, self.fed.roster, self.cohort, 1, sent)

    def aggregate(self) -> Aggregate:
        return decode_aggregate(self.aggregate_bytes, PLAN.parameters)

    def open(self, aggregate: Aggregate, run: bytes = RUN, round_: int = 1, plan: Plan = PLAN) -> Sum:
        data = encode_aggregate(aggregate, plan.parameters)
        return open_sum(data, run, round_, self.kits[NODES[0]], plan, LAYOUT)


def ready(kit: Kit, call: Call = FIRST, state: GlobalState = STATE, plan: Plan = PLAN) -> Pending:
    """An attendance that waits for its cohort."""
    trained = state.vector + random_vector(kit.node, state.vector.size, 0.1)
    return attend(call, kit, plan, LAYOUT, state, Update(trained, np.zeros(0, np.bool_), 10 + kit.node))


def scene(ready_nodes: int = 4) -> Scene:
    """The round of the first ``ready_nodes`` of six."""
    fed = federation(PLAN, nodes=6)
    waiting = {node: ready(fed.kits[node]) for node in NODES[:ready_nodes]}
    return Scene(fed, waiting, gather_cohort([p.attendance for p in waiting.values()], fed.roster))
