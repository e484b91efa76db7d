"""Local training under a mask, and evaluation.

Every trainable tensor of the model is made a view of one vector, so one step of SGD is one operation on it and one more
enforces the mask: after every step, not after every epoch, exactly the surviving positions are non-zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edge_client.filters.shrink import shrink
from edge_client.learning.data import Share
from edge_client.learning.network import Network, insert
from protocol.errors import TrainingError
from protocol.layout import Layout, Mask, Vector, flatten, unflatten
from protocol.plan import Plan

_EVALUATION_BATCH = 512
_GRADIENT_BATCH = 128


@dataclass(frozen=True)
class Score:
    """What a model does on a client's held-out rows: counts that add up over clients.

    Attributes:
        correct: Rows whose largest logit is the label's.
        tested: Rows in all.
        loss: Sum of the rows' cross-entropies, nats.
    """

    correct: int
    tested: int
    loss: float


def local_update(network: Network, mask: Mask, share: Share, plan: Plan, seed: int) -> float:
    """Train the network in place: ``plan.epochs`` of SGD under the mask, bool[P].

    FedProx (Li et al., MLSys 2020, arXiv:1812.06127) adds mu / 2 * |w - w_t|^2 to the loss: here the vector
    mu * (w - w_t) to the gradient, w_t being the weights at the round's begin.

    Args:
        network: At the global state.
        mask: The surviving positions.
        share: The client's rows.
        plan: Epochs, batch size, learning rate, momentum, mu.
        seed: Of the order of rows and of dropout.

    Returns:
        The mean cross-entropy of the last epoch, nats.

    Where the plan removes filters, a network without the dead ones is trained in the network's place.

    Raises:
        TrainingError: The loss is not finite.
    """
    if plan.granularity != "filter":
        return _train(network, mask, share, plan, seed)
    small = shrink(network.model, network.layout, mask)
    loss = _train(replace(network, model=small.model, layout=small.layout), small.mask, share, plan, seed)
    small.restore(network.model)
    return loss


def _train(network: Network, mask: Mask, share: Share, plan: Plan, seed: int) -> float:
    """The loop of :func:`local_update`."""
    model, layout = network.model, network.layout
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kept = _masks(parameters, layout, mask)
    weights, gradient = _as_views(parameters)
    weights.mul_(kept)
    start, velocity = weights.clone(), torch.zeros_like(weights)
    x, y = torch.from_numpy(share.x), torch.from_numpy(share.y)
    order = np.random.default_rng(seed)
    loss = float("nan")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.train()
        for _ in range(plan.epochs):
            rows = torch.from_numpy(order.permutation(len(y)))
            total = torch.zeros(())
            for batch in _batches(rows, plan.batch_size):
                gradient.zero_()
                step_loss = functional.cross_entropy(model(x[batch]), y[batch])
                addition = network.method.penalty(model)
                whole = step_loss if addition is None else step_loss + addition
                whole.backward()  # type: ignore[no-untyped-call]
                if plan.proximal:
                    gradient.add_(weights - start, alpha=plan.proximal)
                _step(weights, gradient, velocity, plan)
                weights.mul_(kept)
                total += step_loss.detach() * len(batch)
            loss = float(total) / len(y)
            if not np.isfinite(loss):
                raise TrainingError("the training loss is not finite: lower the learning rate or look at the data")
    return loss


def _step(weights: torch.Tensor, gradient: torch.Tensor, velocity: torch.Tensor, plan: Plan) -> None:
    """A step of SGD with heavy-ball momentum, in place: what `torch.optim.SGD` does, to the last bit.

    That class takes 0.1 ms more for each step, a fifth of the step of a small network, and its first use imports
    PyTorch's compiler, which takes a process longer than a round of the main job.
    """
    if plan.momentum:
        gradient = velocity.mul_(plan.momentum).add_(gradient)
    weights.add_(gradient, alpha=-plan.learning_rate)


def gradient_at(network: Network, vector: Vector, share: Share, seed: int) -> Vector:
    """The gradient of the mean loss on one batch of a client's rows, drawn by the seed, at a global vector: float32[P].

    The network is left at that vector. Buffers have no gradient and are zero in it.
    """
    insert(network, vector)
    model = network.model
    model.eval()
    model.zero_grad()
    rows = np.random.default_rng(seed).permutation(len(share.y))[:_GRADIENT_BATCH]
    x, y = torch.from_numpy(share.x[rows]), torch.from_numpy(share.y[rows])
    functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    travelling = network.method.travelling(model)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return flatten(
        {name: gradients.get(name, torch.zeros_like(tensor)).numpy() for name, tensor in travelling.items()},
        network.layout,
    )


def evaluate(model: nn.Module, x: np.ndarray, y: np.ndarray) -> Score:
    """Score a model on held-out rows, float32[n, ...] and i64[n]."""
    model.eval()
    correct, loss = 0, 0.0
    with torch.no_grad():
        for start in range(0, len(y), _EVALUATION_BATCH):
            labels = torch.from_numpy(y[start : start + _EVALUATION_BATCH])
            logits = model(torch.from_numpy(x[start : start + _EVALUATION_BATCH]))
            correct += int((logits.argmax(dim=1) == labels).sum())
            loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
    return Score(correct, len(y), loss)


def _masks(parameters: Mapping[str, nn.Parameter], layout: Layout, mask: Mask) -> torch.Tensor:
    """The mask laid out like the model's parameters, float32; what does not travel is not masked."""
    cuts = unflatten(mask.astype(np.float32), layout)
    return torch.cat(
        [
            torch.from_numpy(cuts[name].ravel()) if name in cuts else torch.ones(parameter.numel())
            for name, parameter in parameters.items()
        ]
    )


def _as_views(parameters: Mapping[str, nn.Parameter]) -> tuple[torch.Tensor, torch.Tensor]:
    """Make every parameter, and its gradient, a view of one vector each."""
    weights = torch.cat([parameter.detach().ravel() for parameter in parameters.values()])
    gradient = torch.zeros_like(weights)
    start = 0
    for parameter in parameters.values():
        end = start + parameter.numel()
        parameter.data = weights[start:end].view_as(parameter)
        parameter.grad = gradient[start:end].view_as(parameter)
        start = end
    return weights, gradient


def _batches(rows: torch.Tensor, size: int) -> list[torch.Tensor]:
    """Cut an epoch into batches; a last batch of one row joins the one before it, as batch norm needs two."""
    batches = list(torch.split(rows, size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
