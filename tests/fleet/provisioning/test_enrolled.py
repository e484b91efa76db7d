"""``fleet.provisioning``: of clients that have enrolled, the operator's desk never has a key of their own."""

import shutil
import tarfile
from pathlib import Path

import pytest

from edge_client.enrollment import ENROLLMENT_FILE, enroll, read_enrollment
from edge_client.keys import load_kit
from fleet.provisioning.check import check_kits
from fleet.provisioning.site import provision_site, read_record
from fleet.provisioning.site_file import read_site
from protocol.errors import ConfigError, KeyFileError
from protocol.plan import Plan
from tests.fleet.command import call

SITE = '[aggregator]\nhosts = ["fl.example.org"]\n[plan]\nrounds = 3\n'
OWN = ("kit/sign.key", "kit/seal.key", "node/flower.key")


def site_of(folder: Path, *enrolled: str, others: tuple[str, ...] = ()) -> Path:
    """A site file of clients that have enrolled, each on a machine of its own, and of others."""
    text = SITE
    for name in (*enrolled, *others):
        text += f'[[clients]]\nname = "{name}"\n'
        if name in enrolled:
            if not (folder / "machines" / name).exists():
                enroll(folder / "machines" / name)
            text += f'enrollment = "machines/{name}/{ENROLLMENT_FILE}"\n'
    (folder / "site.toml").write_text(text)
    return folder / "site.toml"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("enrolled")
    provision_site(folder / "kits", read_site(site_of(folder, "a", "b", others=("c",))))
    return folder


@pytest.fixture
def desk(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "desk"))


def test_the_kit_lacks_the_nodes_own_keys_and_nothing_else(made: Path) -> None:
    kits = made / "kits"
    ours = {str(path.relative_to(kits / "c")) for path in (kits / "c").rglob("*")}
    theirs = {str(path.relative_to(kits / "a")) for path in (kits / "a").rglob("*")}
    assert ours - theirs == set(OWN)
    assert theirs < ours


def test_unpacked_over_the_folder_of_the_enrollment_it_is_whole(desk: Path) -> None:
    machine = desk / "machines" / "a"
    with pytest.raises(KeyFileError, match=r"cohort\.secret"):
        load_kit(machine / "kit")
    with tarfile.open(desk / "kits" / "a.tar.gz") as archive:
        archive.extractall(machine.parent, filter="tar")
    kit = load_kit(machine / "kit")
    assert (kit.node, kit.plan) == (0, Plan(rounds=3).digest)
    assert (machine / "node" / "flower.key").read_bytes()
    assert (machine / "node" / "ca.crt").read_bytes() == (desk / "kits" / "operator" / "ca.crt").read_bytes()


@pytest.mark.parametrize("name", ["sign.key", "seal.key"])
def test_a_kit_without_its_own_keys_says_where_they_are(made: Path, tmp_path: Path, name: str) -> None:
    kit = Path(shutil.copytree(made / "kits" / "c" / "kit", tmp_path / "kit"))
    (kit / name).unlink()
    with pytest.raises(KeyFileError, match=f"{name} is missing. Where this node has enrolled, unpack its kit over the"):
        load_kit(kit)


def test_the_aggregator_knows_the_flower_key_of_the_enrollment(made: Path) -> None:
    known = (made / "kits" / "aggregator" / "federation" / "nodes" / "a.pub").read_text()
    assert known == read_enrollment(made / "machines" / "a" / ENROLLMENT_FILE).flower + "\n"


def test_the_proof_says_whose_keys_are_here(made: Path) -> None:
    proved = check_kits(made / "kits")
    assert "enrolled clients: 2; none of their own keys is here" in proved
    assert "the own keys of c are here: this is for trials" in proved
    assert read_record(made / "kits").enrolled == ("a", "b")


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("place", ["operator/old.bak", "a/data/note", "aggregator/federation/x"])
def test_a_key_that_has_come_to_the_desk_is_found(desk: Path, own: str, place: str) -> None:
    (desk / "kits" / place).write_bytes(b"found in the mail:\n" + (desk / "machines" / "b" / own).read_bytes())
    with pytest.raises(KeyFileError, match="holds an own key of b, which has enrolled and alone may have it"):
        check_kits(desk / "kits")


