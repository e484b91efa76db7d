"""``export.compact``: the constant that a dead channel carries moves on through whatever follows it."""

from itertools import chain

import pytest
import torch
from torch import nn

from tests.export.compacting import compacted, kill, operators, plain, seeded

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


def test_a_shift_of_batch_norm_on_a_dead_channel_is_kept() -> None:
    model = seeded(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 5, 3),
            nn.Flatten(),
            nn.Linear(180, 4),
        )
    )
    kill(model[0], 1, 2, 3)
    assert compacted(model).removed == {"0": (8, 5)}, "no padding: the shift moves into the bias"


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_a_standalone_batch_norm_after_pooling_is_folded_through(scale: float) -> None:
    model = plain(nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.ReLU(), flat=32)
    kill(model[0], 0)
    norm = model[3]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.weight.data[4] = scale
    result = compacted(model)
    assert "BatchNormalization" in operators(result.model)
    assert result.removed == {"0": (8, 7 if scale else 6)}


def test_constants_that_meet_zero_padding_are_merged_into_one_channel() -> None:
    model = plain(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    kill(model[0], 1, 2, 3, 4)
    bias = model.get_parameter("0.bias").data
    bias[1:5] = torch.tensor([0.5, 1.5, 0.2, -1.0])
    assert compacted(model).removed == {"0": (8, 5)}, "three constants become one, the fourth is zero after the ReLU"


def test_one_constant_that_meets_zero_padding_stays() -> None:
    model = plain(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    kill(model[0], 1)
    model.get_parameter("0.bias").data[1] = 1.0
    assert compacted(model).removed == {}


def test_an_average_over_padding_does_not_keep_a_constant() -> None:
    model = plain(nn.AvgPool2d(2, padding=1), flat=8 * 25)
    kill(model[0], 1, 2)
    model.get_parameter("0.bias").data[1:3] = torch.tensor([1.0, -1.0])
    assert compacted(model).removed == {"0": (8, 7)}, "zero stays zero over padding, one does not stay one"


def test_activations_are_evaluated_on_constants() -> None:
    activations: list[nn.Module] = [nn.ELU(), nn.GELU(), nn.Hardsigmoid(), nn.Hardswish(), nn.LeakyReLU(0.2)]
    activations += [nn.PReLU(8), nn.ReLU6(), nn.SELU(), nn.Sigmoid(), nn.SiLU(), nn.Tanh()]
    linear = [nn.Linear(8, 8) for _ in activations]
    layers = chain.from_iterable(zip(linear, activations, strict=True))
    model = seeded(nn.Sequential(*layers, nn.Linear(8, 3)))
    for layer in linear:
        kill(layer, 0, 7)
    result = compacted(model, (8,))
    assert list(result.removed.values()) == [(8, 6)] * len(activations)
    assert result.untouched == ()
