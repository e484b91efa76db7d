"""``aggregator.admission``: one message a node, for exactly what was asked, signed by whom it names."""

from dataclasses import dataclass

import numpy as np
import pytest

from aggregator.admission import AttendanceAdmission, ContributionAdmission
from aggregator.summation import dealt_to
from edge_client.dealing import Secrets
from protocol.attendance import ATTENDANCE_BYTES, SHARE_BYTES, Attendance, decode_attendance
from protocol.call import Call
from protocol.cohort import Cohort, gather_cohort
from protocol.errors import CohortRefused, Duplicate, MalformedMessage, PeerError, PeerMismatch, SignatureRefused
from protocol.frame import LARGEST, SIGNATURE_BYTES, signed
from protocol.openings import Opening, encode_nodes
from protocol.plan import Plan
from protocol.roster import Roster
from protocol.sharing import dealt_digest
from tests.aggregator.stub_grid import StubClient, attendance_of, make_kits, sign_again, small_plan

CALL = Call(bytes(range(16)), 1, 2)
NODE, OTHER = 5, 3
STRANGER = 1_000_000
TERMS = ("run", "round", "attempt", "plan", "key")
SECOND = frozenset({2, 3, 5, 8, 13, 21})
WRONG = {
    "run": bytes(16),
    "round": 2,
    "attempt": 3,
    "plan": bytes(32),
    "key": bytes(16),
    "cohort": bytes(32),
    "support": bytes(32),
    "invited": bytes(32),
}


@dataclass
class Party:
    """Four clients that have attended and contributed."""

    plan: Plan
    roster: Roster
    clients: dict[int, StubClient]
    attendances: dict[int, bytes]
    shares: dict[int, bytes]
    cohort: Cohort
    contributions: dict[int, bytes]

    def attendance_admission(self) -> AttendanceAdmission:
        return AttendanceAdmission(CALL, frozenset(self.clients), 0, self.plan, self.roster)

    def admit(self, data: bytes, node: int = NODE, shares: bytes | None = None) -> Attendance:
        """What becomes of an attendance that comes from where a node is reached."""
        return self.attendance_admission().admit(node, data, self.shares[node] if shares is None else shares)

    def contribution_admission(self) -> ContributionAdmission:
        return ContributionAdmission(self.cohort, CALL.attempt, self.plan, self.roster)


@pytest.fixture(scope="module")
def party() -> Party:
    plan = small_plan()
    clients = {kit.node: StubClient(kit, plan, votes=True) for kit in make_kits(4, plan)}
    roster, invited = clients[NODE].kit.roster, frozenset(clients)
    trained = {node: client.train(CALL, {"invited": encode_nodes(invited)}) for node, client in clients.items()}
    attendances, shares = ({n: frames[name] for n, frames in trained.items()} for name in ("attendance", "shares"))
    cohort = gather_cohort(list(attendances.values()), roster)
    contributions = {
        node: client.contribute(CALL, {"cohort": cohort.encode(), "shares": dealt_to(node, cohort, invited, shares)})[
            "contribution"
        ]
        for node, client in clients.items()
    }
    return Party(plan, roster, clients, attendances, shares, cohort, contributions)


def flipped(data: bytes, index: int) -> bytes:
    return data[:index] + bytes([data[index] ^ 0x01]) + data[index + 1 :]


# --- attendances -----------------------------------------------------------------------------------


def test_every_node_that_answers_is_admitted(party: Party) -> None:
    admission = party.attendance_admission()
    admitted = [admission.admit(node, data, party.shares[node]) for node, data in party.attendances.items()]
    assert admitted == [attendance_of(client) for client in party.clients.values()]


@pytest.mark.parametrize("field", [*TERMS, "invited"])
def test_an_attendance_that_answers_something_else_is_refused_by_the_field_that_differs(
    party: Party, field: str
) -> None:
    data = sign_again(party.clients[NODE], party.attendances[NODE], **{field: WRONG[field]})
    with pytest.raises(PeerMismatch) as caught:
        party.admit(data)
    assert caught.value.field == field
    assert caught.value.theirs == WRONG[field]


def test_a_node_attends_once(party: Party) -> None:
    admission = party.attendance_admission()
    admission.admit(NODE, party.attendances[NODE], party.shares[NODE])
    with pytest.raises(Duplicate) as caught:
        admission.admit(NODE, party.attendances[NODE], party.shares[NODE])
    assert caught.value.node == NODE


def test_a_second_attendance_with_another_key_is_a_duplicate_too(party: Party) -> None:
    admission, public = party.attendance_admission(), Secrets.draw().public
    admission.admit(NODE, party.attendances[NODE], party.shares[NODE])
    other = sign_again(party.clients[NODE], party.attendances[NODE], exchange=public)
    with pytest.raises(Duplicate):
        admission.admit(NODE, other, party.shares[NODE])


