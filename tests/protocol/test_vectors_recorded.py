"""The recorded round: what four clients made once, of which one was lost, adds up and opens for ever."""

from dataclasses import asdict, replace

import numpy as np

from aggregator.recovery import Recovery
from aggregator.summation import CohortSum, MaskedSum
from edge_client.cipher import RoundCipher
from edge_client.sums import open_sum
from protocol.ciphertext import restore, truncate
from protocol.cohort import decode_cohort
from protocol.grid import dequantise, steps
from protocol.lanes import unpack
from protocol.plan import Plan, plan_from_config
from protocol.release import decode_release
from protocol.wire import Contribution, decode_aggregate, decode_contribution, encode_aggregate
from tests.factories import kits, layout
from tests.protocol.replaying import read, roster

CASE = read("sum_0")
RUN, ROUND = bytes.fromhex(CASE["run"]), CASE["round"]
COHORT = decode_cohort(bytes.fromhex(CASE["cohort"]), roster())
MEMBERS = {member.node: member for member in COHORT.members}
RELEASE = decode_release(bytes.fromhex(CASE["release"]))
AGGREGATE = bytes.fromhex(CASE["aggregate"])


def plan() -> Plan:
    return plan_from_config(CASE["config"])


def contributions() -> list[Contribution]:
    return [
        decode_contribution(bytes.fromhex(data), MEMBERS[node], len(MEMBERS), plan().parameters, roster())
        for node, data in zip(sorted(RELEASE.nodes), CASE["contributions"], strict=True)
    ]


def masked() -> MaskedSum:
    """The sum of the recorded contributions."""
    total = CohortSum(COHORT, plan())
    for contribution in contributions():
        total.add(contribution)
    dealt = dict(zip(sorted(MEMBERS), map(bytes.fromhex, CASE["dealt"]), strict=True))
    made = total.masked(CASE["attempt"], frozenset(CASE["invited"]), dealt)
    total.close()
    return made


def test_the_recorded_aggregate_opens_to_the_recorded_integers_at_every_node_of_the_roster() -> None:
    made = layout(*CASE["tensors"])
    for kit in kits(plan(), roster().nodes).values():
        opened = open_sum(AGGREGATE, RUN, ROUND, kit, plan(), made)
        assert (opened.values.tolist(), opened.votes.tolist()) == (CASE["values"], CASE["votes"])
        assert (asdict(opened.told.figures), opened.told.spoiled) == (CASE["figures"], 0)
        assert opened.clients == len(CASE["contributions"]) == len(CASE["invited"]) - 1
        step = steps(opened.terms.clips, made, opened.terms.support, plan().parameters.grid)
        assert dequantise(opened.values, step * opened.whole).tolist() == CASE["mean"]


def test_the_recorded_contributions_and_consents_still_make_the_recorded_aggregate() -> None:
    total = masked()
    assert total.nodes == RELEASE.nodes < MEMBERS.keys()
    assert {contribution.cohort for contribution in contributions()} == {RELEASE.cohort} == {COHORT.digest(1)}
    recovery = Recovery(MaskedSum.from_bytes(total.to_bytes(), roster()), plan(), roster())
    for node, data in zip(sorted(RELEASE.nodes), CASE["consents"], strict=True):
        assert not recovery.complete
        recovery.admit(node, bytes.fromhex(data))
    assert recovery.complete
    (aggregate,) = total.aggregates(recovery.masks(), plan(), recovery.vouchers, recovery.sealed)
    assert encode_aggregate(aggregate, plan().parameters) == AGGREGATE


def test_neither_a_single_recorded_contribution_nor_their_masked_sum_shows_its_values() -> None:
    """Whoever may decrypt and holds either sees its masks: not even the count is what it was."""
    p, recorded, alone = plan().parameters, decode_aggregate(AGGREGATE, plan().parameters), contributions()[0]
    first = truncate(masked().parts[0].halves[0].ravel()[: recorded.first.size], p.drop_down)
    of_one = truncate(restore(alone.first, p.drop_up), p.drop_down)
    kit, values = kits(plan(), roster().nodes)[1], len(CASE["values"])
    for posed in (replace(recorded, first=first), replace(recorded, first=of_one, second=(alone.seeds,), clients=1)):
        with RoundCipher(p, kit.secret.bfv_seed(RUN, ROUND)) as cipher:
            slots = cipher.decrypt(decode_aggregate(encode_aggregate(posed, p), p))
        cut = p.values.slots(values + p.trailing)
        lanes = unpack(slots[:cut], cut * p.values.per_slot, p.values)
        assert lanes[values] != posed.clients
        assert np.abs(lanes).max() > 1000
