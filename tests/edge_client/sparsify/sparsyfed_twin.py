"""SparsyFed as its paper and its authors' code describe it, in plain torch, with no line of PruneSeal's in it.

Guastella et al., arXiv:2504.05153: broadcast, re-parameterise, forward, prune the saved activations with the layer's
own sparsity, step; at the end of local training one global Top-K; the mean of what is left. Everything trains in round
1, whole float tensors are averaged, and the support is whatever is not zero.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tests.edge_client.sparsify.plaintext_twin import Model, Rows

WEIGHTS = ("fc1.parametrizations.weight.original", "fc2.parametrizations.weight.original")
BIASES = ("fc1.bias", "fc2.bias")


@dataclass(frozen=True)
class Settings:
    """beta, how many weights Top-K keeps, and how a client trains."""

    beta: float
    kept: int
    rounds: int
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float


class PrunedLinear(torch.autograd.Function):
    """x w^T + b, w = sign(theta) |theta|^beta; the weight's gradient sees only the largest inputs of the batch."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, theta: torch.Tensor, bias: torch.Tensor, beta: float) -> torch.Tensor:
        ctx.save_for_backward(x, theta)
        ctx.beta = beta
        return x @ (theta.sign() * theta.abs() ** beta).T + bias

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        (gradient,), (x, theta) = gradients, ctx.saved_tensors
        w = theta.sign() * theta.abs() ** ctx.beta
        density = float((theta != 0).sum()) / theta.numel()
        keep = int(np.ceil(density * x.numel()))
        threshold = x.abs().flatten().sort(descending=True).values[keep - 1]
        pruned = torch.where(x.abs() >= threshold, x, 0.0)
        by_theta = (gradient.T @ pruned) * ctx.beta * theta.abs() ** (ctx.beta - 1)
        return gradient @ w, by_theta, gradient.sum(dim=0), None


def linear(x: torch.Tensor, theta: torch.Tensor, bias: torch.Tensor, beta: float) -> torch.Tensor:
    """The layer as it is trained."""
    made: torch.Tensor = PrunedLinear.apply(x, theta, bias, beta)  # type: ignore[no-untyped-call]
    return made


def top(theta: Model, kept: int) -> Model:
    """One global Top-K over |theta| of all weights."""
    flat = torch.cat([theta[name].abs().ravel() for name in WEIGHTS]).sort(descending=True).values
    return {name: t * (t.abs() >= flat[kept - 1]) if name in WEIGHTS else t for name, t in theta.items()}


def fit(broadcast: Model, rows: Rows, s: Settings, seed: int) -> Model:
    """One client: SGD on theta, then Top-K."""
    own = {name: tensor.clone().requires_grad_() for name, tensor in broadcast.items()}
    optimiser = torch.optim.SGD(list(own.values()), lr=s.learning_rate, momentum=s.momentum)
    x, y = (torch.from_numpy(array) for array in rows)
    shuffle = np.random.default_rng(seed)
    for _ in range(s.epochs):
        for batch in torch.split(torch.from_numpy(shuffle.permutation(len(y))), s.batch_size):
            optimiser.zero_grad()
            hidden = linear(x[batch], own[WEIGHTS[0]], own[BIASES[0]], s.beta)
            logits = linear(torch.tanh(hidden), own[WEIGHTS[1]], own[BIASES[1]], s.beta)
            functional.cross_entropy(logits, y[batch]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return top({name: tensor.detach() for name, tensor in own.items()}, s.kept)


def train(
    network: nn.Module, learners: Sequence[Rows], s: Settings, seed_of: Callable[[int, int], int]
) -> list[tuple[Model, Model]]:
    """The global theta and its support after every round."""
    theta = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    total = sum(len(y) for _, y in learners)
    states = []
    for t in range(1, s.rounds + 1):
        sent = [fit(theta, rows, s, seed_of(t, k)) for k, rows in enumerate(learners)]
        theta = {n: sum(len(y) / total * each[n] for each, (_, y) in zip(sent, learners, strict=True)) for n in theta}  # type: ignore[misc]
        support = {n: (tensor != 0).float() if n in WEIGHTS else torch.ones_like(tensor) for n, tensor in theta.items()}
        states.append((theta, support))
    return states
