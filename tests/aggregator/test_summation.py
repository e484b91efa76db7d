"""``aggregator.summation``: the sum is exact, complete or not at all, and takes no more memory for more clients."""

import contextlib
import gc
import os
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.admission import ContributionAdmission
from aggregator.summation import CohortSum, MaskedSum, dealt_to
from edge_client.cipher import RoundCipher
from edge_client.sums import open_sum, voucher
from protocol.attendance import Attendance
from protocol.call import Call
from protocol.cohort import Cohort, gather_cohort
from protocol.errors import CheckpointError, MalformedMessage
from protocol.figures import NOTHING
from protocol.grid import Integers
from protocol.openings import encode_nodes
from protocol.pairwise import mask, self_key
from protocol.parameters import DEGREE, MODULUS, SEED_BYTES
from protocol.plan import Plan
from protocol.wire import Aggregate, Contribution, decode_aggregate, encode_aggregate
from tests.aggregator.stub_grid import LAYOUT, StubClient, make_kits, small_plan

CALL = Call(bytes(range(16)), 1, 1)


@dataclass
class Party:
    """Four clients, their admitted contributions, and their integers in the clear."""

    plan: Plan
    clients: list[StubClient]
    cohort: Cohort
    dealt: dict[int, bytes]
    contributions: list[Contribution]
    values: Integers
    votes: Integers

    def sum(self) -> CohortSum:
        return CohortSum(self.cohort, self.plan)

    def masked(self, total: CohortSum) -> MaskedSum:
        return total.masked(CALL.attempt, self.cohort.nodes, self.dealt)

    def aggregate(self, total: MaskedSum) -> Aggregate:
        """The sum without the masks of its members, as a client vouches for it and with its terms."""
        p, digest, one = self.plan.parameters, self.cohort.digest(CALL.attempt), self.clients[0]
        left = np.zeros(p.slots(LAYOUT.size, LAYOUT.size), np.uint64)
        for client in self.clients:
            assert client.pending is not None
            own = self_key(client.pending.secrets.seed, digest, client.kit.node)
            left += mask(left.size, client.kit.node, own, {}, p.plain_modulus)
            left %= np.uint64(p.plain_modulus)
        weight = sum(self.cohort.weights(self.plan.max_share).values())
        vouched = voucher(one.kit.secret, self.cohort.members[0], digest, 0, (4, 4), (weight, weight))
        assert one.pending is not None
        return next(total.aggregates([left], self.plan, [vouched], one.pending.sealed))

    def check(self, total: CohortSum | MaskedSum) -> Aggregate:
        """The aggregate, after it has been opened and compared with the clear sum."""
        masked = self.masked(total) if isinstance(total, CohortSum) else total
        data = encode_aggregate(self.aggregate(masked), self.plan.parameters)
        opened = open_sum(data, CALL.run, CALL.round, self.clients[0].kit, self.plan, LAYOUT)
        assert np.array_equal(opened.values, self.values)
        assert np.array_equal(opened.votes, self.votes)
        return decode_aggregate(data, self.plan.parameters)


@pytest.fixture(scope="module")
def party() -> Party:
    plan = small_plan()
    clients = [StubClient(kit, plan, votes=True) for kit in make_kits(4, plan)]
    roster, invited = clients[0].kit.roster, frozenset(client.kit.node for client in clients)
    trained = {client.kit.node: client.train(CALL, {"invited": encode_nodes(invited)}) for client in clients}
    cohort = gather_cohort([frames["attendance"] for frames in trained.values()], roster)
    dealt = {node: frames["shares"] for node, frames in trained.items()}
    admission = ContributionAdmission(cohort, CALL.attempt, plan, roster)
    told = {node: {"cohort": cohort.encode(), "shares": dealt_to(node, cohort, invited, dealt)} for node in trained}
    sent = {c.kit.node: c.contribute(CALL, told[c.kit.node])["contribution"] for c in clients}
    contributions = [admission.admit(node, data) for node, data in sent.items()]
    values, votes = np.zeros(LAYOUT.size, np.int64), np.zeros(LAYOUT.size, np.int64)
    for client in clients:
        assert client.pending is not None
        values += client.integers(cohort, CALL)[0]
        votes += client.pending.votes
    return Party(plan, clients, cohort, dealt, contributions, values, votes)


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
    assert (aggregate.clients, aggregate.members) == (4, 4)
    assert (aggregate.values, aggregate.votes) == (LAYOUT.size, LAYOUT.size)
    assert aggregate.weight == aggregate.total == sum(party.cohort.weights(party.plan.max_share).values())
    assert (aggregate.plan, aggregate.key, aggregate.support) == (party.plan.digest, member.key, member.support)
    assert aggregate.cohort == party.cohort.digest(CALL.attempt)
    total.close()


def test_a_sum_knows_whose_contributions_are_in_it(party: Party) -> None:
    total = party.sum()
    for number, contribution in enumerate(party.contributions):
        assert total.nodes == {each.node for each in party.contributions[:number]}
        total.add(contribution)
    assert party.masked(total).nodes == party.cohort.nodes
    total.close()


# --- a sum that waits ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def masked(party: Party) -> MaskedSum:
    total = party.sum()
    for contribution in party.contributions:
        total.add(contribution)
    made = party.masked(total)
    total.close()
    return made


