"""``protocol.files``: the old content or the new, never a part, also when the machine stops in between."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.files import create_file, replace_file, sync_directory


class Crash(Exception):
    """The machine stops here."""


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(old=st.none() | st.binary(max_size=50), new=st.binary(max_size=50))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_holds_what_was_last_put_there_and_leaves_nothing_beside_it(
    tmp_path: Path, old: bytes | None, new: bytes
) -> None:
    (tmp_path / "state").unlink(missing_ok=True)
    if old is not None:
        replace_file(tmp_path / "state", old)
    replace_file(tmp_path / "state", new)
    assert content(tmp_path) == {"state": new}


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_whatever_fails_before_the_renaming_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    replace_file(tmp_path / "state", b"old")

    def crash(*_: object) -> None:
        raise Crash

    if failing == "write":
        monkeypatch.setattr(os, "fdopen", crash)
    elif failing == "fsync":
        monkeypatch.setattr(os, "fsync", crash)
    else:
        monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(Crash):
        replace_file(tmp_path / "state", b"new")
    assert content(tmp_path) == {"state": b"old"}


def test_a_crash_after_the_renaming_leaves_the_new_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_file(tmp_path / "state", b"old")

    def crash(_: object) -> None:
        raise Crash

    monkeypatch.setattr("protocol.files.sync_directory", crash)
    with pytest.raises(Crash):
        replace_file(tmp_path / "state", b"new")
    assert content(tmp_path) == {"state": b"new"}


def test_the_content_is_durable_before_it_is_named_and_the_name_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def record_fsync(descriptor: int) -> None:
        steps.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "content")
        fsync(descriptor)

    def record_rename(source: Path, target: Path) -> Path:
        steps.append("rename")
        assert source.read_bytes() == b"new"
        assert source.parent == target.parent
        return rename(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_rename)
    replace_file(tmp_path / "state", b"new")
    assert steps == ["content", "rename", "directory"]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_the_permissions_are_those_asked_for_from_the_first_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    seen: list[int] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    before = os.umask(0o022)
    try:
        replace_file(tmp_path / "state", b"new", mode)
    finally:
        os.umask(before)
    assert seen[0] == mode
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == mode


def test_the_mode_of_the_old_file_is_not_inherited(tmp_path: Path) -> None:
    (tmp_path / "state").touch(mode=0o666)
    replace_file(tmp_path / "state", b"new", 0o600)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o600


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"target")
    (tmp_path / "state").symlink_to(tmp_path / "target")
    replace_file(tmp_path / "state", b"new")
    assert content(tmp_path) == {"state": b"new", "target": b"target"}
    assert not (tmp_path / "state").is_symlink()


def test_a_missing_directory_is_an_error_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "absent" / "state", b"new")
    assert content(tmp_path) == {}


def test_a_directory_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(tmp_path / "state", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_only_a_directory_is_synced_as_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        sync_directory(tmp_path / "file")


def test_a_directory_is_closed_even_if_it_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def crash(descriptor: int) -> None:
        opened.append(descriptor)
        raise Crash

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(Crash):
        sync_directory(tmp_path)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


def test_a_new_file_is_made_once_with_its_mode(tmp_path: Path) -> None:
    create_file(tmp_path / "key", b"first", 0o600)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        create_file(tmp_path / "key", b"second")
    assert content(tmp_path) == {"key": b"first"}
