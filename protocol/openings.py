"""Which sums may be opened: what nodes remember of earlier ones, and what may follow.

An update is exposed by what sums can be combined to, not by one of them alone. So for one *starting state* (the vector
and mask that a training begins from; and likewise within one round of a run) the sets whose sums are opened must form a
*laminar family*: any two of them are disjoint, or one lies inside the other. Its *atoms*, a set without the opened sets
inside it, must be empty or hold at least ``colluders + 2`` members. Every combination of such sums is constant on each
atom, so it touches no fewer clients than that.

Nobody sees all of the family. What everybody who consents must know comes from quorums:

* A sum is opened with the consent of ``threshold(invited)`` of the nodes that were invited to its attempt. Two quorums
  of the same invited nodes share ``colluders + 1``, one of them honest.
* A node that has contributed to an attempt says so with every later attendance from the same state, as an `Opening`:
  who was invited, and which sets it has consented to. It is signed, and it stands in the announced cohort.
* A later attempt in which such a node takes part may be opened only if its quorum is also one of the *earlier*
  invited: at least ``threshold(earlier)`` of them. So an honest node consents in both, it remembers what was opened,
  and everybody who consents to the later one reads it in that node's attendance.

So if an honest node is in two opened sets, all honest nodes that consented to the later one have compared the two. The
quorum condition is transitive, so this holds along whatever chain of attempts leads from one set to another.
`tests/attacks/search.py` looks for schedules that expose somebody in spite of it.
"""

import hashlib
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeVar

from protocol.errors import CohortRefused, MalformedMessage
from protocol.sharing import threshold

Nodes = frozenset[int]
MEMORY_LIMIT: Final = 1 << 16
"""An attendance remembers no more than so many bytes."""
MOST_NODES: Final = 1 << 16
"""No set of nodes is larger; a longer one is refused before it is read."""
MOST_SETS: Final = 64
"""No attempt opens more sums; they have a bit each in an attendance."""
_COUNT = struct.Struct("<I")
_BITS = struct.Struct("<Q")  # MOST_SETS of them
_T = TypeVar("_T")


def smallest(colluders: int) -> int:
    """The smallest sum, and the smallest difference of two, that is not one honest client's update to colluders."""
    return colluders + 2


@dataclass(frozen=True)
class Opening:
    """An attempt that a node has contributed to.

    Attributes:
        invited: Who was invited to it.
        sets: The sets whose sums the node has consented to open; empty where it has heard of none.
    """

    invited: Nodes
    sets: frozenset[Nodes]


Memory = frozenset[Opening]
"""What a node remembers of one starting state."""


def require_openable(memory: Iterable[Opening], invited: Nodes, sets: Collection[Nodes], colluders: int) -> None:
    """Refuse to open sums that could expose somebody, together with those that were opened before.

    Args:
        memory: What all members of the cohort remember of this starting state.
        invited: Who was invited to this attempt.
        sets: Whose sums would be opened; with none, only the quorum is looked at.
        colluders: How many clients may work with the aggregator.

    Raises:
        CohortRefused: They must not be opened.
    """
    now, opened = threshold(len(invited), colluders), set[Nodes]()
    for opening in memory:
        earlier = threshold(len(opening.invited), colluders)
        if now - len(invited - opening.invited) < earlier:
            raise CohortRefused(
                "a sum from the same starting model was begun with other nodes: those that were invited then "
                f"({_named(opening.invited)}) have to be invited again, or the run has to begin from another model"
            )
        if sets:
            opened |= opening.sets
    family = opened.union(sets)
    for one in family:
        inside = [other for other in family if other < one]
        crossing = [other for other in family if one & other and not one <= other and not other <= one]
        if crossing or 0 < len(one.difference(*inside)) < smallest(colluders):
            raise CohortRefused(_advice(max(opened & {one, *inside, *crossing} or {one}, key=len)))


def _advice(opened: Nodes) -> str:
    return (
        "the difference of two sums from the same starting model could expose a member: with a sum of "
        f"{_named(opened)}, no other may be opened. They have to take part again, all of them, or the run has to begin "
        "from another model"
    )


def _named(nodes: Nodes) -> str:
    first = sorted(nodes)
    return f"nodes {', '.join(map(str, first[:12]))}{f' and {len(first) - 12} more' if len(first) > 12 else ''}"


