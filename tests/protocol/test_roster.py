"""``protocol.roster``: who may take part, and the proof that it was them, and that the operator said so."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.errors import KeyFileError, RosterRefused, SignatureRefused
from protocol.roster import KEY_ID_BYTES, OPERATOR_PUBLIC_FILE, Node, Roster, load_roster, signed_digest
from tests.factories import OPERATOR, OPERATOR_PUBLIC, roster, sign_key, signed_roster, write_roster

NODES = st.builds(Node, st.text(max_size=6), st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
ROSTERS = st.builds(
    Roster,
    st.binary(min_size=KEY_ID_BYTES, max_size=KEY_ID_BYTES),
    st.dictionaries(st.integers(0, (1 << 32) - 1), NODES, max_size=4),
    st.integers(1, (1 << 32) - 1),
)
ROSTER = roster((1, 2, 300))
TEXT = signed_roster(ROSTER)


@given(made=ROSTERS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_loaded_is_what_was_written(tmp_path: Path, made: Roster) -> None:
    assert load_roster(write_roster(tmp_path, made)) == made


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A roster's file, and the operator's key beside it."""
    return write_roster(tmp_path, ROSTER)


# --- signed by the operator ---------------------------------------------------------------------


def refused(path: Path, content: bytes, reason: str | None = None) -> None:
    path.write_bytes(content)
    with pytest.raises(RosterRefused, match=reason):
        load_roster(path)


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_roster_of_which_any_byte_was_changed_is_refused(place: Path, data: st.DataObject) -> None:
    whole = bytearray(TEXT.encode())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    refused(place, bytes(whole))


@given(made=ROSTERS, other=ROSTERS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_signature_is_for_one_roster(place: Path, made: Roster, other: Roster) -> None:
    signature = OPERATOR.sign(made.to_sign())
    if made == other:
        assert other.to_sign() == made.to_sign()
    else:
        refused(place, other.to_json(signature).encode(), "is not signed with the operator's key of this kit")


@given(cut=st.integers(0, len(TEXT) - 1), more=st.binary(min_size=1, max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_roster_that_was_cut_or_that_something_was_added_to_is_refused(place: Path, cut: int, more: bytes) -> None:
    whole = TEXT.encode()
    refused(place, whole[:cut])
    refused(place, whole + more)
    refused(place, whole[:cut] + b" " + whole[cut:])


def test_a_roster_that_says_the_same_in_other_bytes_is_refused_and_says_what_to_do(place: Path) -> None:
    for same in (json.dumps(json.loads(TEXT)), TEXT.replace("\n", "\r\n"), TEXT.replace('"node-1"', '"node\\u002d1"')):
        refused(place, same.encode(), "was changed since the operator signed it: ask the operator for the roster")
    signature = json.loads(TEXT)["signature"]
    refused(place, TEXT.replace(signature, signature.upper()).encode(), "was changed since")


def test_a_signature_of_anybody_else_is_refused(place: Path) -> None:
    for message in (ROSTER.to_sign(), signed_digest(ROSTER.to_sign())):
        for key in (sign_key(1), OPERATOR):
            if (key, message) != (OPERATOR, ROSTER.to_sign()):
                refused(place, ROSTER.to_json(key.sign(message)).encode(), "is not signed with the operator's key")


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65)])
def test_a_signature_that_is_none_is_refused(place: Path, signature: bytes) -> None:
    refused(place, ROSTER.to_json(signature).encode(), "is not signed with the operator's key of this kit: ask the")


@pytest.mark.parametrize("signature", [None, 7, "no hex", []])
def test_a_signature_that_is_missing_or_no_hex_is_refused(place: Path, signature: object) -> None:
    data = json.loads(TEXT)
    refused(place, json.dumps({**data, "signature": signature}, indent=1).encode(), "is not a signed roster")
    del data["signature"]
    refused(place, json.dumps(data, indent=1).encode(), "is not a signed roster .'signature'.: ask the operator")


