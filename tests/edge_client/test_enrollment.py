"""``edge_client.enrollment``: a node makes its own keys, and what leaves its machine is public, signed, and no key."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from edge_client.enrollment import ENROLLMENT_FILE, UID, advice, enroll, main, read_enrollment
from protocol.errors import ConfigError

PRIVATE = ("kit/sign.key", "kit/seal.key", "node/flower.key")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("machine") / "hospital"
    enroll(made)
    return made


def test_the_public_halves_are_those_of_the_keys_that_were_made(folder: Path) -> None:
    made = read_enrollment(folder / ENROLLMENT_FILE)
    for name, public in (("sign.key", made.sign), ("seal.key", made.seal)):
        key = load_pem_private_key((folder / "kit" / name).read_bytes(), None)
        assert key.public_key().public_bytes_raw().hex() == public  # type: ignore[union-attr]
    load_ssh_private_key((folder / "node" / "flower.key").read_bytes(), None)
    assert (folder / "node" / "flower.key.pub").read_text() == f"{made.flower}\n"


def test_what_is_sent_holds_no_private_key(folder: Path) -> None:
    sent = (folder / ENROLLMENT_FILE).read_bytes()
    for name in PRIVATE:
        for line in (folder / name).read_bytes().splitlines()[1:-1]:
            assert line not in sent


def test_secret_files_are_for_their_user_alone(folder: Path) -> None:
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in PRIVATE} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "kit", folder / "node")} == {0o700}


def test_as_root_they_belong_to_the_user_of_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owned = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", lambda path, user, group: owned.append((path, user, group)))
    enroll(tmp_path / "node")
    assert {path.name for path, _, _ in owned} >= {"node", "sign.key", "seal.key", "flower.key", ENROLLMENT_FILE}
    assert {(user, group) for _, user, group in owned} == {(UID, UID)}


def test_anybody_else_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delattr(os, "chown")
    enroll(tmp_path / "node")
    assert read_enrollment(tmp_path / "node" / ENROLLMENT_FILE).seal


@pytest.mark.parametrize("name", [*PRIVATE, "node/flower.key.pub", ENROLLMENT_FILE])
def test_keys_are_never_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=r"is already there; keys are never overwritten"):
        enroll(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file/node cannot be written: Not a directory"):
        enroll(tmp_path / "file" / "node")


# --- what the operator reads ------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["sign", "seal", "flower"])
def test_a_key_that_was_exchanged_on_the_way_is_noticed(folder: Path, tmp_path: Path, field: str) -> None:
    other = json.loads((folder / ENROLLMENT_FILE).read_text())
    enroll(tmp_path / "mallory")
    other[field] = json.loads((tmp_path / "mallory" / ENROLLMENT_FILE).read_text())[field]
    (tmp_path / "sent.json").write_text(json.dumps(other))
    with pytest.raises(ConfigError, match=r"sent\.json is not signed with the key that it names: ask for it again"):
        read_enrollment(tmp_path / "sent.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sign", "00"),
        ("seal", "XY" * 32),
        ("flower", "ssh-ed25519 AAAA"),
        ("flower", "ecdsa-sha2-nistp384 " + "A" * 2000),
        ("signature", "00"),
        ("sign", None),
    ],
)
def test_a_key_of_another_form_is_named(folder: Path, tmp_path: Path, field: str, value: str | None) -> None:
    changed = json.loads((folder / ENROLLMENT_FILE).read_text()) | {field: value}
    (tmp_path / "sent.json").write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match=rf"sent\.json .*{field}"):
        read_enrollment(tmp_path / "sent.json")


def test_a_flower_key_that_is_none_is_refused_though_it_is_signed(tmp_path: Path) -> None:
    from edge_client import enrollment  # noqa: PLC0415  # what only the node itself does

    key, flower = Ed25519PrivateKey.generate(), "ecdsa-sha2-nistp384 AAAA"
    public = key.public_key().public_bytes_raw().hex()
    made = enrollment.Enrollment(
        sign=public, seal=public, flower=flower, signature=enrollment._signed(key, public, public, flower)
    )
    (tmp_path / "sent.json").write_bytes(made.to_json())
    with pytest.raises(ConfigError, match="ask for it again"):
        read_enrollment(tmp_path / "sent.json")


def test_one_that_is_missing_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"it is what `pruneseal enroll` makes on the client's machine"):
        read_enrollment(tmp_path / "sent.json")


def test_fingerprints_are_of_all_keys_and_can_be_read_aloud(folder: Path, tmp_path: Path) -> None:
    made, other = read_enrollment(folder / ENROLLMENT_FILE), enroll(tmp_path / "other")
    groups = made.fingerprint.split(" ")
    assert [len(group) for group in groups] == [4] * 8
    assert made.fingerprint != other.fingerprint
    for field in ("sign", "seal", "flower"):
        assert made.model_copy(update={field: getattr(other, field)}).fingerprint != made.fingerprint


# --- the command of the image -------------------------------------------------------------------------------


def test_the_command_says_what_to_send_and_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path / "hospital")])
    printed = capsys.readouterr().out
    made = read_enrollment(tmp_path / "hospital" / ENROLLMENT_FILE)
    assert printed == advice(tmp_path / "hospital", made) + "\n"
    assert made.fingerprint in printed
    assert f"tar -xzf hospital.tar.gz in {tmp_path}" in printed


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--help"]])
def test_anything_but_a_folder_is_told_how_it_is_called(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"^usage: python -m edge_client\.enrollment FOLDER$"):
        main(arguments)


def test_an_error_ends_it_in_one_line(tmp_path: Path) -> None:
    enroll(tmp_path)
    command = [sys.executable, "-m", "edge_client.enrollment", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
