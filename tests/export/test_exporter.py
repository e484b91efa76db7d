"""The whole way from a network to the shipped file."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edge_client.learning import models
from export.exporter import export, export_int8
from export.latency import Latency
from export.parity import infer, open_session
from export.scaling import Scaling
from protocol.errors import ParityError

pytestmark = pytest.mark.slow


def sparse(name: str, shape: tuple[int, ...], sparsity: float) -> nn.Module:
    """A network by name with only its largest weights left."""
    torch.manual_seed(0)
    model = models.build(name, shape, 10)
    with torch.no_grad():
        magnitudes = torch.cat([parameter.abs().ravel() for parameter in model.parameters()])
        threshold = magnitudes.kthvalue(int(sparsity * magnitudes.numel())).values
        for parameter in model.parameters():
            parameter.mul_(parameter.abs() > threshold)
    return model


def samples(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).random((40, *shape), dtype=np.float32)


def test_a_sparse_network_becomes_a_small_file_that_computes_the_same() -> None:
    model, x = sparse("fashion-mlp", (1, 28, 28), 0.95), samples((1, 28, 28))
    made = export(model, (1, 28, 28), {"run": "r"}, x)
    assert made.dense_bytes > 12 * len(made.model)
    assert made.untouched == ()
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(infer(open_session(made.model), x), expected, atol=1e-5)
    assert {entry.key: entry.value for entry in onnx.load_from_string(made.model).metadata_props}["run"] == "r"


def test_the_work_that_is_left_is_counted_before_the_weights_are_coded() -> None:
    made = export(sparse("fashion-mlp", (1, 28, 28), 0.9), (1, 28, 28), {}, samples((1, 28, 28)))
    assert made.work is not None
    before, after = made.work
    assert before.dense == 784 * 128 + 128 * 128 + 128 * 10
    assert after.remaining <= before.remaining < 0.11 * before.dense


class Recurrent(nn.Module):
    """A network whose shapes only running tells."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x[:, 0]
        logits: torch.Tensor = self.head(self.attention(rows, rows, rows, need_weights=False)[0].mean(1))
        return logits


def test_what_cannot_be_proved_is_exported_as_it_is_and_named() -> None:
    torch.manual_seed(0)
    made = export(Recurrent(), (1, 8, 8), {}, samples((1, 8, 8)))
    assert made.parity.max_abs_diff < 1e-5
    assert made.work is None
    assert made.untouched


def test_the_proof_is_of_the_finished_file(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = sparse("fashion-mlp", (1, 28, 28), 0.9), samples((1, 28, 28))
    other = sparse("fashion-mlp", (1, 28, 28), 0.5)

    def swapped(*arguments: object) -> bytes:
        from export.convert import convert  # noqa: PLC0415  # the original, not the swapped one

        return convert(other, (1, 28, 28), {})

    monkeypatch.setattr("export.exporter.convert", swapped)
    with pytest.raises(ParityError):
        export(model, (1, 28, 28), {}, x)


def with_dead_filters() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 40, 3), nn.ReLU(), nn.Flatten(), nn.Linear(40 * 36, 10))
    for name in ("0.weight", "0.bias"):
        model.get_parameter(name).data[:15] = 0
    return model


@pytest.mark.parametrize(
    ("exact", "rounded", "width"),
    [(1.0, 0.5, 32), (0.5, 1.0, 25), (1.0, 0.99, 25)],
    ids=["rounded counts are faster", "exact counts are faster", "a difference within the noise"],
)
def test_channel_counts_are_rounded_where_that_is_measured_to_be_faster(
    monkeypatch: pytest.MonkeyPatch, exact: float, rounded: float, width: int
) -> None:
    cpu = {"dense": 2.0, "exact": exact, "rounded": rounded}
    monkeypatch.setattr(
        "export.exporter.compare", lambda files, *_: {name: Latency(1, 1, 1, 1, cpu[name]) for name in files}
    )
    made = export(with_dead_filters(), (1, 8, 8), {}, samples((1, 8, 8)))
    kernel = next(t for t in onnx.load_from_string(made.plain).graph.initializer if len(t.dims) == 4)
    assert kernel.dims[0] == width
    assert made.rounded is (width == 32)
    assert made.speeds == {"exact": 2 / exact, "rounded": 2 / rounded}


def test_raw_inputs_are_scaled_inside_the_file_and_the_work_left_stands_in_its_metadata() -> None:
    model, x = sparse("fashion-mlp", (1, 28, 28), 0.9), 255 * samples((1, 28, 28))
    made = export(model, (1, 28, 28), {"sparsity": "0.9"}, x, Scaling(255.0))
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(x / np.float32(255))).numpy()
    np.testing.assert_allclose(infer(open_session(made.model), x), expected, atol=1e-5)
    for data in (made.model, export_int8(made, x)):
        metadata = {entry.key: entry.value for entry in onnx.load_from_string(data).metadata_props}
        assert float(metadata["multiply_accumulates_left"]) == pytest.approx(made.work_left, abs=1e-6)
        assert metadata["sparsity"] == "0.9"
