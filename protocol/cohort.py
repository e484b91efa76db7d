"""The announced cohort: who may be in a sum, or in which of several.

A cohort is the list of its members' signed attendances, in node order. An aggregator can therefore neither invent a
member, nor change a sample count (a client whose weight is close to one would send its own model as "the mean"), nor
reuse an attendance of another attempt: every client checks every signature and finds its own fresh key in the list.

A cohort may be divided into groups. Then each group is masked and added up by itself, so that a member who spoils a
sum spoils that of its group alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from protocol.attendance import Attendance, attendances, decode_attendance, read_attendance
from protocol.errors import AgreementError, CohortRefused, MalformedMessage
from protocol.openings import Memory, Nodes, encode_sets, sets_at
from protocol.plan import Plan
from protocol.roster import Roster
from protocol.sharing import threshold
from protocol.terms import DIGEST_BYTES

_COMMON: Final = (
    "run", "round", "attempt", "plan", "key", "model", "support", "values", "votes", "invited", "figures",
    "spoiled",
)  # fmt: skip


@dataclass(frozen=True)
class Cohort:
    """The announced members of one sum, or of one for each group, by ascending node number.

    Attributes:
        members: The attendances.
        encoded: The same as signed bytes, in the same order.
        groups: Whose contributions are added up together, in the order of their smallest numbers; none where all are.
    """

    members: tuple[Attendance, ...]
    encoded: tuple[bytes, ...]
    groups: tuple[Nodes, ...] = ()

    @property
    def parts(self) -> tuple[Nodes, ...]:
        """Whose contributions are added up together: those of each group, or all."""
        return self.groups or (self.nodes,)

    def part_of(self, node: int) -> int:
        """The place among :attr:`parts` of the one that a member is in."""
        return next(place for place, part in enumerate(self.parts) if node in part)

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
        """The name of this cohort, and of its division, in one attempt, 32 bytes; it salts the masks."""
        return hashlib.blake2b(
            attempt.to_bytes(4, "little") + self.encode(), digest_size=DIGEST_BYTES, person=b"pruneseal cohort"
        ).digest()

    def encode(self) -> bytes:
        """The cohort as it is announced."""
        return encode_sets(self.groups) + b"".join(self.encoded)


def gather_cohort(encoded: Sequence[bytes], roster: Roster, groups: Sequence[Nodes] = ()) -> Cohort:
    """A cohort from its members' signed attendances, in any order.

    Args:
        encoded: The attendances.
        roster: The public keys of the nodes.
        groups: How the members are divided, in any order; not at all by default.

    Raises:
        MalformedMessage, SignatureRefused: An attendance cannot be read or is not signed by its node.
        CohortRefused: A node stands in it twice, or there is none, or each member is not in exactly one group.
        AgreementError: Two members disagree on the model, the terms, the plan, the key or the round.
    """
    return _gather([(decode_attendance(data, roster), data) for data in encoded], groups)


def read_cohort(data: bytes) -> Cohort:
    """Read an announced cohort that :func:`decode_cohort` has taken before; no signature is checked again.

    Raises:
        MalformedMessage, CohortRefused, AgreementError: It is not one.
    """
    groups, at = sets_at(data, 0)
    return _gather([(read_attendance(each), each) for each in attendances(data[at:])], groups)


def _gather(signed: Sequence[tuple[Attendance, bytes]], groups: Sequence[Nodes]) -> Cohort:
    pairs = sorted(signed, key=lambda pair: pair[0].node)
    members = tuple(member for member, _ in pairs)
    if not members or len({member.node for member in members}) != len(members):
        raise CohortRefused("a cohort needs members, and each of them once")
    for member in members[1:]:
        require_agreement(members[0], member)
    grouped = sorted(node for group in groups for node in group)
    if groups and (len(groups) == 1 or not all(groups) or grouped != [member.node for member in members]):
        raise CohortRefused("the groups of a divided cohort are two or more, and each member is in one of them")
    return Cohort(members, tuple(data for _, data in pairs), tuple(sorted(groups, key=sorted)))


def require_agreement(a: Attendance, b: Attendance) -> None:
    """Refuse two attendances that do not belong to the same sum.

    Raises:
        AgreementError: It names both nodes and the first field that differs.
    """
    for field in _COMMON:
        if getattr(a, field) != getattr(b, field):
            raise AgreementError(field, (a.node, b.node))


def decode_cohort(data: bytes, roster: Roster) -> Cohort:
    """Read an announced cohort; members, and groups, must stand in ascending order.

    Raises:
        MalformedMessage, SignatureRefused, CohortRefused, AgreementError: As in :func:`gather_cohort`.
    """
    groups, at = sets_at(data, 0)
    encoded = [*attendances(data[at:])]
    if len(encoded) > len(roster.nodes):
        raise CohortRefused(f"a cohort of {len(encoded)} is larger than the roster")
    cohort = gather_cohort(encoded, roster, groups)
    if cohort.encode() != data:
        raise MalformedMessage("the members and groups of a cohort must stand in ascending order")
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


def require_groups(parts: Sequence[Nodes], plan: Plan) -> None:
    """Refuse to add up so few by themselves that one of them would not be hidden among the others.

    Raises:
        CohortRefused: A part is smaller than the plan's smallest cohort.
    """
    if too_small := [len(part) for part in parts if len(part) < plan.min_cohort]:
        raise CohortRefused(
            f"a sum of {too_small[0]} was announced; the plan allows none of fewer than {plan.min_cohort}"
        )
