"""Write the digits as three clients would hold them: DIR/client-<i>/train.npz. ``python docker/digits.py DIR``.

Source: the UCI optical recognition of handwritten digits set (Alpaydin, Kaynak 1998).
"""

import sys
from pathlib import Path

import numpy as np

from edge_client.learning import data
from edge_client.learning.partition import partition

CLIENTS = 3


def write(folder: Path) -> None:
    """Divide the training rows at random and the test rows in turn; no row is in two files."""
    digits = data.load("digits")
    for client, rows in enumerate(partition("iid", digits.train_y, None, CLIENTS, 0)):
        share = data.part(digits, rows, client, CLIENTS)
        path = folder / f"client-{client}" / "train.npz"
        path.parent.mkdir(parents=True)
        np.savez(path, x=share.x, y=share.y, x_test=share.test_x, y_test=share.test_y)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
