"""FedAvg (McMahan et al., AISTATS 2017, arXiv:1602.05629): the sample-weighted mean of everything, nothing pruned."""

import numpy as np

from edge_client.sparsify.interface import GlobalState, Sparsifier
from protocol.grid import Integers
from protocol.layout import Layout, Mask, Vector


class FedAvg(Sparsifier):
    """The dense baseline; the plan's sparsity has no meaning here."""

    name = "fedavg"

    def survivors(self, mean: Vector, votes: Integers, clients: int, layout: Layout, state: GlobalState) -> Mask:
        """Everything."""
        return np.ones(layout.size, np.bool_)
