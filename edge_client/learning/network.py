"""The pair extract / insert, and the network that it reads and writes: a model as its method wears it.

Law: after ``insert(network, v)``, ``extract(network) == v``; and ``insert(network, extract(network))`` changes nothing.

A network is a pure function of plan, run and the shape of the data, so all clients of a run begin with the same one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from edge_client.learning import models
from edge_client.learning.uses import uses
from edge_client.sparsify import GlobalState, Sparsifier, sparsifier
from edge_client.sparsify.interface import plain_name
from protocol.errors import ConfigError
from protocol.layout import Layout, Mask, TensorSpec, Vector, flatten, unflatten
from protocol.plan import Plan


@dataclass(frozen=True, eq=False)
class Network:
    """A plan's model, as its method wears it, and the layout of what travels.

    Attributes:
        model: The torch module.
        method: The plan's method.
        layout: The layout of the travelling tensors.
        initial: The state before round 1.
        work: The multiply-accumulates of one sample that each position of a weight takes part in, by plain name.
    """

    model: nn.Module
    method: Sparsifier
    layout: Layout
    initial: GlobalState
    work: Mapping[str, int]


def build_network(plan: Plan, input_shape: tuple[int, ...], classes: int, run: bytes) -> Network:
    """The network that every client of a run begins with.

    Args:
        plan: The plan.
        input_shape: The shape of one input.
        classes: How many classes the data have.
        run: The run's name; the initial weights follow from it and the plan's seed.

    Raises:
        ConfigError: The plan names no model or method, or the model does not fit the data.
    """
    method = sparsifier(plan)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.run_seed(run))
        plain = models.build(plan.model, input_shape, classes)
    work = uses(plain, input_shape)
    weights = {name: work[name] for name, parameter in plain.named_parameters() if parameter.dim() > 1}
    return network_of(method.wear(plain), method, work, weights)


def network_of(
    model: nn.Module,
    method: Sparsifier,
    work: Mapping[str, int] | None = None,
    weights: Mapping[str, int] | None = None,
) -> Network:
    """The network of a model that a method wears already.

    Args:
        model: What the method wears, at its initial weights.
        method: Says what travels.
        work: How often the plain model uses each parameter; by default once.
        weights: The same of its weights alone; by default of none.

    Raises:
        ConfigError: The model is not float32.
    """
    layout = layout_of(model, method, work)
    vector = _vector(model, method, layout)
    return Network(model, method, layout, first_state(vector, layout, method.first_mask(vector, layout)), weights or {})


def layout_of(model: nn.Module, method: Sparsifier, work: Mapping[str, int] | None = None) -> Layout:
    """The layout of the tensors that travel.

    Args:
        model: What the method wears.
        method: Says what travels.
        work: How often the plain model uses each parameter; by default once.

    Raises:
        ConfigError: The model is not float32.
    """
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    travelling = method.travelling(model)
    if wrong := [name for name, tensor in travelling.items() if tensor.dtype != torch.float32]:
        raise ConfigError(f"models are trained in float32, but {wrong[0]} is {travelling[wrong[0]].dtype}")
    return Layout(
        tuple(
            TensorSpec(name, tuple(travelling[name].shape), name in trainable, (work or {}).get(plain_name(name), 1))
            for name in sorted(travelling)
        )
    )


def first_state(vector: Vector, layout: Layout, kept: Mask | None = None) -> GlobalState:
    """The state before round 1: the initial model, float32[P], on the positions that are kept, by default all."""
    kept = np.ones(layout.size, np.bool_) if kept is None else kept
    return GlobalState(0, np.where(kept, vector, np.float32(0)), kept)


def extract(network: Network) -> Vector:
    """The travelling tensors of a network, float32[P]."""
    return _vector(network.model, network.method, network.layout)


def insert(network: Network, vector: Vector) -> None:
    """Let the network absorb a global vector, float32[P]."""
    tensors = {name: torch.from_numpy(cut.copy()) for name, cut in unflatten(vector, network.layout).items()}
    network.method.absorb(network.model, tensors)


def _vector(model: nn.Module, method: Sparsifier, layout: Layout) -> Vector:
    return flatten({name: tensor.detach().numpy() for name, tensor in method.travelling(model).items()}, layout)
