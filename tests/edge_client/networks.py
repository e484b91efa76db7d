"""Networks for the tests of structure and shrinking: what users write, small, by what is hard about them."""

from collections import OrderedDict
from collections.abc import Callable
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

Shape = tuple[int, ...]
IMAGE: Shape = (2, 6, 6)
CLASSES = 3


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The network at its initial weights, batch norm's constants stirred so that none of them is its own default."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return network


def chain() -> nn.Module:
    """Convolution, norm, pool, dropout of both kinds, flatten, norm of features, linear."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(2, 4, 3, padding=1),
            norm1=nn.BatchNorm2d(4),
            relu1=nn.ReLU(inplace=True),
            pool=nn.MaxPool2d(2),
            drop1=nn.Dropout2d(0.3),
            conv2=nn.Conv2d(4, 4, 3, padding=1),
            relu2=nn.LeakyReLU(),
            drop2=nn.Dropout(0.3),
            flatten=nn.Flatten(),
            drop3=nn.Dropout(0.2),
            norm2=nn.BatchNorm1d(36),
            fc=nn.Linear(36, 8),
            relu3=nn.ReLU(),
            drop4=nn.Dropout(0.5),
            out=nn.Linear(8, CLASSES),
        )
    )


class Residual(nn.Module):
    """An identity and a projected shortcut, in the functional style, with ``view``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(4)
        self.branch = nn.Conv2d(4, 8, 3, padding=1)
        self.project = nn.Conv2d(4, 8, 1)
        self.fc = nn.Linear(8 * 3 * 3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(x)))
        x = functional.relu(x + self.inner_norm(self.inner(x)))
        x = functional.max_pool2d(self.branch(x) + self.project(x), 2)
        return self.fc(x.view(x.size(0), -1))  # type: ignore[no-any-return]


class Opaque(nn.Module):
    """Half of it is understood: channels are concatenated, then a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1)
        self.mix = nn.Conv2d(8, 6, 1)
        self.norm = nn.LayerNorm([6, 6, 6])
        self.fc1, self.fc2 = nn.Linear(216, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(torch.cat([self.left(x), self.right(x)], dim=1))
        return self.fc2(functional.relu(self.fc1(torch.flatten(self.norm(x), 1))))  # type: ignore[no-any-return]


class Branching(nn.Module):
    """Cannot be traced: it looks at a value."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, CLASSES)
        self.fc = nn.Linear(72, 8)
        self.other = nn.Linear(72, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if x.sum() > 1e9:
            return self.other(x)  # type: ignore[no-any-return]
        return self.out(functional.relu(self.fc(x)))  # type: ignore[no-any-return]


class Shared(nn.Module):
    """One layer called twice, one whose weight is used a second time, a head behind a softmax, a depthwise layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(72, 6)
        self.twice = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 5)
        self.after = nn.Linear(6, 4)
        self.out = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(functional.relu(self.first(x.flatten(1))))
        x = self.twice(functional.relu(x))
        x = functional.linear(self.tied(x), self.tied.weight.t())
        return torch.log_softmax(self.out(functional.relu(self.after(x))), 1)


class Depthwise(nn.Module):
    """A convolution in groups, and a linear layer on the last axis of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.depth = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.point = nn.Conv2d(4, 6, 1)
        self.last = nn.Linear(6, 6)
        self.fc = nn.Linear(216, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.depth(functional.relu(self.conv(x))))
        x = functional.relu(self.point(x))
        return self.fc(self.last(x).flatten(1))  # type: ignore[no-any-return]


def plain_mlp() -> nn.Module:
    """Without a flatten: whether its input has two axes cannot be known."""
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, CLASSES))


def signal() -> nn.Module:
    """One-dimensional convolutions and a global pool."""
    return nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1),
        nn.Flatten(), nn.Linear(6, CLASSES),
    )  # fmt: skip


def tabular(input_shape: Shape, classes: int) -> nn.Module:
    """Named by import path as a user's own: a norm and dropout; the flatten tells that rows have one axis."""
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(prod(input_shape), 6),
            norm=nn.BatchNorm1d(6),
            relu=nn.ReLU(),
            drop=nn.Dropout(0.25),
            fc2=nn.Linear(6, classes),
        )
    )
