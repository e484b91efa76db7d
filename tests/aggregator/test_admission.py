"""``aggregator.admission``: one message a node, for exactly what was asked, signed by whom it names."""

from dataclasses import dataclass

import numpy as np
import pytest

from aggregator.admission import AttendanceAdmission, ContributionAdmission
from protocol.call import Call
from protocol.cohort import Cohort, gather_cohort
from protocol.errors import Duplicate, MalformedMessage, PeerError, PeerMismatch, SignatureRefused
from protocol.plan import Plan
from protocol.roster import Roster
from protocol.wire import ATTENDANCE_BYTES, LARGEST, SIGNATURE_BYTES, decode_attendance, signed
from tests.aggregator.stub_grid import StubClient, attendance_of, make_kits, sign_again, small_plan

CALL = Call(bytes(range(16)), 1, 2)
CONTRIBUTING = Call(CALL.run, CALL.round, 4)
BEARER, NODE, OTHER = 2, 5, 3
STRANGER = 1_000_000
TERMS = ("run", "round", "attempt", "plan", "key")
WRONG = {
    "run": bytes(16),
    "round": 2,
    "attempt": 3,
    "plan": bytes(32),
    "key": bytes(16),
    "cohort": bytes(32),
    "support": bytes(32),
}


@dataclass
class Party:
    """Four clients that have attended and contributed."""

    plan: Plan
    roster: Roster
    clients: dict[int, StubClient]
    attendances: dict[int, bytes]
    cohort: Cohort
    contributions: dict[int, bytes]

    def attendance_admission(self) -> AttendanceAdmission:
        return AttendanceAdmission(CALL.run, CALL.round, CALL.attempt, self.plan, self.roster)

    def contribution_admission(self) -> ContributionAdmission:
        return ContributionAdmission(self.cohort, CONTRIBUTING.attempt, self.plan, self.roster)


@pytest.fixture(scope="module")
def party() -> Party:
    plan = small_plan()
    clients = {kit.node: StubClient(kit, plan, votes=True) for kit in make_kits(4, plan)}
    roster = clients[BEARER].kit.roster
    attendances = {node: client.train(CALL, b"")[0] for node, client in clients.items()}
    cohort = gather_cohort(list(attendances.values()), roster)
    contributions = {node: client.contribute(CONTRIBUTING, cohort.encode())[0] for node, client in clients.items()}
    return Party(plan, roster, clients, attendances, cohort, contributions)


def flipped(data: bytes, index: int) -> bytes:
    return data[:index] + bytes([data[index] ^ 0x01]) + data[index + 1 :]


# --- attendances -----------------------------------------------------------------------------------


def test_every_node_that_answers_is_admitted(party: Party) -> None:
    admission = party.attendance_admission()
    admitted = [admission.admit(data) for data in party.attendances.values()]
    assert admitted == [attendance_of(client) for client in party.clients.values()]


@pytest.mark.parametrize("field", TERMS)
def test_an_attendance_that_answers_something_else_is_refused_by_the_field_that_differs(
    party: Party, field: str
) -> None:
    data = sign_again(party.clients[NODE], party.attendances[NODE], **{field: WRONG[field]})
    with pytest.raises(PeerMismatch) as caught:
        party.attendance_admission().admit(data)
    assert caught.value.field == field
    assert caught.value.theirs == WRONG[field]


def test_a_node_attends_once(party: Party) -> None:
    admission = party.attendance_admission()
    admission.admit(party.attendances[NODE])
    with pytest.raises(Duplicate) as caught:
        admission.admit(party.attendances[NODE])
    assert caught.value.node == NODE


def test_a_second_attendance_with_another_nonce_is_a_duplicate_too(party: Party) -> None:
    admission = party.attendance_admission()
    admission.admit(party.attendances[NODE])
    with pytest.raises(Duplicate):
        admission.admit(sign_again(party.clients[NODE], party.attendances[NODE], nonce=bytes(16)))


def test_an_unsigned_attendance_is_refused(party: Party) -> None:
    data = party.attendances[NODE][:-SIGNATURE_BYTES] + bytes(SIGNATURE_BYTES)
    with pytest.raises(SignatureRefused) as caught:
        party.attendance_admission().admit(data)
    assert caught.value.node == NODE


def test_an_attendance_that_another_node_signed_is_refused(party: Party) -> None:
    body = party.attendances[NODE][:-SIGNATURE_BYTES]
    with pytest.raises(SignatureRefused):
        party.attendance_admission().admit(signed(body, party.clients[OTHER].kit.sign(body)))


def test_a_node_that_is_not_on_the_roster_cannot_attend(party: Party) -> None:
    with pytest.raises(SignatureRefused, match="not on the roster"):
        party.attendance_admission().admit(sign_again(party.clients[NODE], party.attendances[NODE], node=STRANGER))


@pytest.mark.parametrize(("field", "value"), [("samples", 0), ("values", 0), ("votes", 25)])
def test_an_attendance_with_impossible_counts_is_refused(party: Party, field: str, value: int) -> None:
    with pytest.raises(MalformedMessage):
        party.attendance_admission().admit(sign_again(party.clients[NODE], party.attendances[NODE], **{field: value}))


