"""``edge_client.learning.uses``: how often a model uses each of its parameters on one sample."""

import pytest
import torch
from torch import nn

from edge_client.learning import models
from edge_client.learning.network import build_network
from edge_client.learning.uses import uses
from protocol.errors import ConfigError
from tests.edge_client.federation import RUN, tiny_plan


def test_a_convolution_uses_a_weight_once_for_every_position_of_its_output() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 5)
    )
    work = uses(model, (3, 8, 8))
    assert work == {"0.weight": 16, "0.bias": 16, "1.weight": 16, "1.bias": 16, "3.weight": 1, "3.bias": 1}


def test_a_transposed_convolution_uses_a_weight_once_for_every_position_of_its_input() -> None:
    model = nn.Sequential(nn.ConvTranspose1d(2, 3, 4, stride=2))
    assert uses(model, (2, 5))["0.weight"] == 5


def test_a_layer_that_is_used_twice_counts_twice() -> None:
    shared = nn.Linear(4, 4)
    assert uses(nn.Sequential(shared, nn.ReLU(), shared), (4,)) == {"0.weight": 2, "0.bias": 2}


def test_what_does_not_return_one_tensor_counts_once() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.cell(x)[0][:, -1]  # type: ignore[no-any-return]

    assert set(uses(Recurrent(), (6, 3)).values()) == {1}


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    uses(model, (3,))
    assert [module.training for module in model.modules()] == [True, True, False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_that_cannot_take_the_data_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"the model cannot take a batch of inputs of shape \(7,\)"):
        uses(nn.Linear(4, 2), (7,))


def test_the_known_networks_sum_up_to_their_published_work() -> None:
    """LeNet-5 on 28 x 28: 6 * 25 * 784 + 16 * 150 * 100 + 400 * 120 + 120 * 84 + 84 * 10 multiply-accumulates."""
    model = models.build("lenet5", (1, 28, 28), 10)
    work = uses(model, (1, 28, 28))
    total = sum(work[name] * p.numel() for name, p in model.named_parameters() if p.dim() > 1)
    assert total == 117_600 + 240_000 + 48_000 + 10_080 + 840


@pytest.mark.parametrize("powerprop", [1.0, 1.25])
def test_the_layout_carries_it_whatever_the_model_wears(powerprop: float) -> None:
    network = build_network(tiny_plan(model="lenet5", powerprop=powerprop), (1, 28, 28), 10, RUN)
    by_name = {tensor.name: tensor.work for tensor in network.layout.tensors}
    first = "conv1.weight" if powerprop == 1 else "conv1.parametrizations.weight.original"
    assert (by_name[first], by_name["conv1.bias"]) == (784, 784)
    assert network.work["conv1.weight"] == 784
    assert "conv1.bias" not in network.work
