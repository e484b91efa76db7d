"""``export.scaling``: the file takes raw values and computes what the network computes from normalised ones."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export.compact import compact
from export.convert import convert
from export.encode import encode
from export.parity import check_parity, infer, open_session
from export.scaling import Scaling
from protocol.errors import ExportError

RAW = np.random.default_rng(0).integers(0, 256, (40, 1, 6, 6)).astype(np.float32)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


@pytest.mark.slow
@pytest.mark.parametrize("scaling", [Scaling(), Scaling(255.0), Scaling(1.0, 10.0), Scaling(64.0, 127.5)])
def test_raw_values_give_the_logits_of_normalised_ones(scaling: Scaling) -> None:
    model = network()
    data = scaling.into_file(convert(model, (1, 6, 6), {"run": "r"}))
    with torch.no_grad():
        expected = model(torch.from_numpy((RAW - scaling.shift) / np.float32(scaling.scale))).numpy()
    np.testing.assert_allclose(infer(open_session(data), RAW), expected, atol=1e-5)
    assert check_parity(scaling.into_module(model), data, RAW).max_abs_diff < 1e-5
    assert {entry.key: entry.value for entry in onnx.load_from_string(data).metadata_props} == {"run": "r"}


@pytest.mark.slow
def test_names_of_input_and_weights_stay_and_neutral_numbers_add_nothing() -> None:
    plain = onnx.load_from_string(convert(network(), (1, 6, 6), {}))
    scaled = onnx.load_from_string(Scaling(255.0).into_file(plain.SerializeToString()))
    assert [value.name for value in scaled.graph.input] == ["input"]
    assert {t.name for t in scaled.graph.initializer} - {t.name for t in plain.graph.initializer} == {"input.scaled.by"}
    same = onnx.load_from_string(Scaling().into_file(plain.SerializeToString()))
    assert [node.op_type for node in same.graph.node] == [node.op_type for node in plain.graph.node]


@pytest.mark.slow
def test_dead_channels_are_still_found_behind_the_scaling() -> None:
    model = network()
    model.get_parameter("0.weight").data[1] = 0
    model.get_parameter("0.bias").data[1] = 0
    data = Scaling(64.0, 127.5).into_file(convert(model, (1, 6, 6), {}))
    small = compact(data)
    assert small.removed == {"0": (4, 3)}
    assert check_parity(Scaling(64.0, 127.5).into_module(model), encode(small.model).model, RAW).max_abs_diff < 1e-5


@pytest.mark.parametrize(("scale", "shift"), [(0.0, 0.0), (-1.0, 0.0), (float("inf"), 0.0), (1.0, float("nan"))])
def test_numbers_that_cannot_be_meant_are_refused(scale: float, shift: float) -> None:
    with pytest.raises(ExportError, match="cannot be scaled"):
        Scaling(scale, shift)
