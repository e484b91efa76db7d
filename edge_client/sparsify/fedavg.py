"""FedAvg (McMahan et al., AISTATS 2017, arXiv:1602.05629): the sample-weighted mean of everything, nothing pruned."""

import numpy as np

from edge_client.sparsify.interface import GlobalState
from edge_client.sparsify.powerprop import Reparametrised
from protocol.grid import Integers
from protocol.layout import Layout, Mask, Vector


class FedAvg(Reparametrised):
    """The dense baseline: nothing is pruned."""

    name = "fedavg"
    has_target = False

    def survivors(self, mean: Vector, votes: Integers, clients: int, layout: Layout, state: GlobalState) -> Mask:
        """Everything."""
        return np.ones(layout.size, np.bool_)