def test_an_attendance_that_comes_from_where_another_node_is_reached_is_refused(party: Party) -> None:
    with pytest.raises(PeerMismatch) as caught:
        party.admit(party.attendances[NODE], OTHER, party.shares[NODE])
    assert (caught.value.field, caught.value.ours, caught.value.theirs) == ("node", OTHER, NODE)


def test_shares_that_the_attendance_was_not_signed_for_are_refused(party: Party) -> None:
    for shares in (b"", party.shares[OTHER], flipped(party.shares[NODE], 50), party.shares[NODE] + bytes(1)):
        with pytest.raises(PeerMismatch) as caught:
            party.admit(party.attendances[NODE], NODE, shares)
        assert caught.value.field == "shares"


@pytest.mark.parametrize("shares", [b"", bytes(3 * SHARE_BYTES), bytes(5 * SHARE_BYTES)])
def test_shares_for_another_number_of_invited_are_refused_though_they_are_signed_for(
    party: Party, shares: bytes
) -> None:
    data = sign_again(party.clients[NODE], party.attendances[NODE], dealt=dealt_digest(shares))
    with pytest.raises(MalformedMessage, match="are not the shares of 4 invited"):
        party.admit(data, NODE, shares)


def test_an_attendance_that_remembers_another_invitation_is_refused(party: Party) -> None:
    memory = frozenset({Opening(SECOND, frozenset())})
    data = sign_again(party.clients[NODE], party.attendances[NODE], memory=memory)
    with pytest.raises(CohortRefused, match="have to be invited again"):
        party.admit(data)
    same = frozenset({Opening(frozenset(party.clients), frozenset())})
    assert party.admit(sign_again(party.clients[NODE], party.attendances[NODE], memory=same)).memory == same


def test_an_unsigned_attendance_is_refused(party: Party) -> None:
    data = party.attendances[NODE][:-SIGNATURE_BYTES] + bytes(SIGNATURE_BYTES)
    with pytest.raises(SignatureRefused) as caught:
        party.admit(data)
    assert caught.value.node == NODE


def test_an_attendance_that_another_node_signed_is_refused(party: Party) -> None:
    body = party.attendances[NODE][:-SIGNATURE_BYTES]
    with pytest.raises(SignatureRefused):
        party.admit(signed(body, party.clients[OTHER].kit.sign(body)))


def test_a_node_that_is_not_on_the_roster_cannot_attend(party: Party) -> None:
    with pytest.raises(SignatureRefused, match="not on the roster"):
        party.admit(sign_again(party.clients[NODE], party.attendances[NODE], node=STRANGER))


@pytest.mark.parametrize(("field", "value"), [("samples", 0), ("values", 0), ("votes", 25)])
def test_an_attendance_with_impossible_counts_is_refused(party: Party, field: str, value: int) -> None:
    with pytest.raises(MalformedMessage):
        party.admit(sign_again(party.clients[NODE], party.attendances[NODE], **{field: value}))


@pytest.mark.parametrize(
    "data",
    [b"", b"PRSL", bytes(ATTENDANCE_BYTES), np.random.default_rng(1).bytes(ATTENDANCE_BYTES), bytes(1 << 20)],
    ids=["empty", "a start", "zeros", "noise", "a megabyte"],
)
def test_bytes_that_are_no_attendance_are_refused(party: Party, data: bytes) -> None:
    admission = party.attendance_admission()
    with pytest.raises(MalformedMessage):
        admission.admit(NODE, data, party.shares[NODE])
    with pytest.raises(MalformedMessage):
        party.contribution_admission().admit(NODE, data)


def test_a_message_beyond_the_largest_size_is_refused_before_it_is_looked_at(party: Party) -> None:
    huge = bytes(LARGEST + 1)
    with pytest.raises(MalformedMessage, match="are not a message"):
        party.admit(huge)
    with pytest.raises(MalformedMessage, match="are not a message"):
        party.contribution_admission().admit(NODE, huge)


def test_an_attendance_cut_at_any_byte_is_refused(party: Party) -> None:
    admission, data = party.attendance_admission(), party.attendances[NODE]
    for length in range(len(data)):
        with pytest.raises(MalformedMessage):
            admission.admit(NODE, data[:length], party.shares[NODE])
    assert admission.admit(NODE, data, party.shares[NODE]).node == NODE


