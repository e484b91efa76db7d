"""One whole round of four clients, of which one is lost: recorded once, since secrets and encryption are random."""

from dataclasses import asdict, replace
from functools import reduce
from operator import add

import numpy as np

from aggregator.recovery import Recovery
from aggregator.summation import CohortSum, dealt_to
from edge_client.consenting import admit_release, consent
from edge_client.dealing import take
from edge_client.round import Update, admit_cohort, attend, close_update, dither_of, quantised
from edge_client.sparsify import GlobalState
from protocol.call import Call
from protocol.cohort import gather_cohort
from protocol.figures import Figures
from protocol.grid import dequantise
from protocol.release import Release, encode_release
from protocol.wire import decode_contribution, encode_aggregate
from tests import factories
from tests.vectors.scene import KITS, PLAN, SHAPES, TERMS, Case

_CALL, _LOST = Call(factories.RUN, 1, 1), 2
FIGURES = {node: Figures(node, 2 * node, 3 * node, 4 * node, -5 * node, 6 * node, 7 * node) for node in KITS}


def record_sum() -> Case:
    """The round as bytes, from attendances to the aggregate, and the integers that it must decrypt to for ever."""
    layout, invited, roster = factories.layout(*SHAPES), frozenset(KITS), KITS[1].roster
    state = GlobalState(0, np.array([0.1, -0.2, 0, -1.5, 0, 1, 0, 0.5], np.float32), TERMS.support.mask)
    waiting = {
        node: attend(_CALL, kit, PLAN, layout, state, _update(node), invited) for node, kit in sorted(KITS.items())
    }
    dealt = {node: pending.dealt for node, pending in waiting.items()}
    announced = gather_cohort([pending.attendance for pending in waiting.values()], roster).encode()
    clear, sent = {}, {}
    for node, pending in waiting.items():
        cohort = admit_cohort(announced, _CALL, pending, KITS[node], PLAN)
        shares = tuple(take(dealt_to(node, cohort, invited, dealt), cohort.members, _CALL, KITS[node]))
        waiting[node] = replace(pending, cohort=announced, shares=shares)
        clear[node], _ = quantised(pending, cohort, node, PLAN, dither_of(PLAN, _CALL, node, pending.values.size))
        sent[node] = close_update(clear[node], FIGURES[node], cohort, _CALL, KITS[node], PLAN, waiting[node])
    del clear[_LOST], sent[_LOST]
    total = CohortSum(cohort, PLAN)
    for member in cohort.members:
        if member.node in sent:
            total.add(decode_contribution(sent[member.node], member, len(KITS), PLAN.parameters, roster))
    masked = total.masked(1, invited, dealt)
    total.close()
    release = Release(_CALL.run, 1, 1, len(KITS), cohort.digest(1), terms=True, sets=masked.sets)
    recovery, consents = Recovery(masked, PLAN, roster), {}
    for node in sorted(masked.nodes):
        agreed = admit_release(release, waiting[node], _CALL, KITS[node], PLAN)
        consents[node] = consent(release, agreed, _CALL, KITS[node], PLAN, waiting[node])
        recovery.admit(node, consents[node])
    (aggregate,) = masked.aggregates(recovery.masks(), PLAN, recovery.vouchers, recovery.sealed)
    values = np.sum([*clear.values()], axis=0)
    whole = aggregate.total / aggregate.weight
    return {
        "config": PLAN.to_config(),
        "secret": factories.SECRET.hex(),
        "run": _CALL.run.hex(),
        "round": 1,
        "attempt": 1,
        "tensors": list(SHAPES),
        "invited": sorted(invited),
        "cohort": announced.hex(),
        "dealt": [dealt[node].hex() for node in sorted(invited)],
        "contributions": [data.hex() for data in sent.values()],
        "release": encode_release(release).hex(),
        "consents": [data.hex() for data in consents.values()],
        "aggregate": encode_aggregate(aggregate, PLAN.parameters).hex(),
        "values": values.tolist(),
        "votes": np.sum([waiting[node].votes for node in sent], axis=0).tolist(),
        "figures": asdict(reduce(add, (FIGURES[node] for node in sent))),
        "mean": dequantise(values, waiting[1].step * whole).tolist(),
    }


def _update(node: int) -> Update:
    """What a client has trained: around zero, one of them clipped."""
    values = np.array([0.1, -0.2, 0.6, 0.0, 0.0, -1.5, node / 100_000, 2.9], np.float32)
    return Update(values, np.arange(8) % (node % 3 + 1) == 0, 100 + node % 100)
