"""A round of six nodes up to the announcement of its cohort, by the functions of ``edge_client.round`` alone."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from aggregator.summation import MaskedSum
from edge_client.client import Reply
from edge_client.consenting import admit_release, consent
from edge_client.dealing import take
from edge_client.keys import Kit
from edge_client.learning.network import first_state
from edge_client.round import Update, admit_cohort, attend, close_update, dither_of, quantised
from edge_client.sparsify import GlobalState
from edge_client.state import Pending
from edge_client.sums import Sum, open_sum, voucher
from protocol.call import Call
from protocol.cohort import Cohort, gather_cohort
from protocol.figures import NOTHING
from protocol.openings import Memory, Nodes
from protocol.plan import Plan
from protocol.release import decode_release
from protocol.wire import Aggregate, decode_aggregate, encode_aggregate
from tests import factories
from tests.edge_client.federation import (
    FIRST,
    NODES,
    RUN,
    Federation,
    add_up,
    announcement,
    federation,
    open_up,
    random_vector,
    release_of,
)
from tests.edge_client.tampering import spoilt

SIZE = 50
LAYOUT = factories.layout(SIZE)
STATE = first_state(random_vector(0, SIZE), LAYOUT)
PLAN = Plan(max_cohort=6)
TWELVE = (*NODES, 34, 55, 89, 144, 233, 377)
THREE_GROUPS = tuple(Nodes(TWELVE[start::3]) for start in range(3))
"""Four of twelve in each."""


@dataclass(frozen=True)
class Scene:
    """A round up to the announcement: six nodes are provisioned, some are ready, and the aggregator has heard them."""

    fed: Federation
    waiting: Mapping[int, Pending]
    cohort: Cohort
    call: Call = FIRST
    plan: Plan = PLAN

    @property
    def slots(self) -> int:
        """How many slots a contribution has."""
        return self.plan.parameters.slots(SIZE, 0)

    @property
    def kits(self) -> Mapping[int, Kit]:
        return self.fed.kits

    @property
    def trained(self) -> dict[int, Reply]:
        """What the nodes that are ready have answered to `train`."""
        return {
            node: Reply({"attendance": pending.attendance, "shares": pending.dealt})
            for node, pending in self.waiting.items()
        }

    def admit(self, node: int, announced: bytes, call: Call = FIRST) -> Cohort:
        return admit_cohort(announced, call, self.waiting[node], self.kits[node], self.plan)

    def told(self, node: int) -> Pending:
        """What waits at a node that has been told of the cohort."""
        frames = announcement(self.cohort, self.trained, self.kits, node)
        shares = tuple(take(frames["shares"], self.cohort.members, self.call, self.kits[node]))
        return replace(self.waiting[node], cohort=frames["cohort"], shares=shares)

    def contribution(self, node: int) -> bytes:
        pending, kit = self.told(node), self.kits[node]
        dither = dither_of(self.plan, self.call, node, pending.values.size)
        integers, _ = quantised(pending, self.cohort, node, self.plan, dither)
        return close_update(integers, NOTHING, self.cohort, self.call, kit, self.plan, pending)

    def summed(
        self, lost: Collection[int] = (), spoilers: Collection[int] = (), groups: Collection[int] | None = None
    ) -> MaskedSum:
        """The sums of these groups, without those who are lost."""
        sent = {node: self.contribution(node) for node in self.waiting if node not in lost}
        sent |= {node: spoilt(sent[node], self.cohort, self.kits[node], self.plan) for node in spoilers}
        return add_up(self.fed, self.cohort, self.call, self.trained, sent, groups=groups)

    def released(self, total: MaskedSum) -> bytes:
        """The aggregates of these sums, with the consent of all who are in them."""
        return open_up(self.fed, total, {node: self.consent(node, total) for node in sorted(total.nodes)})

    @cached_property
    def total(self) -> MaskedSum:
        return self.summed()

    def consent(self, node: int, total: MaskedSum) -> bytes:
        release, pending = decode_release(release_of(total, terms=True)["release"]), self.told(node)
        cohort = admit_release(release, pending, self.call, self.kits[node], self.plan)
        return consent(release, cohort, self.call, self.kits[node], self.plan, pending)

    @cached_property
    def aggregate_bytes(self) -> bytes:
        return self.released(self.total)

    def aggregate(self) -> Aggregate:
        return decode_aggregate(self.aggregate_bytes, self.plan.parameters)

    def vouched(self, aggregate: Aggregate) -> Aggregate:
        """The same with the voucher that a colluding client makes for whatever it says of itself."""
        counts, weights = (aggregate.clients, aggregate.members), (aggregate.weight, aggregate.total)
        secret = self.kits[NODES[0]].secret
        return replace(
            aggregate, voucher=voucher(secret, aggregate, aggregate.cohort, aggregate.group, counts, weights)
        )

    def open(self, *sums: Aggregate, run: bytes = RUN, round_: int = 1, plan: Plan | None = None) -> Sum:
        data = b"".join(encode_aggregate(each, self.plan.parameters) for each in sums)
        return open_sum(data, run, round_, self.kits[NODES[0]], plan or self.plan, LAYOUT)


def ready(
    kit: Kit,
    call: Call = FIRST,
    state: GlobalState = STATE,
    plan: Plan = PLAN,
    memory: Memory = frozenset(),
) -> Pending:
    """An attendance that waits for its cohort; the whole roster is invited."""
    trained = state.vector + random_vector(kit.node, state.vector.size, 0.1)
    update, invited = Update(trained, np.zeros(0, np.bool_), 10 + kit.node), frozenset(kit.roster.nodes)
    return attend(call, kit, plan, LAYOUT, state, update, invited, memory)


def scene(
    ready_nodes: int = 4, plan: Plan = PLAN, numbers: Sequence[int] = NODES, groups: Sequence[Nodes] = ()
) -> Scene:
    """The round of the first ``ready_nodes`` of all, in these groups."""
    fed = federation(plan, nodes=len(numbers), numbers=numbers)
    waiting = {node: ready(fed.kits[node], plan=plan) for node in numbers[:ready_nodes]}
    return Scene(fed, waiting, gather_cohort([p.attendance for p in waiting.values()], fed.roster, groups), plan=plan)
