"""The learning tasks of `benchmarks/accuracy.py`: data, networks, and the settings that all methods share.

Settings come from the papers or from what is usual for the data, and hold for every method but where
`benchmarks/cells.py` says otherwise; `benchmarks/README.md` says how they were chosen. Data that comes by import path
lies where it is said by ``PRUNESEAL_BENCH_DATA``.

* ``fashion``: Fashion-MNIST (Xiao et al., arXiv:1708.07747), FedSparsify's network and settings (arXiv:2204.12430) but
  for the learning rate: the paper's 0.02 is meant for 200 rounds; with 0.1 dense FedAvg does better in 40, on
  validation rows.
* ``fashion-validation``: the same, with a tenth of its training rows in place of its test rows: to choose settings by.
* ``activity``: phone and watch, accelerometer and gyroscope, 23 people (Matey-Sanz et al., Data in Brief 2023,
  10.1016/j.dib.2023.109809). A client is a person; five people whom no client has seen are the test set.
* ``cifar``: CIFAR-10 re-compressed as JPEG of quality 75. Not to be set beside figures on the original images.
"""

import io
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from torch import nn

from edge_client.learning.data import DataSet, load
from protocol.errors import DataError

FOLDER: Final = "PRUNESEAL_BENCH_DATA"
_WINDOW, _STRIDE = 128, 64  # samples: 1.3 and 0.6 seconds
_GRAVITY = np.float32(9.80665)
_TEST_PEOPLE: Final = (19, 20, 21, 22, 23)


@dataclass(frozen=True)
class Task:
    """One learning task.

    Attributes:
        label: What to call it in tables.
        data: The plan's data; None where the user names it.
        model: The plan's model.
        clients: How many.
        partitions: How the rows are dealt, and what to call that.
        settings: Further fields of the plan.
    """

    label: str
    data: str | None
    model: str
    clients: int
    partitions: dict[str, str]
    settings: dict[str, Any]


_VALIDATION_SEED: Final = 2022
_FASHION: Final = {"epochs": 4, "batch_size": 32, "learning_rate": 0.1}
_DIVISIONS: Final = {"iid": "IID", "shards:2": "two classes per client", "dirichlet:0.1": "Dirichlet 0.1"}
TASKS: Final = {
    "fashion": Task("Fashion-MNIST", None, "fashion-mlp", 10, _DIVISIONS, _FASHION),
    "fashion-validation": Task(
        "Fashion-MNIST, validation rows",
        "benchmarks.tasks:fashion_validation",
        "fashion-mlp",
        10,
        _DIVISIONS,
        _FASHION,
    ),
    "activity": Task(
        "phone and watch activity",
        "benchmarks.tasks:activity",
        "benchmarks.tasks:activity_network",
        18,
        {"group": "a person per client"},
        {"epochs": 2, "batch_size": 32, "learning_rate": 0.05},
    ),
    "cifar": Task(
        "CIFAR-10 (JPEG q75)",
        "benchmarks.tasks:cifar_jpeg",
        "lenet5",
        10,
        _DIVISIONS,
        {"epochs": 2, "batch_size": 32, "learning_rate": 0.005, "momentum": 0.75},
    ),
}


def fashion_validation() -> DataSet:
    """Fashion-MNIST without its test rows: a tenth of the training rows, drawn, takes their place.

    Raises:
        DataError: The folder is not there, or does not hold the four files.
    """
    data = load(f"idx:{_folder('the four files of Fashion-MNIST')}")
    order = np.random.default_rng(_VALIDATION_SEED).permutation(len(data.train_y))
    held, kept = np.split(order, [len(order) // 10])
    x, y = data.train_x, data.train_y
    return replace(data, train_x=x[kept], train_y=y[kept], test_x=x[held], test_y=y[held])


def activity() -> DataSet:
    """Windows of one recording each, f32[n, 6, 128], and what the person did for most of a window.

    Accelerations are in units of gravity, rotations in rad/s; nothing is fitted to the data. Both devices are used.

    Raises:
        DataError: The file is not there.
    """
    with np.load(_file("spsw_har.npz"), allow_pickle=False) as archive:
        x, y, t = archive["x"], archive["y"].astype(np.int64), archive["t"]
        keys = np.stack([archive[name].astype(np.int64) for name in ("subject", "execution", "device")], axis=1)
    edges = np.flatnonzero((np.diff(keys, axis=0) != 0).any(axis=1)) + 1
    windows, labels, people = [], [], []
    for rows in np.split(np.arange(len(t)), edges):
        for start in range(0, len(rows) - _WINDOW + 1, _STRIDE):
            cut = rows[start : start + _WINDOW]
            windows.append(x[cut].T)
            labels.append(np.bincount(y[cut]).argmax())
            people.append(keys[cut[0], 0])
    inputs, groups = np.stack(windows).astype(np.float32), np.array(people)
    inputs[:, :3] /= _GRAVITY
    test, classes = np.isin(groups, _TEST_PEOPLE), np.array(labels, np.int64)
    return DataSet("activity", inputs[~test], classes[~test], inputs[test], classes[test], 5, groups[~test])


def activity_network(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """A small one-dimensional CNN: three convolutions, pooled to one value per channel, and a hidden layer."""
    channels = input_shape[0]
    return nn.Sequential(
        nn.Conv1d(channels, 32, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(64, 64, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1),
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes),
    )  # fmt: skip


def cifar_jpeg() -> DataSet:
    """CIFAR-10 as JPEG of quality 75, f32[n, 3, 32, 32] in [0, 1], in the original order and split.

    Raises:
        DataError: The file is not there.
    """
    arrays: list[Any] = []
    with np.load(_file("cifar10_jpeg_q75.npz"), allow_pickle=False) as archive:
        head = archive["header"].tobytes()
        for split in ("train", "test"):
            stream, ends = archive[f"{split}_stream"].tobytes(), np.cumsum(archive[f"{split}_len"].astype(np.int64))
            images = [
                np.asarray(Image.open(io.BytesIO(head + stream[start:end] + b"\xff\xd9")))
                for start, end in zip([0, *ends[:-1]], ends, strict=True)
            ]
            pixels = np.moveaxis(np.stack(images), -1, 1).astype(np.float32)
            pixels /= 255
            arrays += [pixels, archive[f"{split}_y"].astype(np.int64)]
    train_x, train_y, test_x, test_y = arrays
    return DataSet("CIFAR-10 (JPEG q75)", train_x, train_y, test_x, test_y, 10)


def _file(name: str) -> Path:
    path = _folder(name) / name
    if not path.is_file():
        raise DataError(f"missing file: {path}; set {FOLDER} to the folder that holds it")
    return path


def _folder(what: str) -> Path:
    if not (folder := os.environ.get(FOLDER)):
        raise DataError(f"set {FOLDER} to the folder that holds {what}")
    return Path(folder).expanduser()
