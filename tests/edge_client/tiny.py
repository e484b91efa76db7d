"""A network, data and failures small enough for tests, named by import path as a user's own would be."""

from collections import OrderedDict
from math import prod
from typing import Final

import numpy as np
import torch
from torch import nn

from edge_client.learning.data import DataSet

MARKER: Final = "patient-0815"
"""Stands for something of this node that must never leave it."""

PARAMETERS: Final = 64
"""Of ``build`` on ``data``: 5 * 6 + 6 + 6 * 4 + 4."""

_INPUTS, _HIDDEN, _CLASSES = 5, 6, 4
_GROUP_SIZES = (16, 24, 32, 40)


def build(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """An MLP of 64 parameters."""
    return nn.Sequential(
        OrderedDict(fc1=nn.Linear(prod(input_shape), _HIDDEN), relu=nn.Tanh(), fc2=nn.Linear(_HIDDEN, classes))
    )


def normed(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """With what travels unpruned (running statistics), what stays at home (an integer) and dropout."""
    return nn.Sequential(
        OrderedDict(
            fc1=nn.Linear(prod(input_shape), _HIDDEN),
            norm=nn.BatchNorm1d(_HIDDEN),
            drop=nn.Dropout(0.25),
            fc2=nn.Linear(_HIDDEN, classes),
        )
    )


def doubled(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """A model of the wrong precision."""
    return build(input_shape, classes).to(torch.float64)


def data() -> DataSet:
    """Four blobs in five dimensions; four groups of unequal size."""
    train_x, train_y = _blobs(1, sum(_GROUP_SIZES))
    test_x, test_y = _blobs(2, 26)
    groups = np.repeat(np.arange(len(_GROUP_SIZES)), _GROUP_SIZES)
    return DataSet("tiny", train_x, train_y, test_x, test_y, _CLASSES, groups)


def not_finite() -> tuple[object, ...]:
    """Data with a hole in it."""
    whole = data()
    x = whole.train_x.copy()
    x[3, 1] = np.nan
    return x, whole.train_y, whole.test_x, whole.test_y


def nothing() -> tuple[object, ...]:
    """Data without a row."""
    whole = data()
    return whole.train_x[:0], whole.train_y[:0], whole.test_x, whole.test_y


def explode() -> DataSet:
    """A user's function that fails and says too much."""
    raise RuntimeError(f"no row for {MARKER}")


def _blobs(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(0, 2, (_CLASSES, _INPUTS))
    y = np.arange(rows, dtype=np.int64) % _CLASSES
    return (centres[y] + rng.normal(0, 1, (rows, _INPUTS))).astype(np.float32), y
