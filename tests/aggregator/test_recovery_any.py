"""``aggregator.recovery``: whichever members are lost and however many may collude, what is opened is the clear sum."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.admission import ContributionAdmission
from aggregator.recovery import Recovery
from aggregator.summation import CohortSum, MaskedSum, dealt_to
from edge_client.dealing import Secrets
from edge_client.keys import Kit
from edge_client.sums import Sum, open_sum
from protocol.call import Call
from protocol.cohort import gather_cohort
from protocol.openings import encode_nodes, smallest
from protocol.pairwise import mask, pair_key, self_key
from protocol.plan import Plan
from protocol.release import Release, encode_release
from protocol.sharing import threshold
from protocol.wire import encode_aggregate
from tests.aggregator.stub_grid import LAYOUT, NODES, StubClient, make_kits, small_plan

CALL = Call(bytes(range(16)), 1, 1)
MOST_COLLUDERS = 4


@cache
def kits(colluders: int) -> tuple[Plan, dict[int, Kit]]:
    """The plan under so many colluders, and what its nodes were provisioned with."""
    plan = small_plan(colluders=colluders, min_cohort=smallest(colluders))
    return plan, {kit.node: kit for kit in make_kits(len(NODES), plan)}


class Cohort:
    """Nodes of which some attend, and of those some contribute."""

    def __init__(self, colluders: int, invited: set[int], members: set[int], inside: set[int]) -> None:
        self.plan, provisioned = kits(colluders)
        self.clients = {node: StubClient(provisioned[node], self.plan, votes=True) for node in sorted(members)}
        self.roster = provisioned[NODES[0]].roster
        asked = {"invited": encode_nodes(invited)}
        trained = {node: client.train(CALL, asked) for node, client in self.clients.items()}
        self.cohort = gather_cohort([frames["attendance"] for frames in trained.values()], self.roster)
        dealt = {node: frames["shares"] for node, frames in trained.items()}
        admission = ContributionAdmission(self.cohort, 1, self.plan, self.roster)
        total = CohortSum(self.cohort, self.plan)
        for node in sorted(inside):
            shares = dealt_to(node, self.cohort, frozenset(invited), dealt)
            frames = self.clients[node].contribute(CALL, {"cohort": self.cohort.encode(), "shares": shares})
            total.add(admission.admit(node, frames["contribution"]))
        self.total: MaskedSum = total.masked(1, frozenset(invited), dealt)
        total.close()

    def consent(self, node: int, terms: bool) -> bytes:
        """What a node answers to the release of the sum."""
        asked = Release(CALL.run, 1, 1, len(self.clients), self.cohort.digest(1), terms, self.total.sets)
        return self.clients[node].release(CALL, {"release": encode_release(asked)})["consent"]

    def secrets(self, node: int) -> Secrets:
        """What a member has masked its contribution with."""
        pending = self.clients[node].pending
        assert pending is not None
        return pending.secrets

    def opened(self, recovery: Recovery) -> Sum:
        (aggregate,) = self.total.aggregates(recovery.masks(), self.plan, recovery.vouchers, recovery.sealed)
        kit = self.clients[min(self.clients)].kit
        return open_sum(encode_aggregate(aggregate, self.plan.parameters), CALL.run, 1, kit, self.plan, LAYOUT)


@settings(max_examples=40)
@given(data=st.data())
def test_a_quorum_of_any_cohort_after_any_losses_gives_the_clear_sum_and_fewer_give_nothing(
    data: st.DataObject,
) -> None:
    colluders = data.draw(st.integers(0, MOST_COLLUDERS))
    invited = data.draw(st.sets(st.sampled_from(NODES), min_size=smallest(colluders)))
    least = threshold(len(invited), colluders)
    fewest = max(least, smallest(colluders))
    members = data.draw(st.sets(st.sampled_from(sorted(invited)), min_size=fewest))
    inside = data.draw(st.sets(st.sampled_from(sorted(members)), min_size=fewest))
    order = data.draw(st.permutations(sorted(inside)))

    made = Cohort(colluders, invited, members, inside)
    recovery = Recovery(made.total, made.plan, made.roster)
    for count, node in enumerate(order[:least]):
        assert not recovery.complete, f"{count} of {len(inside)} have consented"
        recovery.admit(node, made.consent(node, terms=count == 0))
    assert recovery.complete
    opened = made.opened(recovery)
    clear = [made.clients[node].integers(made.cohort, CALL)[0] for node in inside]
    votes = [pending.votes for node in inside if (pending := made.clients[node].pending)]
    assert opened.values.tolist() == np.sum(clear, axis=0).tolist()
    assert opened.votes.tolist() == np.sum(votes, axis=0).tolist()
    assert opened.clients == len(inside)


@settings(max_examples=15)
@given(data=st.data())
def test_on_however_many_cores_the_masks_that_are_left_are_the_same(data: st.DataObject) -> None:
    cores = data.draw(st.integers(1, 9))
    inside = data.draw(st.sets(st.sampled_from(NODES), min_size=threshold(len(NODES), 1)))
    made = Cohort(1, set(NODES), set(NODES), inside)
    recovery = Recovery(made.total, made.plan, made.roster)
    for node in sorted(inside):
        recovery.admit(node, made.consent(node, terms=node == min(inside)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
        (left,) = recovery.masks()
    t, digest = made.plan.parameters.plain_modulus, made.cohort.digest(1)
    expected = np.zeros(left.size, np.uint64)
    for node in inside:
        secrets = made.secrets(node)
        lost = {
            member.node: pair_key(secrets.shared(member.exchange), digest, (node, member.node))
            for member in made.cohort.members
            if member.node not in inside
        }
        expected += mask(left.size, node, self_key(secrets.seed, digest, node), lost, t)
        expected %= np.uint64(t)
    assert left.tolist() == expected.tolist()
