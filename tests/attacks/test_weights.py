"""Attack 8: a client claims to have trained on all samples of the world."""

from pathlib import Path

import numpy as np
import pytest

from edge_client import client as edge
from edge_client.learning.network import build_network
from edge_client.round import Update
from edge_client.sums import open_sum
from protocol.attendance import decode_attendance
from protocol.call import Call
from protocol.grid import dequantise
from protocol.layout import Mask, Vector
from tests.attacks.hostile import NODES, Hostile, loud_plan
from tests.edge_client.federation import RUN

CALL, LIAR = Call(RUN, 1, 1), 5
MOST = (1 << 32) - 1


@pytest.mark.parametrize(("most", "nodes"), [(0.5, NODES), (0.4, NODES), (0.34, NODES), (0.5, NODES[:3])])
def test_a_client_that_claims_all_samples_counts_for_its_largest_share_and_no_more(
    most: float, nodes: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = Hostile(tmp_path, loud_plan(max_share=most), NODES)

    def boast(values: Vector, votes: Mask, samples: int) -> Update:
        return Update(values + np.float32(0.25), votes, MOST)

    attendances = hostile.train(CALL, [node for node in nodes if node != LIAR], invited=nodes)
    with monkeypatch.context() as patch:
        patch.setattr(edge, "Update", boast)
        attendances |= hostile.train(CALL, [LIAR], invited=nodes)
    assert decode_attendance(attendances[LIAR].frames["attendance"], hostile.fed.roster).samples == MOST
    layout = build_network(hostile.plan, (5,), 4, RUN).layout
    opened = open_sum(hostile.sum_of(CALL, attendances, nodes), RUN, 1, hostile.fed.kits[2], hostile.plan, layout)
    weights = hostile.cohort(attendances, nodes).weights(most)
    share = weights[LIAR] / sum(weights.values())
    assert most - 2 / sum(weights.values()) <= share <= most
    assert all(weights[node] == 28 for node in nodes if node != LIAR)
    waiting = {node: hostile.pending(node) for node in nodes}
    step, levels = waiting[LIAR].step, hostile.plan.parameters.grid.levels
    clipped = {node: np.clip(waiting[node].values, -levels * step, levels * step) for node in nodes}
    expected = sum(weights[node] * clipped[node] for node in nodes) / sum(weights.values())
    assert np.abs(dequantise(opened.values, step) - expected).max() <= len(nodes) * step.max() + 1e-6