def test_what_is_signed_begins_with_a_tag_of_its_own_and_the_cohort_id() -> None:
    assert ROSTER.to_sign().startswith(b"pruneseal/1 roster 2" + ROSTER.cohort_id + b"\x01\0\0\0" + b"\x03\0\0\0")
    assert replace(ROSTER, serial=2).to_sign()[36:40] == b"\x02\0\0\0"
    assert len(ROSTER.to_sign()) == 20 + 16 + 8 + sum(8 + len(node.name) + 64 for node in ROSTER.nodes.values())


def test_the_operators_key_may_lie_elsewhere(place: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.pub"
    (tmp_path / OPERATOR_PUBLIC_FILE).rename(elsewhere)
    assert load_roster(place, elsewhere) == ROSTER
    with pytest.raises(KeyFileError, match=r"operator\.pub cannot be read: No such file.* provision this kit again"):
        load_roster(place)


@pytest.mark.parametrize("content", [b"", b"no hex", OPERATOR_PUBLIC[:-2].encode(), b"\xff" * 64])
def test_an_operators_key_that_is_none_is_refused(place: Path, content: bytes) -> None:
    place.with_name(OPERATOR_PUBLIC_FILE).write_bytes(content)
    with pytest.raises(KeyFileError, match=r"operator\.pub is not the operator's public key"):
        load_roster(place)


def test_the_file_lists_the_nodes_in_order_whatever_the_order_of_the_mapping() -> None:
    turned = Roster(ROSTER.cohort_id, dict(reversed(list(ROSTER.nodes.items()))))
    assert signed_roster(turned) == TEXT
    assert [entry["node"] for entry in json.loads(TEXT)["nodes"]] == [1, 2, 300]


# --- signed by the nodes ------------------------------------------------------------------------


def test_nodes_are_named_in_the_order_of_their_numbers() -> None:
    assert ROSTER.names(frozenset({300, 1, 2})) == "node-1, node-2, node-300"
    assert ROSTER.names([300, 1]) == "node-1, node-300"
    assert ROSTER.names(()) == ""


def test_a_node_signs_for_itself_and_for_nobody_else() -> None:
    signature = sign_key(2).sign(signed_digest(b"message"))
    ROSTER.verify(2, signature, b"message")
    for node, reason in ((1, "not valid"), (3, "not on the roster")):
        with pytest.raises(SignatureRefused, match=reason) as refusal:
            ROSTER.verify(node, signature, b"message")
        assert refusal.value.node == node


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        (sign_key(2).sign(signed_digest(b"message")), b"massage"),
        (sign_key(2).sign(signed_digest(b"message")), b"message "),
        (sign_key(2).sign(signed_digest(b"message"))[:-1], b"message"),
        (sign_key(2).sign(signed_digest(b"message")) + b"\0", b"message"),
        (b"", b"message"),
        (bytes(64), b"message"),
    ],
)
def test_a_signature_is_for_one_message(signature: bytes, message: bytes) -> None:
    with pytest.raises(SignatureRefused, match="not valid"):
        ROSTER.verify(2, signature, message)


@pytest.mark.parametrize("key", [bytes(32), b"\xff" * 32, bytes(range(32))])
def test_a_key_that_is_no_point_verifies_nothing(key: bytes) -> None:
    made = Roster(ROSTER.cohort_id, {5: Node("odd", key, bytes(32))})
    with pytest.raises(SignatureRefused):
        made.verify(5, sign_key(2).sign(signed_digest(b"message")), b"message")


@given(st.binary(min_size=16, max_size=16), st.integers(0, (1 << 32) - 1))
def test_every_run_and_round_has_a_key_of_its_own(run: bytes, round_: int) -> None:
    other_run, other_cohort = bytes([run[0] ^ 1]) + run[1:], Roster(bytes(KEY_ID_BYTES), {})
    name = ROSTER.key_id(run, round_)
    assert name == roster(()).key_id(run, round_)
    others = {ROSTER.key_id(run, round_ ^ 1), ROSTER.key_id(other_run, round_), other_cohort.key_id(run, round_)}
    assert {len(key) for key in others} == {KEY_ID_BYTES}
    assert len(others - {name}) == 3


