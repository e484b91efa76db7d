"""``aggregator.summation``: the sum is exact, complete or not at all, and takes no more memory for more clients."""

import gc
import os
import tracemalloc
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from aggregator.admission import ContributionAdmission
from aggregator.summation import CohortSum
from edge_client.cipher import RoundCipher
from edge_client.round import open_sum
from protocol.call import Call
from protocol.cohort import Cohort, gather_cohort
from protocol.errors import MalformedMessage
from protocol.grid import Integers
from protocol.parameters import CHECKS, DEGREE, MODULUS, SEED_BYTES
from protocol.plan import Plan
from protocol.wire import Aggregate, Attendance, Contribution, decode_aggregate, encode_aggregate
from tests.aggregator.stub_grid import LAYOUT, StubClient, make_kits, small_plan

CALL = Call(bytes(range(16)), 1, 1)


@dataclass
class Party:
    """Four clients, their admitted contributions, and their integers in the clear."""

    plan: Plan
    clients: list[StubClient]
    cohort: Cohort
    contributions: list[Contribution]
    values: Integers
    votes: Integers

    def sum(self) -> CohortSum:
        return CohortSum(self.cohort, CALL.attempt, self.plan)

    def check(self, total: CohortSum) -> Aggregate:
        """The aggregate, after it has been opened and compared with the clear sum."""
        data = encode_aggregate(total.aggregate(), self.plan.parameters)
        opened = open_sum(data, CALL.run, CALL.round, self.clients[0].kit, self.plan, LAYOUT)
        assert np.array_equal(opened.values, self.values)
        assert np.array_equal(opened.votes, self.votes)
        return decode_aggregate(data, self.plan.parameters)


@pytest.fixture(scope="module")
def party() -> Party:
    plan = small_plan()
    clients = [StubClient(kit, plan, votes=True) for kit in make_kits(4, plan)]
    cohort = gather_cohort([client.train(CALL, b"")[0] for client in clients], clients[0].kit.roster)
    admission = ContributionAdmission(cohort, CALL.attempt, plan, clients[0].kit.roster)
    contributions = [admission.admit(c.kit.node, c.contribute(CALL, cohort.encode())[0]) for c in clients]
    values, votes = np.zeros(LAYOUT.size, np.int64), np.zeros(LAYOUT.size, np.int64)
    for client in clients:
        assert client.pending is not None
        values += client.integers(cohort, CALL)[0]
        votes += client.pending.votes
    return Party(plan, clients, cohort, contributions, values, votes)


def test_the_sum_opens_to_the_clear_sum_in_whatever_order_the_contributions_come(party: Party) -> None:
    for order in permutations(party.contributions):
        total = party.sum()
        for contribution in order:
            total.add(contribution)
        party.check(total)
        total.close()


def test_the_aggregate_says_whose_sum_it_is(party: Party) -> None:
    total = party.sum()
    for contribution in party.contributions:
        total.add(contribution)
    aggregate, member = party.check(total), party.cohort.members[0]
    assert (aggregate.run, aggregate.round, aggregate.attempt) == (CALL.run, CALL.round, CALL.attempt)
    assert (aggregate.clients, aggregate.values, aggregate.votes) == (4, LAYOUT.size, LAYOUT.size)
    assert (aggregate.plan, aggregate.key, aggregate.support) == (party.plan.digest, member.key, member.support)
    assert aggregate.cohort == party.cohort.digest(CALL.attempt)
    assert aggregate.sealed == party.contributions[0].sealed != b""
    total.close()


def test_a_sum_is_complete_with_its_last_member_and_not_before(party: Party) -> None:
    total = party.sum()
    for contribution in party.contributions:
        assert not total.complete
        total.add(contribution)
    assert total.complete
    total.close()


def test_a_residue_beyond_the_modulus_is_refused_and_nothing_is_added(party: Party) -> None:
    drop = party.plan.parameters.drop_up
    first = party.contributions[1].first.copy()
    first[-1] = ((MODULUS - 1) >> drop) + 1
    total = party.sum()
    total.add(party.contributions[0])
    with pytest.raises(MalformedMessage, match="below the modulus"):
        total.add(replace(party.contributions[1], first=first))
    for contribution in party.contributions[1:]:
        total.add(contribution)
    party.check(total)
    total.close()


