"""SpaFL as its paper and its authors' code describe it, in plain torch, with no line of PruneSeal's in it.

Every client keeps its own weights; thresholds, one per neuron, are trained with them by the identity straight-through
estimator, averaged without weights, and what they have risen moves the weights before the next round.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tests.edge_client.sparsify.plaintext_twin import Model, Rows

LAYERS = ("fc1", "fc2")


@dataclass(frozen=True)
class Settings:
    """The regulariser's weight, and how a client trains."""

    penalty: float
    rounds: int
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float


def layer(x: torch.Tensor, own: Model, name: str) -> torch.Tensor:
    """A linear layer whose neuron i is on where the mean magnitude of its weights exceeds its threshold."""
    w = own[f"{name}.w"]
    q = w.abs().mean(dim=1) - own[f"{name}.tau"]
    on = (q > 0).float()
    m = on + q - q.detach()  # the value of the step, the gradient of the identity
    return x @ (w * m[:, None]).T + own[f"{name}.b"] * on


def fit(own: Model, rows: Rows, s: Settings, seed: int) -> Model:
    """One client's local training: weights and thresholds together."""
    own = {name: tensor.clone().requires_grad_() for name, tensor in own.items()}
    optimiser = torch.optim.SGD(list(own.values()), lr=s.learning_rate, momentum=s.momentum)
    x, y = (torch.from_numpy(array) for array in rows)
    shuffle = np.random.default_rng(seed)
    for _ in range(s.epochs):
        for batch in torch.split(torch.from_numpy(shuffle.permutation(len(y))), s.batch_size):
            optimiser.zero_grad()
            logits = layer(torch.tanh(layer(x[batch], own, "fc1")), own, "fc2")
            regulariser = torch.exp(-own["fc1.tau"]).sum() + torch.exp(-own["fc2.tau"]).sum()
            (functional.cross_entropy(logits, y[batch]) + s.penalty * regulariser).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return {name: tensor.detach() for name, tensor in own.items()}


def train(
    network: nn.Module, learners: Sequence[Rows], s: Settings, seed_of: Callable[[int, int], int]
) -> list[tuple[Model, list[Model]]]:
    """The global thresholds after every round, and what each client has trained to in it."""
    start = {f"{name}.w": network.get_parameter(f"{name}.weight").detach() for name in LAYERS}
    start |= {f"{name}.b": network.get_parameter(f"{name}.bias").detach() for name in LAYERS}
    start |= {f"{name}.tau": torch.zeros(len(start[f"{name}.b"])) for name in LAYERS}
    clients = [{name: tensor.clone() for name, tensor in start.items()} for _ in learners]
    tau = {name: start[f"{name}.tau"] for name in LAYERS}
    states = []
    for t in range(1, s.rounds + 1):
        trained = [
            fit(own, rows, s, seed_of(t, k)) for k, (own, rows) in enumerate(zip(clients, learners, strict=True))
        ]
        rise = {}
        for name in LAYERS:
            mean = torch.stack([own[f"{name}.tau"] for own in trained]).mean(dim=0)
            rise[name], tau = mean - tau[name], {**tau, name: mean}
        states.append((tau, trained))
        clients = []
        for own in trained:
            moved = dict(own)
            for name in LAYERS:
                w = own[f"{name}.w"]
                moved[f"{name}.w"] = w - (rise[name] * w.sum(dim=1).sign() / w.shape[1])[:, None]
                moved[f"{name}.tau"] = tau[name]
            clients.append(moved)
    return states
