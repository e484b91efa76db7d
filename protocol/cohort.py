"""The announced cohort: who is in a sum, and which sums may follow one another.

A cohort is the list of its members' signed attendances, in node order. An aggregator can therefore neither invent a
member, nor change a sample count (a client whose weight is close to one would send its own model as "the mean"), nor
reuse an attendance of another round: every client checks every signature and finds its own fresh nonce in the list.

**Succession.** When a member is lost between the two messages, the survivors are asked again, and blinding that cancels
over the smaller cohort hide each of them as before. But an aggregator that *lies* about the loss holds two sums whose
difference is the update of whoever was left out. So the clients accept a smaller cohort only under three conditions
that hold against such an aggregator together with ``COLLUDERS`` of the clients:

1. the new cohort lies within the last one that they contributed to, or is the same;
2. if it is smaller, it leaves out at least ``COLLUDERS + 2`` members, so that no difference is one honest client's
   update;
3. it holds more than half of the *first* one that they contributed to in this round: (n + ``COLLUDERS`` + 1) / 2 of n,
   rounded up.

So the completed sums inside a completed sum U form a chain. Let S and T be two of them. An honest member of S has
contributed to U and S, so its first cohort was no smaller than U, and |S| >= (|U| + COLLUDERS + 1) / 2 by condition 3;
the same holds for T. Inside U they then share COLLUDERS + 1 members, one of them honest; it accepted both, so by
conditions 1 and 2 one lies inside the other and leaves out two honest clients or more. (To compare with the last cohort
instead of the first is not enough: an aggregator may announce to each client cohorts that nobody else hears of, and two
such branches can part.)

Where too few survive for that, the round starts over with a new `train` message and new nonces. The conditions hold
across that too, for a second training from the same model differs too little from the first: until the round is done,
those who were lost must come back, or enough of the others must be left.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from protocol.errors import AgreementError, CohortRefused, MalformedMessage
from protocol.roster import Roster
from protocol.terms import DIGEST_BYTES
from protocol.wire import ATTENDANCE_BYTES, Attendance, decode_attendance

COLLUDERS: Final = 1
"""How many clients may work with the aggregator before another client's update is exposed by a repeated sum."""

SMALLEST: Final = COLLUDERS + 2
"""The smallest cohort whose sum is not one honest client's update to the colluders."""


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

    @property
    def bearer(self) -> int:
        """The member that also sends the sealed terms: the one of the lowest number."""
        return self.members[0].node

    def digest(self, attempt: int) -> bytes:
        """The name of this cohort in one attempt, 32 bytes; it salts the blinding."""
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
    pairs = sorted(((decode_attendance(data, roster), data) for data in encoded), key=lambda pair: pair[0].node)
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
    for field in ("run", "round", "attempt", "plan", "key", "model", "support", "values", "votes"):
        if getattr(a, field) != getattr(b, field):
            raise AgreementError(field, (a.node, b.node))


def decode_cohort(data: bytes, roster: Roster) -> Cohort:
    """Read an announced cohort; members must stand in ascending order.

    Raises:
        MalformedMessage, SignatureRefused, CohortRefused, AgreementError: As in :func:`gather_cohort`.
    """
    if len(data) % ATTENDANCE_BYTES:
        raise MalformedMessage(f"a cohort of {len(data)} bytes is not a whole number of attendances")
    if len(data) > len(roster.nodes) * ATTENDANCE_BYTES:
        raise CohortRefused(f"a cohort of {len(data) // ATTENDANCE_BYTES} is larger than the roster")
    cohort = gather_cohort([data[i : i + ATTENDANCE_BYTES] for i in range(0, len(data), ATTENDANCE_BYTES)], roster)
    if cohort.encode() != data:
        raise MalformedMessage("the members of a cohort must stand in ascending order")
    return cohort


def successor_sizes(first: int, last: int, minimum: int) -> range:
    """The sizes that a cohort may have in a round that began with ``first`` members and last had ``last``.

    Empty where none is safe.
    """
    half = -(-(first + COLLUDERS + 1) // 2)
    return range(max(minimum, SMALLEST, half), last - (COLLUDERS + 2) + 1)


def require_successor(earlier: Sequence[frozenset[int]], following: frozenset[int], minimum: int) -> None:
    """Refuse a cohort that must not follow the ones that a client has contributed to in this round.

    Args:
        earlier: Those cohorts, in their order; not empty.
        following: The announced one.
        minimum: The plan's smallest cohort.

    Raises:
        CohortRefused: One of the three conditions of succession does not hold.
    """
    first, last = earlier[0], earlier[-1]
    if following == last:
        return
    if not following <= last or len(following) not in successor_sizes(len(first), len(last), minimum):
        raise CohortRefused(
            f"a cohort of {len(following)} must not follow one of {len(last)} in the same round: the difference of the "
            "two sums could expose a member. Those who were lost must come back."
        )


def require_quorum(cohort: Cohort, minimum: int, largest: int) -> None:
    """Refuse a cohort that is too small to hide its members, or too large for the plan's headroom.

    Raises:
        CohortRefused: It is.
    """
    if not max(minimum, SMALLEST) <= len(cohort.members) <= largest:
        raise CohortRefused(
            f"a cohort of {len(cohort.members)} was announced; the plan allows {max(minimum, SMALLEST)} to {largest}"
        )
