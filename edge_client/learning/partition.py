"""How the training rows are dealt to the clients of an experiment.

Laws: the clients' rows are sorted and disjoint and, but for the remainder that ``shards`` drops, cover all rows; equal
arguments give equal partitions in every process, so each client works out its own rows and none are sent.

Sources: ``iid`` and ``shards`` are FedSparsify's two environments (arXiv 2204.12430, in the order of its released
code); ``dirichlet`` draws each class's shares over the clients (Yurochkin et al., arXiv 1905.12022) and redraws for a
minimum of ten rows as NIID-Bench does (Li et al., arXiv 2102.02079); ``group`` follows a natural partition.
"""

import re
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from protocol.errors import DataError

Indices = NDArray[np.int64]
Partition = tuple[Indices, ...]

FORMS = (
    "iid; shards:C (C chunks of different classes per client); dirichlet:ALPHA (a number > 0, smaller is more skewed); "
    "group (by the groups that come with the data)"
)
"""The partition specs that :func:`partition` knows, for error texts and help."""

_DIRICHLET_MINIMUM = 10
"""Rows below which a client's data would be noise: the redraw limit that NIID-Bench made customary."""

_DIRICHLET_DRAWS = 1_000


def partition(spec: str, labels: Indices, groups: Indices | None, clients: int, seed: int) -> Partition:
    """Each client's training rows, as ``spec`` (see :data:`FORMS`) deals them.

    Args:
        spec: The scheme and its argument.
        labels: i64[n], the class of each training row.
        groups: i64[n], the natural group of each row, or None; only ``group`` reads it.
        clients: K, at least 1.
        seed: Of the draw of ``iid`` and ``dirichlet``; the other two draw nothing.

    Returns:
        K sorted i64 arrays of rows, none empty.

    Raises:
        DataError: The spec is unknown, or these rows cannot be dealt to so many clients in this way.
    """
    if clients < 1 or len(labels) < clients:
        raise DataError(f"{len(labels)} training rows cannot be dealt to {clients} clients; each needs at least one")
    rng = np.random.default_rng(seed)
    kind, _, argument = spec.partition(":")
    if spec == "iid":
        return iid(len(labels), clients, rng)
    if kind == "shards" and re.fullmatch(r"[1-9][0-9]*", argument, re.ASCII):
        return shards(labels, clients, int(argument))
    if kind == "dirichlet" and re.fullmatch(r"[0-9]*\.?[0-9]+", argument, re.ASCII):
        return dirichlet(labels, clients, float(argument), rng)
    if spec == "group" and groups is None:
        raise DataError("partition 'group' needs data that comes with groups, and this data has none")
    if spec == "group" and groups is not None:
        return by_group(groups, clients)
    raise DataError(f"unknown partition {spec!r}; known forms: {FORMS}")


def iid(rows: int, clients: int, rng: np.random.Generator) -> Partition:
    """One permutation in equal contiguous slices; where K does not divide the rows, the first slices have one more."""
    return tuple(np.sort(piece) for piece in np.array_split(rng.permutation(rows), clients))


def shards(labels: Indices, clients: int, chunks: int) -> Partition:
    """FedSparsify's Non-IID environment: rows sorted by label, in clients * chunks equal chunks, dealt out greedily.

    In order, each client takes the first remaining chunks that share no class with those that it has. Nothing is drawn.
    Rows beyond the last whole chunk (fewer than clients * chunks) stay unused.

    Raises:
        DataError: There are fewer rows than chunks, or a client finds too few chunks without a common class: the greedy
            order can fail where class sizes are not multiples of the chunk, since a chunk may then hold two classes.
    """
    size = len(labels) // (clients * chunks)
    if size == 0:
        raise DataError(f"{len(labels)} training rows are too few for {clients} clients x {chunks} chunks")
    pile = np.argsort(labels, kind="stable")[: size * clients * chunks].reshape(-1, size)
    classes = [frozenset(labels[chunk].tolist()) for chunk in pile]
    remaining = list(range(len(pile)))
    dealt = []
    for client in range(clients):
        taken: list[int] = []
        held: set[int] = set()
        for chunk in remaining:
            if len(taken) == chunks:
                break
            if held.isdisjoint(classes[chunk]):
                taken.append(chunk)
                held |= classes[chunk]
        if len(taken) < chunks:
            raise DataError(
                f"shards:{chunks} fails at client {client} of {clients}: only {len(taken)} of the chunks that are left "
                "share no class. It needs balanced classes, at least as many as chunks per client; try dirichlet:ALPHA"
            )
        remaining = sorted(set(remaining).difference(taken))
        dealt.append(np.sort(pile[taken], axis=None))
    return tuple(dealt)


def dirichlet(labels: Indices, clients: int, alpha: float, rng: np.random.Generator) -> Partition:
    """Every class cut over the clients in shares drawn from a symmetric Dirichlet distribution.

    The shares of all classes are drawn again until every client has ten rows; then the rows of each class are permuted.

    Raises:
        DataError: Alpha is not a positive number, or no draw gives every client its ten rows.
    """
    if not (isfinite(alpha) and alpha > 0):
        raise DataError(f"dirichlet:ALPHA needs a positive, finite ALPHA, not {alpha}")
    sizes = np.unique(labels, return_counts=True)[1]
    for _ in range(_DIRICHLET_DRAWS if len(labels) >= clients * _DIRICHLET_MINIMUM else 0):
        shares = rng.dirichlet(np.full(clients, alpha), size=len(sizes))
        cuts = (shares.cumsum(axis=1)[:, :-1] * sizes[:, np.newaxis]).astype(np.int64)
        counts = np.diff(cuts, axis=1, prepend=0, append=sizes[:, np.newaxis])
        if counts.sum(axis=0).min() >= _DIRICHLET_MINIMUM:
            break
    else:
        raise DataError(
            f"dirichlet:{alpha:g} found no draw that gives each of {clients} clients {_DIRICHLET_MINIMUM} of the "
            f"{len(labels)} training rows; use a larger ALPHA or fewer clients"
        )
    pieces = [
        np.split(rng.permutation(np.flatnonzero(labels == label)), cut)
        for label, cut in zip(np.unique(labels), cuts, strict=True)
    ]
    return tuple(np.sort(np.concatenate(piece)) for piece in zip(*pieces, strict=True))


def by_group(groups: Indices, clients: int) -> Partition:
    """Whole groups, dealt round-robin from the largest to the smallest; equal sizes in the order of their numbers.

    Raises:
        DataError: There are more clients than groups.
    """
    numbers, sizes = np.unique(groups, return_counts=True)
    if len(numbers) < clients:
        raise DataError(
            f"{len(numbers)} groups cannot be dealt to {clients} clients; use {len(numbers)} clients or fewer"
        )
    order = numbers[np.argsort(-sizes, kind="stable")]
    return tuple(np.flatnonzero(np.isin(groups, order[client::clients])) for client in range(clients))
