"""``edge_client.ledger``: what a node has answered is remembered whole, or the node says that it is not."""

import hashlib
import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.ledger import LEDGER_FILE, Ledger, Sent
from edge_client.state import PENDING_FILE
from protocol.call import Call
from protocol.errors import Duplicate, LedgerLost, PeerMismatch, StorageError
from protocol.openings import Opening
from tests.edge_client.federation import FIRST, RUN

NODE = 7
OTHER = bytes(16)
LAST = (1 << 32) - 1
SENT = Sent(RUN, 2, 3, bytes(range(32)), bytes(32), frozenset({1, 8, 9, 4_000_000_000}))
SECOND = Call(RUN, 2, 3)
GIVEN_NEXT = Sent(RUN, 3, 1, bytes(32), bytes(32), frozenset({7}))

RUNS = st.binary(min_size=16, max_size=16)
DIGESTS = st.binary(min_size=32, max_size=32)
NUMBERS = st.integers(1, LAST)
NODES = st.frozensets(st.integers(0, LAST), max_size=8)
GIVEN = st.builds(Sent, RUNS, NUMBERS, NUMBERS, DIGESTS, DIGESTS, NODES, st.frozensets(NODES, max_size=3))
ASKED = st.dictionaries(RUNS, st.tuples(NUMBERS, st.integers(1, 1 << 32)), max_size=4)


def kept(folder: Path) -> Path:
    """A folder with a ledger in it, and its file."""
    ledger = Ledger(folder)
    ledger.note(Call(OTHER, 9, 1))
    ledger.give(SENT, NODE)
    return folder / LEDGER_FILE


def opened(folder: Path, call: Call, waiting: Call | None = None) -> Ledger:
    return Ledger.open(folder, call, waiting, NODE)


# --- what is remembered -------------------------------------------------------------------------