def encode_nodes(nodes: Iterable[int]) -> bytes:
    """Numbers of nodes in ascending order, u32 each, after their count."""
    numbers = sorted(nodes)
    return struct.pack(f"<{len(numbers) + 1}I", len(numbers), *numbers)


def decode_nodes(data: bytes) -> Nodes:
    """Read what :func:`encode_nodes` has written, and nothing else.

    Raises:
        MalformedMessage: It is something else.
    """
    nodes, end = _nodes_at(data, 0)
    if end != len(data):
        raise MalformedMessage("a list of nodes is longer than it says")
    return nodes


def encode_sets(sets: Sequence[Nodes]) -> bytes:
    """Sets of nodes end to end, after their count."""
    return _COUNT.pack(len(sets)) + b"".join(map(encode_nodes, sets))


def sets_at(data: bytes, at: int) -> tuple[tuple[Nodes, ...], int]:
    """The sets of nodes that stand at a place, and where they end.

    Raises:
        MalformedMessage: Something else stands there, or more than :data:`MOST_SETS`.
    """
    count, at = _count_at(data, at)
    if count > MOST_SETS:
        raise MalformedMessage(f"{count} sets of nodes are more than {MOST_SETS}")
    sets = []
    for _ in range(count):
        one, at = _nodes_at(data, at)
        sets.append(one)
    return tuple(sets), at


def spoiled_to_bytes(spoiled: int) -> bytes:
    """Which of several sums are none, a bit for each, as a frame."""
    return _BITS.pack(spoiled)


def spoiled_from_bytes(data: bytes) -> int:
    """Read what :func:`spoiled_to_bytes` has written.

    Raises:
        MalformedMessage: It is something else.
    """
    if len(data) != _BITS.size:
        raise MalformedMessage(f"the bits of spoiled sums are {_BITS.size} bytes long, not {len(data)}")
    return int(_BITS.unpack(data)[0])


def unspoiled(sums: Iterable[_T], spoiled: int) -> list[_T]:
    """Of what stands for each of several sums, that of those whose bit says that they are good."""
    return [one for place, one in enumerate(sums) if not spoiled >> place & 1]


def nodes_digest(nodes: Iterable[int]) -> bytes:
    """What names a set of nodes, 32 bytes."""
    return hashlib.blake2b(encode_nodes(nodes), digest_size=32, person=b"pruneseal nodes").digest()


def encode_memory(memory: Memory) -> bytes:
    """One node's memory, in the one order that equal memories have; nothing for none."""
    parts = [encode_nodes(opening.invited) + encode_sets(sorted(opening.sets, key=sorted)) for opening in memory]
    return b"".join(sorted(parts))


def decode_memory(data: bytes) -> Memory:
    """Read what :func:`encode_memory` has written, and nothing else.

    Raises:
        MalformedMessage: It is something else, or longer than a memory may be.
    """
    if len(data) > MEMORY_LIMIT:
        raise MalformedMessage(f"a memory of {len(data)} bytes is longer than {MEMORY_LIMIT}")
    memory = frozenset(_openings(data))
    if encode_memory(memory) != data:
        raise MalformedMessage("what a node remembers is not written in its one order")
    return memory


def _openings(data: bytes) -> Iterator[Opening]:
    at = 0
    while at < len(data):
        invited, at = _nodes_at(data, at)
        sets, at = sets_at(data, at)
        if not all(one <= invited for one in sets):
            raise MalformedMessage("a node remembers the sum of some who were not invited")
        yield Opening(invited, frozenset(sets))


def _nodes_at(data: bytes, at: int) -> tuple[Nodes, int]:
    count, at = _count_at(data, at)
    end = at + 4 * count
    if count > MOST_NODES or end > len(data):
        raise MalformedMessage("a list of nodes ends too early, or is too long")
    numbers = struct.unpack_from(f"<{count}I", data, at)
    if any(a >= b for a, b in pairwise(numbers)):
        raise MalformedMessage("a list of nodes must be in ascending order")
    return frozenset(numbers), end


def _count_at(data: bytes, at: int) -> tuple[int, int]:
    if at + 4 > len(data):
        raise MalformedMessage("a list of nodes ends too early")
    return int(_COUNT.unpack_from(data, at)[0]), at + 4