@pytest.mark.parametrize("form", ["raw", "hex"])
def test_so_is_one_in_another_form(desk: Path, form: str) -> None:
    from edge_client.keys import _private_key  # noqa: PLC0415  # the file's own reader

    raw = _private_key(desk / "machines" / "a" / "kit" / "seal.key").private_bytes_raw()  # type: ignore[attr-defined]
    (desk / "kits" / "operator" / "x").write_bytes(raw if form == "raw" else b"key=" + raw.hex().encode() + b"\n")
    with pytest.raises(KeyFileError, match="holds an own key of a"):
        check_kits(desk / "kits")


def test_what_looks_like_a_key_and_is_none_is_passed_over(desk: Path) -> None:
    text = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
    (desk / "kits" / "operator" / "x").write_bytes(text)
    assert check_kits(desk / "kits")


def test_an_archive_of_anybodys_is_searched_too(desk: Path) -> None:
    with tarfile.open(desk / "kits" / "old.tar.gz", "w:gz") as archive:
        archive.add(desk / "machines" / "a" / "kit" / "sign.key", "x")
    with pytest.raises(KeyFileError, match=r"old\.tar\.gz: x holds an own key of a"):
        check_kits(desk / "kits")


# --- later ------------------------------------------------------------------------------------------------


def test_clients_that_have_enrolled_come_and_go(desk: Path) -> None:
    site = read_site(site_of(desk, "a", "d", others=("c",)))
    changes = provision_site(desk / "kits", site, amend=True)
    assert ([client.name for client in changes.added], changes.revoked) == (["d"], ("b",))
    assert read_record(desk / "kits").enrolled == ("a", "b", "d")
    assert "enrolled clients: 2; none of their own keys is here" in check_kits(desk / "kits")


@pytest.mark.parametrize("name", ["a", "c"])
def test_a_name_keeps_its_keys(desk: Path, name: str) -> None:
    shutil.rmtree(desk / "machines" / name, ignore_errors=True)
    enrolled = {"a", "b", name}
    site = read_site(site_of(desk, *sorted(enrolled), others=tuple({"c"} - enrolled)))
    with pytest.raises(ConfigError, match=f"{name} was admitted with other keys than those of its enrollment"):
        provision_site(desk / "kits", site, amend=True)


def test_two_clients_with_one_enrollment_are_refused(desk: Path) -> None:
    site_of(desk, "a", "b", "c")
    text = (desk / "site.toml").read_text().replace("machines/b/", "machines/a/")
    (desk / "site.toml").write_text(text)
    with pytest.raises(ConfigError, match="gives two clients the same enrollment: each makes its own"):
        read_site(desk / "site.toml")


def test_an_enrollment_that_is_missing_is_named(tmp_path: Path) -> None:
    site = site_of(tmp_path, "a", "b", "c")
    (tmp_path / "machines" / "b" / ENROLLMENT_FILE).unlink()
    with pytest.raises(ConfigError, match=r"machines/b/enrollment\.json is missing"):
        read_site(site)


# --- the commands ------------------------------------------------------------------------------------------


def test_enroll_and_provision_print_the_same_fingerprint(tmp_path: Path) -> None:
    names = ("a", "b", "c")
    printed = {name: call("enroll", tmp_path / "machines" / name).stdout for name in names}
    done = call("provision", site_of(tmp_path, *names), "--out", tmp_path / "kits")
    assert done.exit_code == 0, done.stderr
    for name in names:
        fingerprint = read_enrollment(tmp_path / "machines" / name / ENROLLMENT_FILE).fingerprint
        assert fingerprint in printed[name]
        assert f"{name}.tar.gz (enrolled, {fingerprint})" in done.stdout
    again = call("enroll", tmp_path / "machines" / "a")
    assert again.exit_code == 1
    assert "keys are never overwritten" in again.stderr


def test_keys_that_are_made_at_the_desk_are_marked_as_for_a_trial(tmp_path: Path) -> None:
    done = call("provision", site_of(tmp_path, others=("a", "b", "c")), "--out", tmp_path / "kits")
    assert done.stdout.count("its keys were made here, for a trial; better have it enroll") == 3
