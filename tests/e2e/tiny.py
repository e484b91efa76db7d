"""A network and data of a user's own, small enough that a round is all transport; and a way to hold a node up.

Where the folder ``PRUNESEAL_TEST_HOLD`` holds a file of a node's name, the node's training waits until it is gone, and
says in ``<name>.held`` which process it is.
"""

import os
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn


def build(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """About two thousand parameters."""
    return nn.Sequential(nn.Linear(int(np.prod(input_shape)), 64), nn.ReLU(), nn.Linear(64, classes))


def load() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Points whose class is the octant that they lie in."""
    _wait_if_held()
    rng = np.random.default_rng(4)
    x = rng.normal(size=(480, 20)).astype(np.float32)
    y = (x[:, :3] > 0) @ np.array([1, 2, 4])
    return x[:400], y[:400].astype(np.int64), x[400:], y[400:].astype(np.int64)


def _wait_if_held() -> None:
    if "PRUNESEAL_TEST_HOLD" not in os.environ or "PRUNESEAL_KIT" not in os.environ:
        return
    folder, name = Path(os.environ["PRUNESEAL_TEST_HOLD"]), Path(os.environ["PRUNESEAL_KIT"]).name
    if (folder / name).exists():
        (folder / f"{name}.held").write_text(str(os.getpid()))
    while (folder / name).exists():
        time.sleep(0.05)
