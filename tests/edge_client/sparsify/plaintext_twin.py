"""FedSparsify-Global as its authors describe and run it, in plain torch, with no line of PruneSeal's in it.

Stripelis et al., arXiv:2204.12430, and the released code: (purge, merge, tune)+. No grid, no support, no encryption:
whole float tensors are averaged, and zeros are zeros because they were multiplied with a mask. Shared with the client
are only the data, the network and the order in which a node walks through its rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

Rows = tuple[np.ndarray, np.ndarray]
Model = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """S_T, T, t0, F and n of the schedule; how a learner trains."""

    sparsity: float
    rounds: int
    start: int
    frequency: int
    exponent: float
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float


def schedule(s: Settings, t: int) -> float:
    """s_t = S_T + (S_0 - S_T) * (1 - (F * floor(t / F) - t0) / (T - t0))^n with S_0 = 0."""
    progress = (s.frequency * (t // s.frequency) - s.start) / (s.rounds - s.start)
    return s.sparsity + (0 - s.sparsity) * float((1 - progress) ** s.exponent)


def purge(w: Model, sparsity: float) -> Model:
    """Whole-model ranking: threshold = sorted(|w|)[int(s P)] over all parameters; keep |w| >= threshold."""
    flat = torch.cat([tensor.abs().ravel() for tensor in w.values()]).sort().values
    threshold = flat[int(sparsity * len(flat))]
    return {name: (tensor.abs() >= threshold).float() for name, tensor in w.items()}


def tune(network: nn.Module, w: Model, m: Model, rows: Rows, s: Settings, seed: int) -> Model:
    """One learner: SGD with the mask put on at every batch's begin and at every epoch's end."""
    network.load_state_dict(w)
    parameters = dict(network.named_parameters())

    def enforce() -> None:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(parameter * m[name])

    optimiser = torch.optim.SGD(network.parameters(), lr=s.learning_rate, momentum=s.momentum)
    x, y = (torch.from_numpy(array) for array in rows)
    shuffle = np.random.default_rng(seed)
    for _ in range(s.epochs):
        for batch in torch.split(torch.from_numpy(shuffle.permutation(len(y))), s.batch_size):
            enforce()
            optimiser.zero_grad()
            functional.cross_entropy(network(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        enforce()
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def train(
    network: nn.Module, learners: Sequence[Rows], s: Settings, seed_of: Callable[[int, int], int]
) -> list[tuple[Model, Model]]:
    """The weights and the mask after every round.

    Args:
        network: At its initial weights.
        learners: The rows of each learner.
        s: The settings.
        seed_of: The seed of a learner's walk through its rows, by round and position.
    """
    w = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    m = {name: torch.ones_like(tensor) for name, tensor in w.items()}
    total = sum(len(y) for _, y in learners)
    states = []
    for t in range(1, s.rounds + 1):
        tuned = [tune(network, w, m, rows, s, seed_of(t, k)) for k, rows in enumerate(learners)]
        w = {name: sum(len(y) / total * each[name] for each, (_, y) in zip(tuned, learners, strict=True)) for name in w}  # type: ignore[misc]
        if t > s.start:
            m = purge(w, schedule(s, t))
            w = {name: tensor * m[name] for name, tensor in w.items()}
        states.append((w, m))
    return states


def elect(masks: Sequence[Model]) -> Model:
    """Majority voting: keep where at least floor(N / 2) of the N learners' masks keep."""
    votes = {name: torch.stack([m[name] for m in masks]).sum(dim=0) for name in masks[0]}
    return {name: (v >= len(masks) // 2).float() for name, v in votes.items()}


def train_local(
    network: nn.Module, learners: Sequence[Rows], s: Settings, seed_of: Callable[[int, int], int]
) -> list[tuple[Model, Model]]:
    """FedSparsify-Local: each learner purges, the majority decides, zeros count in the weighted average."""
    w = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    m = {name: torch.ones_like(tensor) for name, tensor in w.items()}
    total = sum(len(y) for _, y in learners)
    states = []
    for t in range(1, s.rounds + 1):
        tuned = [tune(network, w, m, rows, s, seed_of(t, k)) for k, rows in enumerate(learners)]
        if t > s.start:
            masks = [purge({name: each[name] * m[name] for name in w}, schedule(s, t)) for each in tuned]
            tuned = [{name: each[name] * mask[name] for name in w} for each, mask in zip(tuned, masks, strict=True)]
            m = elect(masks)
        w = {
            name: m[name] * sum(len(y) / total * each[name] for each, (_, y) in zip(tuned, learners, strict=True))
            for name in w
        }
        states.append((w, m))
    return states
