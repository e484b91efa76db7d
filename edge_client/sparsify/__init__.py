"""The methods: one file each, by name.

To add one, write a subclass of `Sparsifier` and list it here.
"""

from edge_client.sparsify import allocation
from edge_client.sparsify.baselines import Snip, TopK
from edge_client.sparsify.fedavg import FedAvg
from edge_client.sparsify.fedsparsify import FedSparsifyGlobal, OneShot, RandomPruning
from edge_client.sparsify.interface import GlobalState, Sparsifier
from edge_client.sparsify.local import FedSparsifyLocal
from edge_client.sparsify.spafl import SpaFL
from edge_client.sparsify.sparsyfed import SparsyFed
from protocol.errors import ConfigError
from protocol.plan import Plan

METHODS: dict[str, type[Sparsifier]] = {
    method.name: method
    for method in (FedAvg, FedSparsifyGlobal, FedSparsifyLocal, SparsyFed, SpaFL, OneShot, RandomPruning, TopK, Snip)
}


def sparsifier(plan: Plan) -> Sparsifier:
    """The method that a plan names.

    Raises:
        ConfigError: There is none of that name, no such allocation, or the plan does not fit the method.
    """
    if plan.method not in METHODS:
        raise ConfigError(f"there is no method {plan.method!r}; known are {', '.join(METHODS)}")
    if plan.allocation not in allocation.NAMES:
        raise ConfigError(f"there is no allocation {plan.allocation!r}; known are {', '.join(allocation.NAMES)}")
    method = METHODS[plan.method]
    if plan.granularity not in method.granularities:
        known = ", ".join(method.granularities)
        raise ConfigError(f"{plan.method} cannot remove by {plan.granularity}, only by {known}: change granularity")
    return method(plan)


__all__ = ["METHODS", "GlobalState", "Sparsifier", "sparsifier"]