@pytest.mark.parametrize("length", [0, 31, 33])
def test_public_keys_are_32_bytes(length: int) -> None:
    for sign, seal in ((bytes(length), bytes(32)), (bytes(32), bytes(length))):
        with pytest.raises(RosterRefused, match="ann must be 32 bytes"):
            Node("ann", sign, seal)


@pytest.mark.parametrize("length", [0, 15, 17])
def test_a_cohort_id_is_16_bytes(length: int) -> None:
    with pytest.raises(RosterRefused, match=f"16 bytes, not {length}"):
        Roster(bytes(length), {})


@pytest.mark.parametrize("number", [-1, 1 << 32])
def test_a_node_has_a_number_that_a_message_can_hold(number: int) -> None:
    with pytest.raises(RosterRefused, match="between 0 and"):
        Roster(bytes(16), {number: Node("ann", bytes(32), bytes(32))})


@pytest.mark.parametrize("serial", [-1, 0, 1 << 32])
def test_rosters_are_counted_from_one(serial: int) -> None:
    with pytest.raises(RosterRefused, match="serial number of a roster must lie between 1 and"):
        replace(ROSTER, serial=serial)


def test_a_missing_roster_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / OPERATOR_PUBLIC_FILE).write_text(OPERATOR_PUBLIC)
    with pytest.raises(RosterRefused, match=r"absent.json cannot be read: No such file.* Provision the node first"):
        load_roster(tmp_path / "absent.json")


def changed(change: Callable[[Any], Any]) -> str:
    """The text of a roster file after somebody has edited it."""
    data = json.loads(TEXT)
    return json.dumps(change(data))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a signed roster"),
        ("[]", "is not a signed roster"),
        ("7", "is not a signed roster"),
        ("{}", "is not a signed roster"),
        ("[" * 100_000, "is not a signed roster"),
        (changed(lambda d: {**d, "format": "roster"}), "not a roster of version 2"),
        (changed(lambda d: {**d, "version": 1}), "not a roster of version 2, which is signed: provision again"),
        (changed(lambda d: {**d, "serial": 0}), "between 1 and"),
        (changed(lambda d: {**d, "serial": "one"}), "is not a signed roster"),
        (changed(lambda d: {**d, "nodes": [{**d["nodes"][0], "name": "\ud800"}]}), "is not a signed roster"),
        (changed(lambda d: {**d, "nodes": None}), "is not a signed roster"),
        (changed(lambda d: {**d, "nodes": [1]}), "is not a signed roster"),
        (changed(lambda d: {**d, "cohort": "no hex"}), "is not a signed roster"),
        (changed(lambda d: {**d, "cohort": 7}), "is not a signed roster"),
        (changed(lambda d: {**d, "cohort": "00"}), "16 bytes, not 1"),
        (changed(lambda d: {**d, "nodes": [{**d["nodes"][0], "sign": "00"}]}), "node-1 must be 32 bytes"),
        (changed(lambda d: {**d, "nodes": [{**d["nodes"][0], "node": -1}]}), "between 0 and"),
        (changed(lambda d: {**d, "nodes": [{**d["nodes"][0], "node": 1e999}]}), "is not a signed roster"),
        (changed(lambda d: {**d, "nodes": [{**d["nodes"][0], "node": "one"}]}), "is not a signed roster"),
        (changed(lambda d: {**d, "nodes": [d["nodes"][0], d["nodes"][0]]}), "lists a node twice"),
    ],
)
def test_a_file_that_is_no_roster_is_refused(place: Path, text: str, reason: str) -> None:
    refused(place, text.encode(), reason)


def test_bytes_that_are_no_text_are_refused(place: Path) -> None:
    refused(place, b"\xff\xfe", "is not a signed roster")
