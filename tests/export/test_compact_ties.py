"""``export.compact``: channels that layers or positions have in common go only together."""

import pytest
import torch
from torch import nn

from tests.export.compacting import compacted, ignore, kill, operators, plain, seeded

pytestmark = pytest.mark.usefixtures("one_thread")


class Residual(nn.Module):
    """A stem, a branch of two convolutions beside a shortcut, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.out = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = (x + self.conv2(self.conv1(x).relu())).relu()
        return torch.as_tensor(self.out(x.mean((2, 3))))


@pytest.mark.slow
def test_a_dead_residual_branch_goes_and_its_constant_stays() -> None:
    model = seeded(Residual())
    kill(model.get_submodule("conv2"))
    result = compacted(model)
    assert result.removed == {"conv1": (6, 0), "conv2": (8, 0)}
    assert operators(result.model).count("Conv") == 1
    assert operators(result.model).count("Add") == 1


@pytest.mark.slow
def test_a_residual_branch_of_zeros_goes_with_its_addition() -> None:
    model = seeded(Residual())
    kill(model.get_submodule("conv2"))
    model.get_parameter("conv2.bias").data.zero_()
    assert "Add" not in operators(compacted(model).model)


@pytest.mark.slow
def test_a_residual_channel_stays_while_one_side_lives() -> None:
    model = seeded(Residual())
    kill(model.get_submodule("stem"), 0, 1)
    kill(model.get_submodule("conv2"), 1, 2)
    ignore(model.get_submodule("out"), 3)
    result = compacted(model)
    assert result.removed == {"stem": (8, 7), "conv2": (8, 7)}, "channel 1 is dead on both sides, 3 feeds conv1"


@pytest.mark.slow
def test_a_dead_channel_before_flatten_takes_its_positions_along() -> None:
    model = plain(nn.MaxPool2d(2), flat=128)
    kill(model[0], 2, 5)
    ignore(model[4], *range(7 * 16, 8 * 16))
    result = compacted(model)
    assert result.removed == {"0": (8, 5)}
    assert result.parameters_after == 5 * 27 + 5 + 4 * 5 * 16 + 4


@pytest.mark.slow
def test_a_flattened_channel_stays_while_one_position_is_read() -> None:
    model = plain()
    ignore(model[3], *range(63))
    assert compacted(model).removed == {}


@pytest.mark.slow
def test_depthwise_convolutions_lose_channels_with_their_neighbours() -> None:
    depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
    model = plain(depthwise, nn.ReLU(), nn.Conv2d(16, 6, 1), flat=384)
    kill(model[0], 0)
    model.get_parameter("0.bias").data[0] = -1.0
    ignore(model[4], 4, 5, 6)
    result = compacted(model)
    assert result.removed == {"0": (8, 6), "2": (16, 12)}, "channel 3 is still read through its second output"
    assert result.untouched == ()


@pytest.mark.slow
def test_shared_weights_are_split_where_that_is_smaller() -> None:
    shared = nn.Linear(8, 8)
    model = seeded(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(8, 3)))
    kill(shared, 0, 1, 2, 3, 4, 5)
    result = compacted(model, (6,))
    assert list(result.removed.values()) == [(8, 2), (8, 2)]
    assert result.untouched == ()
