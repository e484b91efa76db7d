"""Scores to masks. Two clients must compute the same mask, so ties are broken by position: the earlier one stays."""

from math import ceil

import numpy as np
from numpy.typing import NDArray

from protocol.layout import Mask


def kept_at(sparsity: float, size: int) -> int:
    """How many of ``size`` positions stay at a sparsity: at least that many are zero, and at least one stays.

    FedSparsify's code rounds the number of zeros down, so its 0.95 can be 0.94999; here a target is reached.
    """
    return max(1, size - ceil(sparsity * size - 1e-9))


def top_k(scores: NDArray[np.floating], count: int) -> Mask:
    """The ``count`` positions of the highest scores, bool[len(scores)]; scores are finite.

    Raises:
        ValueError: There are not that many positions.
    """
    if not 0 < count <= scores.size:
        raise ValueError(f"{count} of {scores.size} positions cannot be kept")
    threshold = np.partition(scores, scores.size - count)[scores.size - count]
    mask: Mask = scores > threshold
    ties = np.flatnonzero(scores == threshold)
    mask[ties[: count - int(mask.sum())]] = True
    return mask
