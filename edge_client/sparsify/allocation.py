"""How the positions that stay are shared out over the tensors: one choice that all methods have in common.

* ``global``: the highest scores of the whole model (FedSparsify, SparsyFed);
* ``uniform``: every tensor keeps the same share of its positions;
* ``erk``: Erdos-Renyi-Kernel, a share that falls with the tensor's size, proportional to sum(shape) / prod(shape)
  (Mocanu et al. 2018, arXiv:1707.04780; with kernels Evci et al. 2020, arXiv:1911.11134);
* ``macs``: the highest scores per multiply-accumulate that going without the position saves.

Laws: exactly the asked number of candidates stays; where a floor is set, no tensor falls below it while it has as many
candidates. Everything is computed in integers and single float64 operations, so that two clients get the same mask.
"""

from collections.abc import Callable
from math import fsum, prod
from typing import Final

import numpy as np

from edge_client.sparsify.interface import Sparsifier
from edge_client.sparsify.options import FRACTION, Option
from edge_client.sparsify.topk import top_k
from protocol.errors import ConfigError
from protocol.layout import Layout, Mask, TensorSpec, Vector

_SHARES: Final[dict[str, Callable[[TensorSpec], int]]] = {
    "uniform": lambda tensor: prod(tensor.shape),
    "erk": lambda tensor: max(1, sum(tensor.shape)),
}
"""For the rules by tensor: what the number of positions that a tensor keeps is proportional to."""

NAMES: Final = ("global", *_SHARES, "macs")
_BISECTIONS = 100


def weights(layout: Layout) -> Mask:
    """The positions of the trainable tensors of two or more dimensions, bool[P]: no biases, no normalisation."""
    chosen = [tensor.trainable and len(tensor.shape) > 1 for tensor in layout.tensors]
    return np.repeat(chosen, layout.sizes).astype(np.bool_)


def allocate(scores: Vector, candidates: Mask, count: int, layout: Layout, rule: str, floor: float = 0.0) -> Mask:
    """Choose which ``count`` of the candidates stay, or all where there are no more.

    Args:
        scores: float32[P], not negative.
        candidates: bool[P].
        count: At least 1.
        layout: The layout of the vector.
        rule: One of :data:`NAMES`.
        floor: The share of each tensor's positions, rounded down, that stays whatever its scores.

    Returns:
        bool[P], a part of the candidates.

    Raises:
        ConfigError: The rule is unknown, or the floor alone needs more than ``count`` positions.
    """
    if rule not in NAMES:
        raise ConfigError(f"there is no allocation {rule!r}; known are {', '.join(NAMES)}")
    if count >= candidates.sum():
        return candidates
    places = [
        start + np.flatnonzero(cut)
        for start, cut in zip(layout.offsets, np.split(candidates, layout.offsets[1:-1]), strict=False)
    ]
    most = [len(place) for place in places]
    least = [min(int(floor * tensor.size), there) for tensor, there in zip(layout.tensors, most, strict=True)]
    if sum(least) > count:
        raise ConfigError(f"layer-floor {floor} needs {sum(least)} positions where {count} stay: lower it or sparsity")
    if rule == "macs":
        work = np.array([tensor.work for tensor in layout.tensors], np.float32)
        scores = np.divide(scores, np.repeat(work, layout.sizes), dtype=np.float32)
    quotas = least
    if rule in _SHARES:
        quotas = _quotas([_SHARES[rule](tensor) for tensor in layout.tensors], least, most, count)
    mask = np.zeros(layout.size, np.bool_)
    for place, quota in zip(places, quotas, strict=True):
        if quota:
            mask[place[top_k(scores[place], quota)]] = True
    if left := count - sum(quotas):
        rest = np.flatnonzero(candidates & ~mask)
        mask[rest[top_k(scores[rest], left)]] = True
    return mask


class Allocating(Sparsifier):
    """A method that shares out over the tensors what stays."""

    allocation = Option(
        "global",
        "How the survivors are shared out over the tensors: the highest scores of the whole model (`global`), an even "
        "share (`uniform`), Erdos-Renyi-Kernel (`erk`), or the highest per multiply-accumulate saved (`macs`).",
        choices=NAMES,
    )
    layer_floor = Option(0.0, "The share of every tensor that stays in any case, so that no layer dies.", FRACTION)


def _quotas(shares: list[int], least: list[int], most: list[int], count: int) -> list[int]:
    """Whole numbers proportional to the shares within their limits, of this sum; fractions go to the largest ones."""

    def at(scale: float) -> list[float]:
        return [min(max(scale * s, low), high) for s, low, high in zip(shares, least, most, strict=True)]

    lower, upper = 0.0, float(max(most))
    for _ in range(_BISECTIONS):
        middle = (lower + upper) / 2
        lower, upper = (middle, upper) if fsum(at(middle)) <= count else (lower, middle)
    exact = at(lower)
    quotas = [int(quota) for quota in exact]
    order = sorted(range(len(quotas)), key=lambda i: quotas[i] - exact[i])
    while (left := count - sum(quotas)) > 0:
        for i in [i for i in order if quotas[i] < most[i]][:left]:
            quotas[i] += 1
    return quotas
