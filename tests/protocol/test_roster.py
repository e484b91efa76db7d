"""``protocol.roster``: who may take part, and the proof that it was them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.errors import ConfigError, SignatureRefused
from protocol.roster import KEY_ID_BYTES, Node, Roster, load_roster, signed_digest
from tests.factories import roster, sign_key

NODES = st.builds(Node, st.text(max_size=6), st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
ROSTERS = st.builds(
    Roster,
    st.binary(min_size=KEY_ID_BYTES, max_size=KEY_ID_BYTES),
    st.dictionaries(st.integers(0, (1 << 32) - 1), NODES, max_size=4),
)
ROSTER = roster((1, 2, 300))


@given(made=ROSTERS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_loaded_is_what_was_written(tmp_path: Path, made: Roster) -> None:
    (tmp_path / "roster.json").write_text(made.to_json())
    assert load_roster(tmp_path / "roster.json") == made


def test_the_file_lists_the_nodes_in_order_whatever_the_order_of_the_mapping() -> None:
    turned = Roster(ROSTER.cohort_id, dict(reversed(list(ROSTER.nodes.items()))))
    assert turned.to_json() == ROSTER.to_json()
    assert [entry["node"] for entry in json.loads(ROSTER.to_json())["nodes"]] == [1, 2, 300]


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
    for sign, mask in ((bytes(length), bytes(32)), (bytes(32), bytes(length))):
        with pytest.raises(ConfigError, match="ann must be 32 bytes"):
            Node("ann", sign, mask)


@pytest.mark.parametrize("length", [0, 15, 17])
def test_a_cohort_id_is_16_bytes(length: int) -> None:
    with pytest.raises(ConfigError, match=f"16 bytes, not {length}"):
        Roster(bytes(length), {})


@pytest.mark.parametrize("number", [-1, 1 << 32])
def test_a_node_has_a_number_that_a_message_can_hold(number: int) -> None:
    with pytest.raises(ConfigError, match="between 0 and"):
        Roster(bytes(16), {number: Node("ann", bytes(32), bytes(32))})


def test_a_missing_roster_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent.json cannot be read: No such file.* Provision the node first"):
        load_roster(tmp_path / "absent.json")


def changed(change: Callable[[Any], Any]) -> str:
    """The text of a roster file after somebody has edited it."""
    data = json.loads(ROSTER.to_json())
    return json.dumps(change(data))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a roster"),
        ("[]", "is not a roster"),
        ("7", "is not a roster"),
        ("{}", "is not a roster"),
        (changed(lambda d: {**d, "format": "roster"}), "not a roster of version 1"),
        (changed(lambda d: {**d, "version": 2}), "not a roster of version 1"),
        (changed(lambda d: {**d, "nodes": None}), "is not a roster"),
        (changed(lambda d: {**d, "nodes": [1]}), "is not a roster"),
        (changed(lambda d: {**d, "cohort": "no hex"}), "is not a roster"),
        (changed(lambda d: {**d, "cohort": 7}), "is not a roster"),
        (changed(lambda d: {**d, "cohort": "00"}), "16 bytes, not 1"),
        (changed(lambda d: {**d, "nodes": [{**d["nodes"][0], "sign": "00"}]}), "node-1 must be 32 bytes"),
        (changed(lambda d: {**d, "nodes": [{**d["nodes"][0], "node": -1}]}), "between 0 and"),
        (changed(lambda d: {**d, "nodes": [{**d["nodes"][0], "node": 1e999}]}), "is not a roster"),
        (changed(lambda d: {**d, "nodes": [{**d["nodes"][0], "node": "one"}]}), "is not a roster"),
        (changed(lambda d: {**d, "nodes": [d["nodes"][0], d["nodes"][0]]}), "lists a node twice"),
    ],
)
def test_a_file_that_is_no_roster_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "roster.json").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        load_roster(tmp_path / "roster.json")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "roster.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not a roster"):
        load_roster(tmp_path / "roster.json")
