"""``edge_client.sparsify.fedavg``: everything stays."""

import numpy as np

from edge_client.sparsify import GlobalState
from edge_client.sparsify.fedavg import FedAvg
from protocol.layout import Layout, TensorSpec
from tests.edge_client.federation import tiny_plan


def test_everything_survives_whatever_its_value_and_the_plans_sparsity() -> None:
    layout = Layout((TensorSpec("a", (6,), True), TensorSpec("b", (2,), False)))
    mean = np.array([0, 1, -1, 0, 1e-30, 5, 0, 0], np.float32)
    for round_ in (1, 2, 3):
        state = GlobalState(round_, mean, np.ones(8, np.bool_))
        kept = FedAvg(tiny_plan(sparsity=0.9)).survivors(mean, np.zeros(8, np.int64), 3, layout, state)
        assert kept.tolist() == [True] * 8
