"""The announced cohort: who may be in a sum.

A cohort is the list of its members' signed attendances, in node order. An aggregator can therefore neither invent a
member, nor change a sample count (a client whose weight is close to one would send its own model as "the mean"), nor
reuse an attendance of another attempt: every client checks every signature and finds its own fresh key in the list.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from protocol.attendance import Attendance, attendances, decode_attendance, read_attendance
from protocol.errors import AgreementError, CohortRefused, MalformedMessage
from protocol.openings import Memory
from protocol.plan import Plan
from protocol.roster import Roster
from protocol.sharing import threshold
from protocol.terms import DIGEST_BYTES

_COMMON: Final = (
    "run", "round", "attempt", "plan", "key", "model", "support", "values", "votes", "invited", "figures",
)  # fmt: skip


@dataclass(frozen=True)
class Cohort:
    """The announced members of one sum, by ascending node number.

    Attributes:
        members: The attendances.
        encoded: The same as signed bytes, in the same order.
    """

    members: tuple[Attendance, ...]
    encoded: tuple[bytes, ...]

    @property
    def nodes(self) -> frozenset[int]:
        """The members' numbers."""
        return frozenset(member.node for member in self.members)

    @property
    def samples(self) -> int:
        """The samples of all members together."""
        return sum(member.samples for member in self.members)

    def weights(self, most: float) -> dict[int, int]:
        """What each member counts for in the mean, by its number: its samples, bounded by the share ``most``."""
        counts = bounded_weights([member.samples for member in self.members], most)
        return {member.node: count for member, count in zip(self.members, counts, strict=True)}

    @property
    def memory(self) -> Memory:
        """What the members remember, together, of earlier sums from their starting state."""
        return frozenset(opening for member in self.members for opening in member.memory)

    def digest(self, attempt: int) -> bytes:
        """The name of this cohort in one attempt, 32 bytes; it salts the masks."""
        return hashlib.blake2b(
            attempt.to_bytes(4, "little") + b"".join(self.encoded), digest_size=DIGEST_BYTES, person=b"pruneseal cohort"
        ).digest()

    def encode(self) -> bytes:
        """The cohort as it is announced."""
        return b"".join(self.encoded)


def gather_cohort(encoded: Sequence[bytes], roster: Roster) -> Cohort:
    """A cohort from its members' signed attendances, in any order.

    Raises:
        MalformedMessage, SignatureRefused: An attendance cannot be read or is not signed by its node.
        CohortRefused: A node stands in it twice, or there is none.
        AgreementError: Two members disagree on the model, the terms, the plan, the key or the round.
    """
    return _gather([(decode_attendance(data, roster), data) for data in encoded])


def read_cohort(data: bytes) -> Cohort:
    """Read an announced cohort that :func:`decode_cohort` has taken before; no signature is checked again.

    Raises:
        MalformedMessage, CohortRefused, AgreementError: It is not one.
    """
    return _gather([(read_attendance(each), each) for each in attendances(data)])


def _gather(signed: Sequence[tuple[Attendance, bytes]]) -> Cohort:
    pairs = sorted(signed, key=lambda pair: pair[0].node)
    members = tuple(member for member, _ in pairs)
    if not members or len({member.node for member in members}) != len(members):
        raise CohortRefused("a cohort needs members, and each of them once")
    for member in members[1:]:
        require_agreement(members[0], member)
    return Cohort(members, tuple(data for _, data in pairs))


def require_agreement(a: Attendance, b: Attendance) -> None:
    """Refuse two attendances that do not belong to the same sum.

    Raises:
        AgreementError: It names both nodes and the first field that differs.
    """
    for field in _COMMON:
        if getattr(a, field) != getattr(b, field):
            raise AgreementError(field, (a.node, b.node))


def decode_cohort(data: bytes, roster: Roster) -> Cohort:
    """Read an announced cohort; members must stand in ascending order.

    Raises:
        MalformedMessage, SignatureRefused, CohortRefused, AgreementError: As in :func:`gather_cohort`.
    """
    encoded = [*attendances(data)]
    if len(encoded) > len(roster.nodes):
        raise CohortRefused(f"a cohort of {len(encoded)} is larger than the roster")
    cohort = gather_cohort(encoded, roster)
    if cohort.encode() != data:
        raise MalformedMessage("the members of a cohort must stand in ascending order")
    return cohort


def bounded_weights(samples: Sequence[int], most: float) -> list[int]:
    """What each member counts for: its samples, or the largest number at which none has more than a share ``most``.

    A sample count is its sender's word. Whatever it says, it moves the mean by no more than that share.

    Args:
        samples: At least 1 each.
        most: The plan's ``max-share``; at least one part in as many as there are samples.
    """
    share = Fraction(most)
    low, high = 1, max(samples)
    while low < high:  # what is left of the bound is concave in the cap, so the caps within it are an interval
        cap = (low + high + 1) // 2
        fits = cap * share.denominator <= share.numerator * sum(min(count, cap) for count in samples)
        low, high = (cap, high) if fits else (low, cap - 1)
    return [min(count, low) for count in samples]


def require_quorum(members: int, invited: int, plan: Plan) -> None:
    """Refuse a sum that is too small to hide its members, that too few can open, or too large for the plan's headroom.

    Args:
        members: Of how many it would be.
        invited: How many were invited to the attempt.
        plan: The plan.

    Raises:
        CohortRefused: It is.
    """
    least = max(plan.min_cohort, threshold(invited, plan.colluders))
    if not least <= members <= plan.max_cohort:
        raise CohortRefused(
            f"a sum of {members} of {invited} invited was announced; the plan allows {least} to {plan.max_cohort}"
        )
