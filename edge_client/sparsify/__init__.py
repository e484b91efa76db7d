"""The methods: one file each, by name.

CONTRIBUTING.md says how one is added.
"""

from dataclasses import replace
from importlib import import_module
from typing import Final

from edge_client.sparsify.interface import GlobalState, Sparsifier
from protocol.errors import ConfigError
from protocol.plan import Plan

_CLASSES: Final = (
    "fedavg:FedAvg",
    "fedsparsify:FedSparsifyGlobal",
    "local:FedSparsifyLocal",
    "sparsyfed:SparsyFed",
    "spafl:SpaFL",
    "fedsparsify:OneShot",
    "fedsparsify:RandomPruning",
    "baselines:TopK",
    "baselines:Snip",
)
"""File and class of every method."""


def _class(place: str) -> type[Sparsifier]:
    module, _, name = place.partition(":")
    kind: type[Sparsifier] = getattr(import_module(f"{__name__}.{module}"), name)
    return kind


METHODS: dict[str, type[Sparsifier]] = {kind.name: kind for kind in map(_class, _CLASSES)}


def method_named(name: str) -> type[Sparsifier]:
    """The class of a method.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in METHODS:
        raise ConfigError(f"there is no method {name!r}; known are {', '.join(METHODS)}")
    return METHODS[name]


def sparsifier(plan: Plan) -> Sparsifier:
    """The method that a plan names.

    Raises:
        ConfigError: There is none of that name, or the plan or its options do not fit the method.
    """
    method = method_named(plan.method)
    if plan.granularity not in method.granularities:
        known = ", ".join(method.granularities)
        raise ConfigError(f"{plan.method} cannot remove by {plan.granularity}, only by {known}: change granularity")
    return method(plan)


def complete(plan: Plan) -> Plan:
    """The plan with every option of its method spelt out.

    Raises:
        ConfigError: As :func:`sparsifier`.
    """
    return replace(plan, options=tuple(sparsifier(plan).options.items()))


__all__ = ["METHODS", "GlobalState", "Sparsifier", "complete", "method_named", "sparsifier"]
