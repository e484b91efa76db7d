"""What the tests of ``export.compact`` share: networks with dead structure, and the comparison with what shrank."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import onnx
import torch
from torch import nn

from export.compact import Compaction, compact
from export.convert import convert
from export.macs import multiply_accumulates
from export.parity import infer, open_session

Network = TypeVar("Network", bound=nn.Module)
METADATA = {"model": "tiny", "run": "r1"}
IMAGE = (3, 8, 8)


def seeded(model: Network) -> Network:
    """The model in evaluation mode, with a bias and statistics that are not their defaults anywhere."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "num_batches" in name:
                continue
            if "running_var" in name:
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.dim() == 1:
                tensor.normal_(0.3, 0.3, generator=generator)
            else:
                fan = tensor[0].numel()
                tensor.normal_(0, (2 / fan) ** 0.5, generator=generator)
    return model.eval()


def kill(layer: nn.Module, *rows: int) -> None:
    """Zero all incoming weights of some output channels; the bias stays."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    layer.weight.data[list(rows) or slice(None)] = 0


def ignore(layer: nn.Module, *columns: int) -> None:
    """Zero all weights that read some input channels."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    layer.weight.data[:, list(columns)] = 0


def differ(expected: Callable[[np.ndarray], np.ndarray], data: bytes, shape: tuple[int, ...]) -> float:
    """The largest difference of the outputs, relative to their scale; on random inputs, zeros and two batch sizes."""
    session, random = open_session(data), np.random.default_rng(0)
    worst = 0.0
    for x in (random.normal(size=(7, *shape)), random.normal(0, 5, size=(1, *shape)), np.zeros((2, *shape))):
        want, got = expected(x.astype(np.float32)), infer(session, x.astype(np.float32))
        assert got.shape == want.shape
        worst = max(worst, float(np.abs(got - want).max()) / float(np.abs(want).max() + 1e-9))
    return worst


def of(model: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    def run(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(model(torch.from_numpy(x)).numpy())

    return run


def checked(data: bytes, expected: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> Compaction:
    """The exact compaction, after it and the one rounded to 4 were compared with what the file must compute."""
    for round_to in (4, 1):
        result = compact(data, round_to)
        onnx.checker.check_model(result.model, full_check=True)
        assert differ(expected, result.model, shape) < 1e-4
        assert multiply_accumulates(result.model).dense <= multiply_accumulates(data).dense
        again = compact(result.model, round_to)
        assert again.model == result.model
        assert not again.removed
    return result


def compacted(model: nn.Module, shape: tuple[int, ...] = IMAGE) -> Compaction:
    return checked(convert(model, shape, METADATA), of(model), shape)


def operators(data: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_model_from_string(data).graph.node]


def plain(*middle: nn.Module, channels: int = 8, flat: int = 512) -> nn.Sequential:
    """A padded convolution, whatever comes in between, flatten and a linear layer."""
    model = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), *middle, nn.Flatten(), nn.Linear(flat, 4))
    return seeded(model)
