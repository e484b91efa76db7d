"""Which messages count: parse, verify, compare with what was asked, once per node.

Every refusal is a `PeerError`; the round goes on without the message.
"""

from protocol.cohort import Cohort
from protocol.errors import Duplicate, MalformedMessage, PeerMismatch
from protocol.plan import Plan
from protocol.roster import Roster
from protocol.terms import support_digest
from protocol.wire import Attendance, Contribution, decode_attendance, decode_contribution


class AttendanceAdmission:
    """Admits the attendances of one `train` message.

    Args:
        run, round_, attempt: What was asked.
        plan: The plan of the run.
        roster: Who may answer.
    """

    def __init__(self, run: bytes, round_: int, attempt: int, plan: Plan, roster: Roster) -> None:
        self._asked = (run, round_, attempt, plan.digest, roster.key_id(run, round_))
        self._roster = roster
        self._seen: set[int] = set()

    def admit(self, data: bytes) -> Attendance:
        """Read one attendance.

        Raises:
            MalformedMessage, SignatureRefused: It does not parse, or its node has not signed it.
            PeerMismatch: It answers another message, plan or key.
            Duplicate: The node has already answered.
        """
        attendance = decode_attendance(data, self._roster)
        given = (attendance.run, attendance.round, attendance.attempt, attendance.plan, attendance.key)
        _require(("run", "round", "attempt", "plan", "key"), self._asked, given)
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
        self._digest, self._bearer, self._attempt = cohort.digest(attempt), cohort.bearer, attempt
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
        contribution = decode_contribution(data, member, self._plan.parameters, self._roster)
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
        if (node == self._bearer) != bool(contribution.sealed):
            raise MalformedMessage("the sealed terms come from the first member of the cohort, and from no other")
        if contribution.sealed and support_digest(contribution.sealed) != member.support:
            raise PeerMismatch("support", member.support, support_digest(contribution.sealed))
        return contribution


def _require(fields: tuple[str, ...], ours: tuple[object, ...], theirs: tuple[object, ...]) -> None:
    for field, a, b in zip(fields, ours, theirs, strict=True):
        if a != b:
            raise PeerMismatch(field, a, b)


def _once(seen: set[int], node: int, what: str) -> None:
    if node in seen:
        raise Duplicate(node, what)
    seen.add(node)