@pytest.mark.parametrize(
    "data",
    [b"", b"PRSL", bytes(ATTENDANCE_BYTES), np.random.default_rng(1).bytes(ATTENDANCE_BYTES), bytes(1 << 20)],
    ids=["empty", "a start", "zeros", "noise", "a megabyte"],
)
def test_bytes_that_are_no_attendance_are_refused(party: Party, data: bytes) -> None:
    admission = party.attendance_admission()
    with pytest.raises(MalformedMessage):
        admission.admit(data)
    with pytest.raises(MalformedMessage):
        party.contribution_admission().admit(NODE, data)


def test_a_message_beyond_the_largest_size_is_refused_before_it_is_looked_at(party: Party) -> None:
    huge = bytes(LARGEST + 1)
    with pytest.raises(MalformedMessage, match="are not a message"):
        party.attendance_admission().admit(huge)
    with pytest.raises(MalformedMessage, match="are not a message"):
        party.contribution_admission().admit(NODE, huge)


def test_an_attendance_cut_at_any_byte_is_refused(party: Party) -> None:
    admission, data = party.attendance_admission(), party.attendances[NODE]
    for length in range(len(data)):
        with pytest.raises(MalformedMessage):
            admission.admit(data[:length])
    assert admission.admit(data).node == NODE


def test_an_attendance_with_any_byte_flipped_is_refused_and_costs_the_node_nothing(party: Party) -> None:
    admission, data = party.attendance_admission(), party.attendances[NODE]
    prefix, values_and_votes = range(8), range(40, 48)
    for index in range(len(data)):
        expected = MalformedMessage if index in prefix or index in values_and_votes else SignatureRefused
        with pytest.raises(expected):
            admission.admit(flipped(data, index))
    assert admission.admit(data).node == NODE


def test_a_contribution_is_no_attendance_and_an_attendance_no_contribution(party: Party) -> None:
    with pytest.raises(MalformedMessage, match="another kind"):
        party.attendance_admission().admit(party.contributions[NODE])
    with pytest.raises(MalformedMessage, match="another kind"):
        party.contribution_admission().admit(NODE, party.attendances[NODE])


# --- contributions ---------------------------------------------------------------------------------


def test_every_member_of_the_cohort_is_admitted_and_the_bearer_brings_the_terms(party: Party) -> None:
    admission = party.contribution_admission()
    admitted = {node: admission.admit(node, data) for node, data in party.contributions.items()}
    assert {node for node, contribution in admitted.items() if contribution.sealed} == {BEARER}
    assert [contribution.node for contribution in admitted.values()] == list(party.clients)


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


def test_sealed_terms_from_a_member_that_is_not_the_bearer_are_refused(party: Party) -> None:
    sealed = party.contribution_admission().admit(BEARER, party.contributions[BEARER]).sealed
    data = sign_again(party.clients[NODE], party.contributions[NODE], sealed=sealed)
    with pytest.raises(MalformedMessage, match="first member"):
        party.contribution_admission().admit(NODE, data)


def test_a_bearer_without_the_sealed_terms_is_refused(party: Party) -> None:
    data = sign_again(party.clients[BEARER], party.contributions[BEARER], sealed=b"")
    with pytest.raises(MalformedMessage, match="first member"):
        party.contribution_admission().admit(BEARER, data)


def test_sealed_terms_that_are_not_those_of_the_attendances_are_refused(party: Party) -> None:
    sealed = party.contribution_admission().admit(BEARER, party.contributions[BEARER]).sealed
    for index in range(len(sealed)):
        data = sign_again(party.clients[BEARER], party.contributions[BEARER], sealed=flipped(sealed, index))
        with pytest.raises(PeerMismatch) as caught:
            party.contribution_admission().admit(BEARER, data)
        assert caught.value.field == "support"


def test_a_contribution_cut_at_any_byte_is_refused(party: Party) -> None:
    admission, data = party.contribution_admission(), party.contributions[NODE]
    for length in range(len(data)):
        with pytest.raises(MalformedMessage):
            admission.admit(NODE, data[:length])
    assert admission.admit(NODE, data).node == NODE


@pytest.mark.parametrize("node", [BEARER, NODE])
def test_a_contribution_with_any_byte_flipped_is_refused_and_costs_the_node_nothing(party: Party, node: int) -> None:
    admission, data = party.contribution_admission(), party.contributions[node]
    prefix, numbers, sealed_bytes = range(8), range(32, 44), range(44, 48)
    for index in range(len(data)):
        expected: type[PeerError] = SignatureRefused
        if index in prefix or index in sealed_bytes:
            expected = MalformedMessage
        elif index in numbers:  # the node, the values, the votes
            expected = PeerMismatch
        with pytest.raises(expected):
            admission.admit(node, flipped(data, index))
    assert admission.admit(node, data).node == node


def test_an_attendance_reads_the_same_at_the_desk_and_in_the_cohort(party: Party) -> None:
    assert [decode_attendance(data, party.roster) for data in party.cohort.encoded] == list(party.cohort.members)