def test_an_attendance_with_any_byte_flipped_is_refused_and_costs_the_node_nothing(party: Party) -> None:
    admission, data = party.attendance_admission(), party.attendances[NODE]
    prefix, votes, memory = range(8), range(40, 48), range(352, 356)
    for index in range(len(data)):
        unread = index in prefix or index in votes or index in memory
        with pytest.raises(MalformedMessage if unread else SignatureRefused):
            admission.admit(NODE, flipped(data, index), party.shares[NODE])
    assert admission.admit(NODE, data, party.shares[NODE]).node == NODE


def test_a_contribution_is_no_attendance_and_an_attendance_no_contribution(party: Party) -> None:
    with pytest.raises(MalformedMessage, match="another kind"):
        party.admit(party.contributions[NODE])
    with pytest.raises(MalformedMessage, match="another kind"):
        party.contribution_admission().admit(NODE, party.attendances[NODE])


# --- contributions ---------------------------------------------------------------------------------


def test_every_member_of_the_cohort_is_admitted(party: Party) -> None:
    admission = party.contribution_admission()
    admitted = [admission.admit(node, data) for node, data in party.contributions.items()]
    assert [contribution.node for contribution in admitted] == list(party.clients)
    assert {contribution.held for contribution in admitted} == {(True,) * 4}


@pytest.mark.parametrize("field", [*TERMS, "cohort", "support"])
def test_a_contribution_to_something_else_is_refused_by_the_field_that_differs(party: Party, field: str) -> None:
    data = sign_again(party.clients[NODE], party.contributions[NODE], **{field: WRONG[field]})
    with pytest.raises(PeerMismatch) as caught:
        party.contribution_admission().admit(NODE, data)
    assert (caught.value.field, caught.value.theirs) == (field, WRONG[field])


def test_a_contribution_that_names_another_node_is_refused(party: Party) -> None:
    with pytest.raises(PeerMismatch) as caught:
        party.contribution_admission().admit(NODE, party.contributions[OTHER])
    assert (caught.value.field, caught.value.ours, caught.value.theirs) == ("node", NODE, OTHER)


@pytest.mark.parametrize("field", ["values", "votes"])
def test_a_contribution_of_other_sizes_than_its_attendance_announced_is_refused(party: Party, field: str) -> None:
    data = sign_again(party.clients[NODE], party.contributions[NODE], **{field: 1})
    with pytest.raises(PeerMismatch) as caught:
        party.contribution_admission().admit(NODE, data)
    assert caught.value.field == field


def test_a_node_contributes_once(party: Party) -> None:
    admission = party.contribution_admission()
    admission.admit(NODE, party.contributions[NODE])
    with pytest.raises(Duplicate) as caught:
        admission.admit(NODE, party.contributions[NODE])
    assert caught.value.node == NODE


def test_an_unsigned_contribution_is_refused(party: Party) -> None:
    with pytest.raises(SignatureRefused):
        party.contribution_admission().admit(
            NODE, party.contributions[NODE][:-SIGNATURE_BYTES] + bytes(SIGNATURE_BYTES)
        )


def test_a_contribution_without_room_for_a_signature_is_refused(party: Party) -> None:
    with pytest.raises(MalformedMessage, match="were announced"):
        party.contribution_admission().admit(NODE, party.contributions[NODE][:-SIGNATURE_BYTES])


def test_a_contribution_that_another_node_signed_is_refused(party: Party) -> None:
    body = party.contributions[NODE][:-SIGNATURE_BYTES]
    with pytest.raises(SignatureRefused):
        party.contribution_admission().admit(NODE, signed(body, party.clients[OTHER].kit.sign(body)))


def test_a_contribution_cut_at_any_byte_is_refused(party: Party) -> None:
    admission, data = party.contribution_admission(), party.contributions[NODE]
    for length in range(len(data)):
        with pytest.raises(MalformedMessage):
            admission.admit(NODE, data[:length])
    assert admission.admit(NODE, data).node == NODE


@pytest.mark.parametrize("node", [OTHER, NODE])
def test_a_contribution_with_any_byte_flipped_is_refused_and_costs_the_node_nothing(party: Party, node: int) -> None:
    admission, data = party.contribution_admission(), party.contributions[node]
    prefix, numbers = range(8), range(32, 44)
    for index in range(len(data)):
        expected: type[PeerError] = SignatureRefused
        if index in prefix:
            expected = MalformedMessage
        elif index in numbers:  # the node, the values, the votes
            expected = PeerMismatch
        with pytest.raises(expected):
            admission.admit(node, flipped(data, index))
    assert admission.admit(node, data).node == node


def test_an_attendance_reads_the_same_at_the_desk_and_in_the_cohort(party: Party) -> None:
    assert [decode_attendance(data, party.roster) for data in party.cohort.encoded] == list(party.cohort.members)
