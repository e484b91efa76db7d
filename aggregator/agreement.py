"""Who goes on where clients do not agree: the majority. One client that says something else costs nobody a round.

Every client derives the same model and the same support from the same bytes, so whoever reports another one runs other
versions, has met a tampered message, or lies. It is refused and named; no pair is accused.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from protocol.attendance import Attendance
from protocol.errors import AgreementError, PeerMismatch

FIELDS: Final = ("model", "support", "values", "votes", "figures", "spoiled")
"""What all attendances of a cohort must have in common and only clients can derive."""


def agreeing(said: Mapping[int, Sequence[object]], fields: Sequence[str]) -> Iterator[tuple[int, PeerMismatch | None]]:
    """What becomes of each node: nothing, if it agrees with more than half of all, or the error that refuses it.

    Args:
        said: By node, its value of each field.
        fields: The names of the fields.

    Raises:
        AgreementError: No combination of values is that of more than half of the nodes.
    """
    counts = Counter(tuple(values) for values in said.values())
    ours, most = counts.most_common(1)[0]
    if 2 * most <= len(said):
        columns = zip(fields, zip(*counts, strict=True), strict=True)
        differing = next(name for name, values in columns if len({*values}) > 1)
        raise AgreementError(differing, tuple(sorted(said)))
    for node, theirs in said.items():
        different = [PeerMismatch(*each) for each in zip(fields, ours, theirs, strict=True) if each[1] != each[2]]
        yield node, different[0] if different else None


def derived(attendance: Attendance) -> tuple[object, ...]:
    """An attendance's values of :data:`FIELDS`."""
    return tuple(getattr(attendance, field) for field in FIELDS)
