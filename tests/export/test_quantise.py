"""``export.quantise``: int8 by ONNX Runtime's tools, zeros kept exactly, coded and fused like any int8 file."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from onnxruntime.quantization import quantize_static
from torch import nn

import export.quantise as module
from export.compact import compact
from export.convert import convert
from export.encode import encode
from export.parity import infer, open_session
from export.quantise import quantise
from export.scaling import Scaling
from protocol.errors import ExportError

pytestmark = pytest.mark.slow

SHAPE = (3, 12, 12)
RAW = np.random.default_rng(0).uniform(0, 255, (64, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def plain() -> bytes:
    """A compact convolutional network of which most weights are zero."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 5)),
    )
    for name in ("4.weight", "7.weight"):
        weight = model.get_parameter(name)
        weight.data.mul_(torch.rand_like(weight) < 0.1)
    return compact(Scaling(255.0).into_file(convert(model, SHAPE, {"run": "r", "labels": "[]"}))).model


@pytest.fixture(scope="module")
def int8(plain: bytes) -> bytes:
    return quantise(plain, RAW)


def weights(data: bytes) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(data).graph.initializer}


def test_every_zero_stays_exactly_zero(plain: bytes, int8: bytes) -> None:
    before, after = weights(plain), weights(int8)
    for name in ("4.weight", "7.weight"):
        quantised, scales = after[f"{name}_quantized"], after[f"{name}_scale"]
        assert quantised.dtype == np.int8
        assert not after[f"{name}_zero_point"].any()
        assert len(scales) == len(before[name]), "one scale per output channel"
        assert not quantised[before[name] == 0].any()
        assert np.count_nonzero(quantised) > 0.9 * np.count_nonzero(before[name])


def test_outputs_are_close_and_the_class_rarely_changes(plain: bytes, int8: bytes) -> None:
    expected, actual = (infer(open_session(data), RAW) for data in (plain, int8))
    assert np.abs(actual - expected).max() < 0.1 * np.abs(expected).max()
    assert (actual.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9


def test_coded_it_is_smaller_than_coded_floats_and_still_runs_in_integer_kernels(
    plain: bytes, int8: bytes, tmp_path: Path
) -> None:
    coded = encode(int8).model
    assert len(coded) < 0.8 * len(encode(plain).model)
    np.testing.assert_array_equal(infer(open_session(coded), RAW), infer(open_session(int8), RAW))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(coded, options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert kinds["QLinearConv"] == 2
    assert kinds["QGemm"] == 2
    assert not {"ScatterElements", "CumSum", "Conv", "Gemm"} & kinds.keys()


def test_names_batch_axis_and_metadata_stay(plain: bytes, int8: bytes) -> None:
    before, after = onnx.load_from_string(plain), onnx.load_from_string(int8)
    assert after.graph.input == before.graph.input
    assert [value.name for value in after.graph.output] == ["logits"]
    assert [*after.metadata_props] == [*before.metadata_props]
    assert infer(open_session(int8), RAW[:7]).shape == (7, 5)


def test_the_same_samples_give_the_same_bytes(plain: bytes, int8: bytes) -> None:
    assert quantise(plain, RAW) == int8


def test_a_quantiser_that_moved_a_zero_would_be_noticed(plain: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def moved(source: Path, target: Path, *rest: object, **options: object) -> None:
        quantize_static(source, target, *rest, **options)
        model = onnx.load(target)
        tensor = next(t for t in model.graph.initializer if t.name == "7.weight_quantized")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) | 1, tensor.name))
        onnx.save(model, target)

    monkeypatch.setattr(module, "quantize_static", moved)
    with pytest.raises(ExportError, match=r"did not keep the zeros of 7\.weight"):
        quantise(plain, RAW)


def test_without_samples_or_with_those_of_another_shape_nothing_is_made(plain: bytes) -> None:
    with pytest.raises(ExportError, match="no samples to calibrate with"):
        quantise(plain, RAW[:0])
    with pytest.raises(ExportError, match="cannot be quantised"):
        quantise(plain, RAW[:, :1])
