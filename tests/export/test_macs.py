"""``export.macs``: the work of a graph is counted by weight and position."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.convert import convert
from export.macs import LayerWork, multiply_accumulates
from protocol.errors import ExportError
from tests.export.compacting import METADATA, seeded

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
def test_multiply_accumulates_count_each_weight_once_for_every_position() -> None:
    model = seeded(nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.Flatten(), nn.Linear(54, 2)))
    model.get_parameter("0.weight").data[0, 0, 0, 0] = 0
    model.get_parameter("2.weight").data[0, :5] = 0
    macs = multiply_accumulates(convert(model, (4, 8, 8), METADATA))
    assert (macs.dense, macs.remaining) == (6 * 18 * 9 + 108, (6 * 18 - 1) * 9 + 103)
    first, last = macs.layers
    assert first == LayerWork("0", weights=6 * 18, kept=6 * 18 - 1, dense=6 * 18 * 9, remaining=(6 * 18 - 1) * 9)
    assert (last.name, last.kept, last.weights) == ("2", 103, 108)


def test_weights_that_the_graph_computes_are_not_counted_as_zero_work() -> None:
    nodes = [
        helper.make_node("Neg", ["stored"], ["weight"]),
        helper.make_node("MatMul", ["input", "weight"], ["logits"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("input", "logits")]
    stored = [numpy_helper.from_array(np.ones((2, 2), np.float32), "stored")]
    graph = helper.make_graph(nodes, "coded", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(ExportError, match="weights of logits are computed in the graph"):
        multiply_accumulates(model.SerializeToString())
