"""``edge_client.state``: what was saved last is what is loaded, or an error; never something in between."""

import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.dealing import Secrets
from edge_client.state import PENDING_FILE, Measured, Pending, accept_roster, load_pending, save_pending
from protocol.errors import CheckpointError, RosterRefused
from protocol.roster import Roster

WAITING = Pending(
    attendance=bytes(range(240)),
    dealt=bytes(range(112)),
    secrets=Secrets(bytes(32), bytes(range(32))),
    invited=frozenset({2, 3, 5}),
    values=np.linspace(-1, 1, 5, dtype=np.float32),
    votes=np.array([True, False, True, True, False]),
    step=np.linspace(0.1, 0.5, 5),
    sealed=b"sealed terms",
    state=bytes(range(32)),
    cohort=b"a cohort",
    shares=(bytes(64), None, bytes(range(64))),
    measured=Measured(loss=0.25, tested=36),
)


def content(pending: Pending) -> tuple[object, ...]:
    """Everything that can be told apart about a pending update, dtypes and signs of zero included."""
    arrays = (pending.values, pending.votes, pending.step)
    shapes = tuple((array.dtype.str, array.shape, array.tobytes()) for array in arrays)
    told = (pending.attendance, pending.dealt, pending.secrets, pending.invited, pending.cohort, pending.shares)
    return (*told, *shapes, pending.sealed, pending.measured, pending.state)


@pytest.mark.slow
@given(
    attendance=st.binary(max_size=300),
    values=st.lists(st.floats(width=32), max_size=20),
    voting=st.booleans(),
    sealed=st.binary(max_size=50),
    measured=st.builds(Measured, st.floats(allow_nan=False), st.integers(), st.integers(), st.floats(allow_nan=False)),
    state=st.binary(min_size=32, max_size=32),
)
def test_what_was_saved_last_is_what_is_loaded(
    attendance: bytes,
    values: list[float],
    voting: bool,
    sealed: bytes,
    measured: Measured,
    state: bytes,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "state"
    vector = np.array(values, np.float32)
    votes = np.signbit(vector) if voting else np.zeros(0, np.bool_)
    pending = Pending(
        attendance=attendance,
        dealt=sealed,
        secrets=Secrets(state, state[::-1]),
        invited=frozenset(attendance),
        values=vector,
        votes=votes,
        step=np.sqrt(np.arange(len(values))),
        sealed=sealed,
        state=state,
        cohort=attendance,
        shares=tuple(None if voting else bytes([byte]) * 64 for byte in sealed),
        measured=measured,
    )
    save_pending(folder, WAITING)
    save_pending(folder, pending)
    assert content(load_pending(folder)) == content(pending)


def test_the_file_is_this_users_alone_and_its_folder_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    save_pending(folder, WAITING)
    assert stat.S_IMODE((folder / PENDING_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in folder.iterdir()] == [PENDING_FILE]


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_a_crash_while_saving_leaves_what_was_there(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pending(tmp_path, WAITING)

    def crash(*arguments: object) -> None:
        raise OSError("the power is out")

    with monkeypatch.context() as patch:
        patch.setattr(step, crash)
        with pytest.raises(OSError, match="the power is out"):
            save_pending(tmp_path, replace(WAITING, state=bytes(32)))
    assert content(load_pending(tmp_path)) == content(WAITING)
    assert [path.name for path in tmp_path.iterdir()] == [PENDING_FILE]


def test_nothing_waits_before_train_was_answered(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no trained update waits in .*has not answered `train`"):
        load_pending(tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("saved")
    save_pending(folder, WAITING)
    return (folder / PENDING_FILE).read_bytes()


@given(data=st.data())
def test_a_damaged_file_is_an_error_or_still_holds_the_same(
    data: st.DataObject, saved: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    at = data.draw(st.integers(0, len(saved) - 1))
    flip = bytes([saved[at] ^ data.draw(st.integers(1, 255))])
    damaged = data.draw(st.sampled_from([saved[:at], saved[:at] + flip + saved[at + 1 :], saved[at:]]))
    (folder / PENDING_FILE).write_bytes(damaged)
    try:
        loaded = load_pending(folder)
    except CheckpointError as error:
        damage = str(error)
    else:
        assert content(loaded) == content(WAITING)
        return
    assert "the node joins again with the next round" in damage


# An array alone, an encrypted member, an unknown compression, nothing: each a different way to fail underneath.
@pytest.mark.parametrize("kind", ["empty", "array", "encrypted", "compression", "missing", "text"])
def test_every_kind_of_damage_has_one_error(kind: str, saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / PENDING_FILE
    entry = saved.rindex(b"PK\x01\x02")
    if kind == "array":
        with path.open("wb") as file:
            np.save(file, np.arange(3))
    elif kind == "missing":
        with path.open("wb") as file:
            np.savez(file, attendance=np.zeros(3, np.uint8))
    else:
        patched = bytearray(saved)
        patched[entry + 8] |= kind == "encrypted"
        patched[entry + 10] |= 96 * (kind == "compression")
        path.write_bytes({"empty": b"", "text": b"not a zip file"}.get(kind, bytes(patched)))
    with pytest.raises(CheckpointError, match="is damaged"):
        load_pending(tmp_path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    with (tmp_path / PENDING_FILE).open("wb") as file:
        np.savez(file, attendance=np.array([object()], dtype=object))
    with pytest.raises(CheckpointError, match="is damaged"):
        load_pending(tmp_path)


# --- the newest roster --------------------------------------------------------------------------


def numbered(serial: int, cohort: bytes = bytes(16)) -> Roster:
    return Roster(cohort, {}, serial)


def test_the_first_roster_of_a_federation_is_accepted_and_leaves_nothing(tmp_path: Path) -> None:
    accept_roster(tmp_path / "state", numbered(1))
    assert not (tmp_path / "state").exists()


@given(serials=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_a_roster_is_accepted_unless_a_newer_one_was(
    serials: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, newest = tmp_path_factory.mktemp("state"), 1
    for serial in serials:
        if serial < newest:
            with pytest.raises(RosterRefused, match=f"is number {serial}, but number {newest} was in force here"):
                accept_roster(folder, numbered(serial))
        else:
            accept_roster(folder, numbered(serial))
            newest = serial


def test_another_federation_counts_for_itself(tmp_path: Path) -> None:
    accept_roster(tmp_path, numbered(7))
    accept_roster(tmp_path, numbered(2, cohort=bytes(range(16))))
    with pytest.raises(RosterRefused):
        accept_roster(tmp_path, numbered(6))


@pytest.mark.parametrize("content", [b"", b"seven", b"\xff"])
def test_a_damaged_memory_of_the_newest_roster_is_an_error_and_is_not_made_anew(tmp_path: Path, content: bytes) -> None:
    accept_roster(tmp_path / "state", numbered(7))
    ((path,)) = (tmp_path / "state").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"\.serial is damaged .* put the number of the newest roster there"):
        accept_roster(tmp_path / "state", numbered(8))
    assert path.read_bytes() == content