@pytest.mark.parametrize("seeds", [0, 2])
def test_a_contribution_with_too_few_or_too_many_seeds_is_refused_and_nothing_is_added(
    party: Party, seeds: int
) -> None:
    total = party.sum()
    with pytest.raises(MalformedMessage, match="do not fit"):
        total.add(replace(party.contributions[0], seeds=(bytes(SEED_BYTES),) * seeds))
    for contribution in party.contributions:
        total.add(contribution)
    party.check(total)
    total.close()


def test_a_closed_sum_has_given_its_file_in_memory_back(party: Party) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        total = party.sum()
        total.add(party.contributions[0])
        total.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- large cohorts -----------------------------------------------------------------------------------


def large_cohort(members: int, values: int, plan: Plan) -> Cohort:
    """A cohort of attendances that nobody has signed: a sum looks at their sizes only."""
    one = Attendance(
        CALL.run, 1, 1, 0, 1, values, 0, plan.digest, bytes(16), bytes(32), bytes(32), bytes(16)
    )  # fmt: skip
    return Cohort(
        tuple(replace(one, node=node) for node in range(members)), tuple(bytes([n % 256]) for n in range(members))
    )


def contribution_of(node: int, cohort: Cohort, first: np.ndarray, seeds: tuple[bytes, ...]) -> Contribution:
    member = cohort.members[node]
    return Contribution(
        member.run, 1, 1, node, member.values, 0, member.plan, member.key, bytes(32), member.support,
        b"terms" if node == 0 else b"", seeds, first,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("members", "by_seeds"), [(479, True), (480, False)])
def test_the_second_half_is_added_up_where_the_seeds_would_take_more_bytes(members: int, by_seeds: bool) -> None:
    plan = small_plan(max_cohort=members, bits=8)
    cohort = large_cohort(members, 5, plan)
    slots = plan.parameters.slots(5, 0)
    total = CohortSum(cohort, CALL.attempt, plan)
    clear = np.zeros(slots, np.uint64)
    random = np.random.default_rng(members)
    with RoundCipher(plan.parameters, bytes(32)) as cipher:
        for node in range(members):
            plain = random.integers(0, plan.parameters.plain_modulus, slots, np.uint64)
            clear = (clear + plain) % np.uint64(plan.parameters.plain_modulus)
            total.add(contribution_of(node, cohort, *cipher.encrypt(plain)))
        aggregate = decode_aggregate(encode_aggregate(total.aggregate(), plan.parameters), plan.parameters)
        assert isinstance(aggregate.second, tuple) == by_seeds
        assert np.array_equal(cipher.decrypt(aggregate), clear)
    assert aggregate.clients == members
    total.close()


def resident() -> int:
    """The bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_memory_grows_from_five_contributions_to_fifty_by_their_seeds_alone() -> None:
    members, blocks = 50, 24
    plan = small_plan(max_cohort=members)
    p = plan.parameters
    values = (blocks * DEGREE - p.tags) * p.fields - CHECKS
    slots = p.slots(values, 0)
    cohort = large_cohort(members, values, plan)

    random = np.random.default_rng(7)
    total = CohortSum(cohort, CALL.attempt, plan)

    def add(nodes: range) -> None:
        for node in nodes:
            first = random.integers(0, MODULUS >> plan.parameters.drop_up, slots, np.uint64)
            seeds = tuple(random.bytes(SEED_BYTES) for _ in range(blocks))
            total.add(contribution_of(node, cohort, first, seeds))

    tracemalloc.start()
    try:
        add(range(5))
        gc.collect()
        traced, held = tracemalloc.get_traced_memory()[0], resident()
        add(range(5, members))
        gc.collect()
        traced, held = tracemalloc.get_traced_memory()[0] - traced, resident() - held
    finally:
        tracemalloc.stop()
    assert total.complete
    one, seeds = 8 * slots, 45 * blocks * SEED_BYTES
    overhead = 45 * blocks * 64  # of a bytes object and its place in a tuple
    assert 45 * one > 100 * (seeds + overhead)
    assert seeds <= traced <= seeds + overhead
    assert held < 8 * one
    total.close()
