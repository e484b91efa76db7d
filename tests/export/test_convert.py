"""``export.convert``: one self-contained file that computes what the model does in evaluation mode."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from export.convert import convert, device_of, evaluating, save_onnx
from protocol.errors import ExportError

pytestmark = pytest.mark.slow

METADATA = {"run": "r1", "model": "tiny", "round": "3"}
REPOSITORY = Path(__file__).parents[2]


def convnet() -> nn.Sequential:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    model(torch.randn(64, 1, 8, 8) + 1.0)  # so that the running statistics are not their defaults
    return model.train()


@pytest.fixture(scope="module")
def exported() -> tuple[nn.Sequential, bytes]:
    model = convnet()
    return model, convert(model, (1, 8, 8), METADATA)


class Calls(nn.Module):
    """A model that is one function."""

    def __init__(self, function: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> object:
        return self.function(x)


def branches(x: torch.Tensor) -> torch.Tensor:
    return x if x.sum() > 0 else 2 * x


def test_the_file_computes_the_model_in_evaluation_mode_for_every_batch_size(
    exported: tuple[nn.Sequential, bytes],
) -> None:
    model, data = exported
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5, 33):
        x = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(batch))
        with evaluating(model), torch.no_grad():
            expected = model(x).numpy()
        (logits,) = session.run(["logits"], {"input": x.numpy()})
        np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_a_model_in_training_mode_is_handed_back_in_training_mode(
    exported: tuple[nn.Sequential, bytes],
) -> None:
    model, _ = exported
    assert all(module.training for module in model.modules())


def test_every_module_gets_its_own_mode_back_after_an_error() -> None:
    model = convnet()
    frozen = model[1].eval()

    def fail_inside() -> None:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert [module for module in model.modules() if not module.training] == [frozen]


def test_an_export_changes_no_weight_no_statistic_and_no_random_state() -> None:
    model = convnet()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    convert(model, (1, 8, 8), {})
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_same_model_gives_the_same_bytes_whatever_the_order_of_its_metadata(
    exported: tuple[nn.Sequential, bytes],
) -> None:
    model, data = exported
    assert convert(model, (1, 8, 8), dict(reversed(METADATA.items()))) == data


def test_the_signature_is_input_to_logits_with_a_dynamic_batch(exported: tuple[nn.Sequential, bytes]) -> None:
    proto = onnx.load_model_from_string(exported[1])
    values = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    assert values == {"input": ["batch", 1, 8, 8], "logits": ["batch", 3]}
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 20)]


def test_the_metadata_is_the_callers_and_nothing_else(exported: tuple[nn.Sequential, bytes]) -> None:
    proto = onnx.load_model_from_string(exported[1])
    assert {entry.key: entry.value for entry in proto.metadata_props} == METADATA
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
    assert not proto.graph.value_info


def test_no_path_of_the_machine_is_left_in_the_file(exported: tuple[nn.Sequential, bytes]) -> None:
    _, data = exported
    places = [Path.cwd(), Path.home(), REPOSITORY, Path(sys.prefix), Path(torch.__file__).parent]
    for trace in (*(os.fsencode(place) for place in places), b".py", b"site-packages", b"stack_trace"):
        assert trace not in data


def test_the_file_is_hardly_larger_than_its_weights(exported: tuple[nn.Sequential, bytes]) -> None:
    model, data = exported
    weights = sum(4 * parameter.numel() for parameter in model.parameters())
    assert len(data) < weights + 1500


def test_pruned_weights_stay_zero_although_normalisation_is_folded_in() -> None:
    model = convnet()
    first = model[0]
    assert isinstance(first, nn.Conv2d)
    with torch.no_grad():
        first.weight[:, :, 0] = 0.0
    proto = onnx.load_model_from_string(convert(model, (1, 8, 8), {}))
    kernel = next(onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if len(t.dims) == 4)
    assert not kernel[:, :, 0].any()
    assert kernel[:, :, 1:].all()


def test_an_export_prints_nothing_and_warns_of_nothing() -> None:
    script = """
import torch, warnings
from export.convert import convert
warnings.simplefilter("error")
convert(torch.nn.Linear(4, 2), (4,), {})
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_a_warning_of_the_model_itself_is_not_silenced() -> None:
    def old(x: torch.Tensor) -> torch.Tensor:
        warnings.warn("this layer is old", FutureWarning, stacklevel=2)
        return x

    with pytest.warns(FutureWarning, match="this layer is old"):
        convert(Calls(old), (4,), {})


@pytest.mark.parametrize("shape", [(), (0,), (3, -1)])
def test_a_shape_that_is_none_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ExportError, match="not a sample's shape"):
        convert(nn.Linear(4, 2), shape, {})


def test_a_shape_that_the_model_cannot_take_is_refused() -> None:
    with pytest.raises(ExportError, match=r"cannot take an input of shape \(2, 5\)"):
        convert(nn.Linear(4, 2), (5,), {})


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: (x, x), "returns tuple"),
        (lambda x: x.mean(), r"returns \(\)"),
        (lambda x: x[:1], r"returns \(1, 4\)"),
        (lambda x: x.reshape(2, -1), "fixes the batch size of its logits"),
        (branches, "torch cannot export the model"),
    ],
)
def test_a_model_that_is_no_function_of_a_batch_is_refused(
    function: Callable[[torch.Tensor], object], reason: str
) -> None:
    model = Calls(function)
    with pytest.raises(ExportError, match=reason):
        convert(model, (4,), {})
    assert model.training


def test_an_exporter_that_falls_back_to_another_operator_set_is_found_out(
    exported: tuple[nn.Sequential, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = onnx.load_model_from_string(exported[1])
    proto.opset_import[0].version = 18
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: SimpleNamespace(model_proto=proto))
    with pytest.raises(ExportError, match="operator sets"):
        convert(exported[0], (1, 8, 8), {})


def test_an_exporter_that_writes_an_invalid_file_is_found_out(
    exported: tuple[nn.Sequential, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = onnx.load_model_from_string(exported[1])
    proto.graph.node[0].op_type = "Convolution"
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: SimpleNamespace(model_proto=proto))
    with pytest.raises(ExportError, match="not valid ONNX"):
        convert(exported[0], (1, 8, 8), {})


def test_a_model_that_no_single_file_can_hold_is_refused_before_it_is_traced() -> None:
    model = nn.Linear(1, 1)
    model.weight = nn.Parameter(torch.zeros(1, 1).expand(2**15, 2**15))
    with pytest.raises(ExportError, match="at most 2147483647"):
        convert(model, (2**15,), {})


def test_a_model_without_tensors_is_on_the_cpu() -> None:
    assert device_of(nn.ReLU()) == torch.device("cpu")
    assert device_of(nn.Linear(1, 1, device="meta")) == torch.device("meta")


def test_a_saved_file_holds_the_bytes_and_replaces_the_old_one(tmp_path: Path) -> None:
    for data in (b"old", b"new"):
        save_onnx(tmp_path / "model.onnx", data)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"model.onnx": b"new"}


def test_saving_into_a_missing_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="directory exists"):
        save_onnx(tmp_path / "absent" / "model.onnx", b"")