@pytest.mark.slow
@given(asked=ASKED, sent=st.lists(GIVEN, max_size=4))
def test_what_was_saved_last_is_what_is_read(
    asked: dict[bytes, tuple[int, int]], sent: list[Sent], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "ledger"
    kept(folder)
    Ledger(folder, asked, sent).save()
    unknown = Call(b"in no other run!", 5, 1)
    assert opened(folder, unknown) == Ledger(folder, asked, sent)


def test_an_answer_and_a_contribution_are_found_by_the_next_process(tmp_path: Path) -> None:
    kept(tmp_path)
    ledger = opened(tmp_path, SECOND)
    assert ledger.given == [SENT]
    assert ledger.asked == {OTHER: (9, 1), RUN: (2, 3)}


def test_the_file_is_this_users_alone_and_its_folder_is_made(tmp_path: Path) -> None:
    path = kept(tmp_path / "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_what_is_known_already_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(tmp_path)
    ledger = opened(tmp_path, SECOND)
    monkeypatch.delattr("edge_client.ledger.replace_file")
    ledger.note(SECOND)
    ledger.give(SENT, NODE)
    with pytest.raises(NameError):
        ledger.note(Call(RUN, 2, 4))


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_a_full_disk_is_told_and_leaves_the_ledger_as_it_was(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kept(tmp_path)
    before, ledger = path.read_bytes(), opened(tmp_path, SECOND)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(step, full)
        with pytest.raises(StorageError, match=r"ledger\.json cannot be written: No space left on device"):
            ledger.note(Call(RUN, 3, 1))
        with pytest.raises(StorageError, match=r"ledger\.json cannot be written: No space left on device"):
            ledger.give(GIVEN_NEXT, NODE)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_a_ledger_that_cannot_be_read_is_a_matter_of_the_disk_and_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / LEDGER_FILE).mkdir()
    with pytest.raises(StorageError, match=r"ledger\.json cannot be read: Is a directory"):
        opened(tmp_path, FIRST)
    assert (tmp_path / LEDGER_FILE).is_dir()


# --- rounds and attempts rise -------------------------------------------------------------------


@given(before=st.tuples(NUMBERS, NUMBERS), now=st.tuples(NUMBERS, NUMBERS))
def test_rounds_of_a_run_and_attempts_of_a_round_only_rise(before: tuple[int, int], now: tuple[int, int]) -> None:
    ledger, call = Ledger(Path(), {RUN: before}), Call(RUN, *now)
    ledger.require(Call(OTHER, *now), NODE)
    if now >= before:
        ledger.require(call, NODE)
    elif now[0] < before[0]:
        with pytest.raises(PeerMismatch, match=f"round: ours is at least {before[0]}, the peer's is {now[0]}"):
            ledger.require(call, NODE)
    else:
        with pytest.raises(Duplicate, match=f"node 7 has already sent its answers up to attempt {before[1]} of round"):
            ledger.require(call, NODE)


@pytest.mark.parametrize("call", [Call(RUN, 1, LAST), Call(RUN, LAST, 1), Call(RUN, LAST, LAST)])
def test_the_last_rounds_and_attempts_that_there_are_can_be_answered_again(call: Call, tmp_path: Path) -> None:
    """None of them is mistaken for a round that is sat out."""
    Ledger(tmp_path).note(call)
    assert opened(tmp_path, call).asked == {RUN: (call.round, call.attempt)}


# --- contributions and consents -----------------------------------------------------------------


def test_what_was_contributed_once_may_be_contributed_again_and_nothing_else_in_its_attempt(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.give(SENT, NODE)
    ledger.give(SENT, NODE)
    for other in (replace(SENT, cohort=bytes(range(32))), replace(SENT, invited=frozenset({1}))):
        with pytest.raises(Duplicate, match="node 7 has already sent its contribution to attempt 3"):
            ledger.give(other, NODE)
    ledger.give(replace(SENT, attempt=4), NODE)
    assert [sent.attempt for sent in ledger.given] == [3, 4]


SUMS = (frozenset({1, 7}), frozenset({8, 9}))


@pytest.mark.parametrize("sets", [SUMS[:1], SUMS], ids=["one sum", "the sums of two groups"])
def test_the_sums_of_an_attempt_are_consented_to_once_and_may_be_asked_for_again(
    sets: tuple[frozenset[int], ...], tmp_path: Path
) -> None:
    kept(tmp_path)
    ledger = opened(tmp_path, SECOND)
    ledger.release(SECOND, sets, NODE)
    again = opened(tmp_path, SECOND)
    remembered = [replace(SENT, opened=frozenset(sets))]
    assert again.given == remembered
    assert again.memory(Call(RUN, 2, 9), SENT.state) == {Opening(SENT.invited, frozenset(sets))}
    again.release(SECOND, sets[::-1], NODE)
    for others in ([frozenset({1, 7, 8})], SUMS[1:], [*sets, frozenset({4})]):
        with pytest.raises(Duplicate, match="node 7 has already sent its consent to sums of attempt 3"):
            again.release(SECOND, others, NODE)
    again.give(SENT, NODE)
    assert again.given == remembered, "a repeated contribution forgets no consent"


HERE = Call(RUN, 2, 9)
STATE = SENT.state


@pytest.mark.parametrize(
    ("sent", "remembered"),
    [
        (SENT, True),
        (replace(SENT, run=OTHER, round=5), True),
        (replace(SENT, state=bytes(32)), True),
        (replace(SENT, round=3, state=bytes(32)), False),
        (replace(SENT, run=OTHER, state=bytes(32)), False),
        (replace(SENT, attempt=9), False),
    ],
    ids=["an earlier attempt", "another run", "another state", "another round", "another run's round", "this attempt"],
)
def test_of_one_state_and_of_one_round_everything_is_remembered_but_the_attempt_under_way(
    sent: Sent, remembered: bool
) -> None:
    ledger = Ledger(Path(), given=[replace(sent, opened=frozenset({frozenset({1, 8})}))])
    opening = Opening(SENT.invited, frozenset({frozenset({1, 8})}))
    assert ledger.memory(HERE, STATE) == ({opening} if remembered else frozenset())


def test_attempts_that_opened_nothing_are_remembered_once() -> None:
    ledger = Ledger(Path(), given=[replace(SENT, attempt=attempt) for attempt in (1, 2, 3)])
    assert ledger.memory(HERE, STATE) == {Opening(SENT.invited, frozenset())}


# --- lost and damaged ---------------------------------------------------------------------------


def assert_sits_out(folder: Path, call: Call, waiting: Call | None = None) -> None:
    """The round is sat out, to the last attempt and by every later process, and the next is not."""
    for attempt in (call.attempt, call.attempt, LAST):
        with pytest.raises(LedgerLost, match=f"sits out round {call.round} and joins with the next one"):
            opened(folder, Call(call.run, call.round, attempt), waiting)
    if call.round > 1:
        with pytest.raises(PeerMismatch):
            opened(folder, Call(call.run, call.round - 1, 1))
    assert opened(folder, Call(call.run, call.round + 1, 1)).given == []


@pytest.mark.slow
def test_a_ledger_cut_off_anywhere_is_not_read_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    path = kept(tmp_path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(LedgerLost):
            opened(tmp_path, SECOND)
        assert opened(tmp_path, Call(RUN, 3, 1)).given == []


@pytest.mark.slow
def test_a_ledger_with_any_byte_changed_is_not_read_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    path = kept(tmp_path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for change in (0x01, 0x20, 0xFF):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
            with pytest.raises(LedgerLost):
                opened(tmp_path, SECOND)
            assert opened(tmp_path, Call(RUN, 3, 1)).given == []


def sealed(body: str) -> bytes:
    """A ledger of any content whose check sum holds."""
    digest = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({"format": "pruneseal-ledger", "version": 1, "sha256": digest, "body": body}).encode()


HOSTILE = {
    "deep": b"[" * 500_000,
    "deep within": sealed("[" * 500_000),
    "huge": sealed('{"asked":{},"given":[' + "1," * 500_000 + "1]}"),
    "a huge number": sealed('{"asked":{"' + RUN.hex() + '":[1' + "0" * 5000 + ',1]},"given":[]}'),
    "infinity": sealed('{"asked":{"' + RUN.hex() + '":[Infinity,1]},"given":[]}'),
    "a short pair": sealed('{"asked":{"' + RUN.hex() + '":[1]},"given":[]}'),
    "a real number": sealed('{"asked":{"' + RUN.hex() + '":[1.5,1]},"given":[]}'),
    "another key": sealed('{"asked":{},"given":[],"more":1}'),
    "a list": b"[]",
    "a number": b"3",
    "nothing": b"",
    "no text": json.dumps({"format": "pruneseal-ledger", "version": 1, "sha256": "", "body": 3}).encode(),
    "no half of a pair": sealed("{}").replace(b'"body": "{}"', b'"body": "\\ud800"'),
    "another version": sealed('{"asked":{},"given":[]}').replace(b'"version": 1', b'"version": 2'),
    "another format": sealed('{"asked":{},"given":[]}').replace(b"pruneseal-ledger", b"pruneseal-roster"),
    "no UTF-8": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_is_no_ledger_counts_as_a_lost_one(kind: str, tmp_path: Path) -> None:
    (tmp_path / LEDGER_FILE).write_bytes(HOSTILE[kind])
    assert_sits_out(tmp_path, Call(RUN, 4, 2))


def test_a_new_node_begins_with_its_first_round(tmp_path: Path) -> None:
    assert opened(tmp_path / "state", FIRST) == Ledger(tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_a_ledger_that_is_missing_beside_a_waiting_update_was_lost(tmp_path: Path) -> None:
    (tmp_path / PENDING_FILE).write_bytes(b"whatever")
    assert_sits_out(tmp_path, FIRST)


@pytest.mark.parametrize("round_", [2, LAST - 1])
def test_a_ledger_that_is_missing_in_mid_run_was_lost(round_: int, tmp_path: Path) -> None:
    assert_sits_out(tmp_path, Call(RUN, round_, 1))


def test_a_ledger_older_than_the_update_that_waits_was_put_back_from_a_copy(tmp_path: Path) -> None:
    kept(tmp_path)
    for waiting in (Call(RUN, 2, 4), Call(RUN, 3, 1), Call(b"in no other run!", 1, 1)):
        with pytest.raises(LedgerLost):
            opened(tmp_path, Call(waiting.run, waiting.round, LAST), waiting)
        assert opened(tmp_path, Call(waiting.run, waiting.round + 1, 1)).given == [SENT]
        kept(tmp_path)
    for waiting in (SECOND, Call(RUN, 1, 9), Call(OTHER, 9, 1)):
        assert opened(tmp_path, Call(RUN, 2, 3), waiting).given == [SENT]


@pytest.mark.parametrize("asked", [Call(OTHER, 1, 1), Call(OTHER, 5, 1), Call(RUN, 1, 1)])
def test_a_made_up_question_first_does_not_open_the_round_that_the_waiting_update_is_of(
    asked: Call, tmp_path: Path
) -> None:
    """Asked for anything else after the loss, the node sits out that, and what it had last trained for all the same."""
    kept(tmp_path).write_bytes(b"damaged")
    with pytest.raises((LedgerLost, PeerMismatch)):
        opened(tmp_path, asked, SECOND)
    with pytest.raises(LedgerLost):
        opened(tmp_path, Call(RUN, 2, 9), SECOND)
    with pytest.raises(PeerMismatch):
        opened(tmp_path, Call(RUN, 1, 9), SECOND)
    assert opened(tmp_path, Call(RUN, 3, 1), SECOND).given == []


def test_a_node_that_cannot_note_that_it_sits_out_answers_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kept(tmp_path)
    path.write_bytes(b"damaged")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError):
        opened(tmp_path, SECOND)
    assert path.read_bytes() == b"damaged"
