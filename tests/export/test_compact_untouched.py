"""``export.compact``: what cannot shrink keeps its shape and is named."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.compact import compact
from tests.export.compacting import compacted, kill, plain, seeded

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
def test_grouped_convolutions_keep_their_shape_and_are_named() -> None:
    model = plain(nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 8, 1), flat=288)
    kill(model[0], 0, 1)
    kill(model[2], 0, 1)
    kill(model[4], 2)
    result = compacted(model)
    assert result.removed == {"4": (8, 7)}
    assert result.untouched == ("2: a convolution in 2 groups of more than one input channel",)


@pytest.mark.slow
def test_shared_weights_whose_copies_would_be_larger_stay_one_and_are_named() -> None:
    shared = nn.Linear(8, 8)
    model = seeded(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(8, 3)))
    kill(shared, 0)
    result = compacted(model, (6,))
    assert result.removed == {}
    assert len(result.untouched) == 2
    assert all("are shared, and two smaller copies would be larger" in reason for reason in result.untouched)
    assert result.parameters_after <= result.parameters_before


@pytest.mark.slow
def test_what_is_not_understood_keeps_its_channels_and_is_named() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(10, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.out(torch.cat([self.a(x).relu(), self.b(x).relu()], dim=1)))

    model = seeded(Joined())
    kill(model.get_submodule("a"), 0)
    result = compacted(model, (6,))
    assert result.removed == {}
    assert result.untouched == ("cat: Concat is not an operator that can be followed",)


@pytest.mark.slow
def test_a_graph_with_branches_is_left_alone_and_named() -> None:
    def branch(name: str) -> onnx.GraphProto:
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node("Identity", ["rows"], [name])], name, [], [value])

    nodes = [
        helper.make_node("MatMul", ["input", "weight"], ["rows"]),
        helper.make_node("If", ["flag"], ["logits"], then_branch=branch("yes"), else_branch=branch("no")),
    ]
    tensors = [
        numpy_helper.from_array(np.zeros((2, 2), np.float32), "weight"),
        numpy_helper.from_array(np.array(True), "flag"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("input", "logits")]
    graph = helper.make_graph(nodes, "branches", ends[:1], ends[1:], tensors)
    data = bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    )
    result = compact(data)
    assert result.model == data
    assert result.untouched == ("the whole graph: a node of it holds a graph of its own",)
