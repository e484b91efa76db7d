"""Which messages count: parse, verify, compare with what was asked, once per node.

Every refusal is a `PeerError`; the round goes on without the message.
"""

from collections import Counter
from collections.abc import Collection

from protocol.attendance import SHARE_BYTES, Attendance, decode_attendance
from protocol.call import Call
from protocol.cohort import Cohort
from protocol.errors import CohortRefused, Duplicate, MalformedMessage, PeerMismatch
from protocol.openings import Memory, Nodes, nodes_digest, require_openable
from protocol.plan import Plan
from protocol.roster import Roster
from protocol.sharing import dealt_digest
from protocol.wire import Contribution, decode_contribution


class AttendanceAdmission:
    """Admits the attendances of one `train` message.

    Args:
        call: What was asked.
        invited: Who was.
        sums: How many sums they were sent.
        plan: The plan of the run.
        roster: Who may answer.
    """

    def __init__(self, call: Call, invited: Nodes, sums: int, plan: Plan, roster: Roster) -> None:
        key = roster.key_id(call.run, call.round)
        self._asked = (call.run, call.round, call.attempt, plan.digest, key, nodes_digest(invited))
        self._roster, self._invited, self._sums, self._colluders = roster, invited, sums, plan.colluders
        self._seen: set[int] = set()

    def admit(self, node: int, data: bytes, shares: bytes) -> Attendance:
        """Read the attendance that came from where ``node`` is reached, and the shares that came with it.

        Raises:
            MalformedMessage, SignatureRefused: It does not parse, or its node has not signed it.
            PeerMismatch: It answers another message, plan, key or invitation, or the shares are other ones.
            Duplicate: The node has already answered.
            CohortRefused: It remembers a sum that no sum of these nodes must follow.
        """
        attendance = decode_attendance(data, self._roster)
        fields = ("run", "round", "attempt", "plan", "key", "invited")
        _require(fields, self._asked, tuple(getattr(attendance, field) for field in fields))
        _require(("node", "shares"), (node, attendance.dealt), (attendance.node, dealt_digest(shares)))
        if len(shares) != SHARE_BYTES * len(self._invited):
            raise MalformedMessage(f"{len(shares)} bytes are not the shares of {len(self._invited)} invited")
        require_some(attendance.spoiled, self._sums)
        require_openable(attendance.memory, self._invited, (), self._colluders)
        _once(self._seen, attendance.node, "attendance")
        return attendance


class ContributionAdmission:
    """Admits the contributions of one announced cohort.

    Args:
        cohort: Who was asked.
        attempt: In which attempt.
        plan: The plan of the run.
        roster: Their public keys.
    """

    def __init__(self, cohort: Cohort, attempt: int, plan: Plan, roster: Roster) -> None:
        self._members = {member.node: member for member in cohort.members}
        self._digest, self._attempt = cohort.digest(attempt), attempt
        self._plan, self._roster = plan, roster
        self._seen: set[int] = set()

    def admit(self, node: int, data: bytes) -> Contribution:
        """Read the contribution that came from where ``node``'s attendance came from.

        Raises:
            MalformedMessage, SignatureRefused: It does not parse, or its node has not signed it.
            PeerMismatch: It belongs to another run, round, attempt, plan, key, cohort or support.
            Duplicate: The node has already contributed.
        """
        member = self._members[node]
        contribution = decode_contribution(data, member, len(self._members), self._plan.parameters, self._roster)
        _require(
            ("run", "round", "attempt", "plan", "key", "cohort", "support"),
            (member.run, member.round, self._attempt, member.plan, member.key, self._digest, member.support),
            (
                contribution.run,
                contribution.round,
                contribution.attempt,
                contribution.plan,
                contribution.key,
                contribution.cohort,
                contribution.support,
            ),
        )
        _once(self._seen, node, "contribution")
        return contribution


def require_some(spoiled: int, sums: int) -> None:
    """Refuse bits that are of no sum, or of all that there are: whoever finds them all spoiled does not go on.

    Args:
        spoiled: A bit for each sum, set where it is none.
        sums: How many there are.

    Raises:
        PeerMismatch: They are.
    """
    if spoiled >> sums or (sums and spoiled.bit_count() == sums):
        raise PeerMismatch("spoiled", f"bits of fewer than {sums} sums", f"{spoiled:b}")


def forbidding(cohort: Cohort, sets: Collection[Nodes], invited: Nodes, colluders: int) -> dict[int, CohortRefused]:
    """Which members remember what forbids sums, or what contradicts the memory of more members; and why.

    Clients judge sums with the memory of all its cohort, so they would refuse it for the word of one that lies.

    Args:
        cohort: The cohort.
        sets: Whose sums they are.
        invited: Who was invited.
        colluders: How many clients may work with the aggregator.
    """
    told = Counter(opening for member in cohort.members for opening in member.memory)
    memories = dict.fromkeys(member.memory for member in cohort.members)
    refused: dict[Memory, CohortRefused] = {}
    believed: Memory = frozenset()
    for memory in sorted(memories, key=lambda one: -min((told[opening] for opening in one), default=0)):
        try:
            require_openable(believed | memory, invited, sets, colluders)
            believed |= memory
        except CohortRefused as error:
            refused[memory] = error
    return {member.node: refused[member.memory] for member in cohort.members if member.memory in refused}


def _require(fields: tuple[str, ...], ours: tuple[object, ...], theirs: tuple[object, ...]) -> None:
    for field, a, b in zip(fields, ours, theirs, strict=True):
        if a != b:
            raise PeerMismatch(field, a, b)


def _once(seen: set[int], node: int, what: str) -> None:
    if node in seen:
        raise Duplicate(node, what)
    seen.add(node)