def test_a_sum_that_was_written_down_goes_on_where_it_was(party: Party, masked: MaskedSum) -> None:
    again = MaskedSum.from_bytes(masked.to_bytes(), party.clients[0].kit.roster)
    assert (again.attempt, again.invited, again.nodes) == (masked.attempt, masked.invited, masked.nodes)
    assert (again.cohort, again.dealt) == (masked.cohort, masked.dealt)
    assert [part.seeds for part in again.parts] == [part.seeds for part in masked.parts]
    party.check(again)


@given(data=st.data())
def test_a_sum_that_was_damaged_on_the_disk_is_an_error_or_the_same(
    data: st.DataObject, party: Party, masked: MaskedSum
) -> None:
    whole = masked.to_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    flip = bytes([whole[at] ^ data.draw(st.integers(1, 255))])
    damaged = data.draw(st.sampled_from([whole[:at], whole[:at] + flip + whole[at + 1 :], whole[at:]]))
    try:
        read = MaskedSum.from_bytes(damaged, party.clients[0].kit.roster)
    except CheckpointError:
        return
    assert (read.cohort, read.nodes) == (masked.cohort, masked.nodes)
    assert read.parts[0].halves[0].tolist() == masked.parts[0].halves[0].tolist()


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


@given(data=st.data())
def test_whatever_is_refused_in_between_the_sum_is_that_of_the_others_in_any_order(
    data: st.DataObject, party: Party
) -> None:
    p = party.plan.parameters
    damages: list[Callable[[Contribution], Contribution]] = [
        lambda one: replace(one, first=np.full_like(one.first, (MODULUS >> p.drop_up) + 1)),
        lambda one: replace(one, first=np.append(one.first[:-1], np.uint64(1 << 63))),
        lambda one: replace(one, first=one.first[:0]),
        lambda one: replace(one, first=np.zeros(DEGREE + 1, np.uint64)),
        lambda one: replace(one, seeds=(bytes(SEED_BYTES - 1),)),
        lambda one: replace(one, seeds=one.seeds * 2),
    ]
    good = [(one, False) for one in party.contributions]
    bad = data.draw(st.lists(st.tuples(st.sampled_from(party.contributions), st.sampled_from(damages)), max_size=4))
    everything = data.draw(st.permutations(good + [(damage(one), True) for one, damage in bad]))
    with contextlib.closing(party.sum()) as total:
        for contribution, damaged in everything:
            before = total.nodes
            if damaged:
                with pytest.raises(MalformedMessage):
                    total.add(contribution)
                assert total.nodes == before
            else:
                total.add(contribution)
                assert total.nodes == before | {contribution.node}
        party.check(total)


def test_of_what_was_added_nothing_is_held_but_its_seeds(party: Party) -> None:
    held: list[weakref.ref[Any]] = []

    def arrive() -> Iterator[Contribution]:
        for number, contribution in enumerate(party.contributions):
            assert sum(one() is not None for one in held) <= 1, f"{number} contributions have been added"
            fresh = replace(contribution, first=contribution.first.copy())
            held.append(weakref.ref(fresh.first))
            yield fresh

    with contextlib.closing(party.sum()) as total:
        for contribution in arrive():
            total.add(contribution)
        del contribution
        assert not any(one() is not None for one in held)
        party.check(total)


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
    digests: dict[str, Any] = dict.fromkeys(("model", "support", "invited", "exchange", "seed", "dealt"), bytes(32))
    one = Attendance(
        CALL.run, 1, 1, 0, 1, values, 0, plan.digest, bytes(16), **digests, figures=NOTHING, spoiled=0,
        memory=frozenset(),
    )  # fmt: skip
    return Cohort(
        tuple(replace(one, node=node) for node in range(members)), tuple(bytes([n % 256]) for n in range(members))
    )


def contribution_of(node: int, cohort: Cohort, first: np.ndarray, seeds: tuple[bytes, ...]) -> Contribution:
    member = cohort.members[node]
    return Contribution(
        member.run, 1, 1, node, member.values, 0, member.plan, member.key, bytes(32), member.support,
        (), seeds, first,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("members", "by_seeds"), [(479, True), (480, False)])
def test_the_second_half_is_added_up_where_the_seeds_would_take_more_bytes(members: int, by_seeds: bool) -> None:
    plan = small_plan(max_cohort=members, bits=8)
    cohort = large_cohort(members, 5, plan)
    slots = plan.parameters.slots(5, 0)
    total = CohortSum(cohort, plan)
    clear = np.zeros(slots, np.uint64)
    random = np.random.default_rng(members)
    with RoundCipher(plan.parameters, bytes(32)) as cipher:
        for node in range(members):
            plain = random.integers(0, plan.parameters.plain_modulus, slots, np.uint64)
            clear = (clear + plain) % np.uint64(plan.parameters.plain_modulus)
            total.add(contribution_of(node, cohort, *cipher.encrypt(plain)))
        made = next(
            total.masked(1, frozenset(), {}).aggregates([np.zeros(slots, np.uint64)], plan, [bytes(32)], b"terms")
        )
        aggregate = decode_aggregate(encode_aggregate(made, plan.parameters), plan.parameters)
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
    values = (blocks * DEGREE - p.tags) * p.fields - p.trailing
    slots = p.slots(values, 0)
    cohort = large_cohort(members, values, plan)

    random = np.random.default_rng(7)
    total = CohortSum(cohort, plan)

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
    assert len(total.nodes) == members
    one, seeds = 8 * slots, 45 * blocks * SEED_BYTES
    overhead = 45 * blocks * 64  # of a bytes object and its place in a tuple
    assert 45 * one > 100 * (seeds + overhead)
    assert seeds <= traced <= seeds + overhead
    assert held < 8 * one
    total.close()
