"""``fleet.running.mask_figures``: what the operator of a local run sees of its masks."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.keys import load_kit
from edge_client.learning.data import load
from edge_client.learning.network import build_network
from fleet.provisioning.kits import kit_name, provision
from fleet.results.opened_run import OpenedRun
from fleet.running.mask_figures import MaskWatch, agreement, work_left
from protocol.plan import Plan
from tests.edge_client.federation import RUN, tiny_plan


@given(masks=st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=2, max_size=6))
def test_agreement_is_the_pooled_intersection_over_union_of_all_pairs(masks: list[list[bool]]) -> None:
    rows = np.array(masks)
    pairs = [(a, b) for i, a in enumerate(rows) for b in rows[i + 1 :]]
    both, either = sum(int((a & b).sum()) for a, b in pairs), sum(int((a | b).sum()) for a, b in pairs)
    found = agreement(rows.sum(axis=0).astype(np.int64), len(rows))
    assert found == (both / either if either else None)


def test_work_left_weighs_every_tensor_by_its_multiply_accumulates() -> None:
    counts = {"conv": (10, 100), "fc": (50, 100), "fc.bias": (0, 10)}
    assert work_left(counts, {"conv": 9, "fc": 1}) == pytest.approx((90 + 50) / (900 + 100))


def test_a_watch_begins_with_the_initial_model(tmp_path: Path) -> None:
    plan: Plan = tiny_plan(method="sparsyfed", powerprop=1.25, sparsity=0.5)
    data = load(plan.data)
    network = build_network(plan, data.input_shape, data.classes, RUN)
    provision(tmp_path / "kits", 3, plan)
    watch = MaskWatch(OpenedRun(tmp_path, load_kit(tmp_path / "kits" / kit_name(0)), plan, 3, network, data))
    assert watch._alive.tolist() == network.initial.mask.tolist()
