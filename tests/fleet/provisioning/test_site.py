"""``fleet.provisioning``, site and check: one kit per machine, changed only where that is asked for, and proved."""

import base64
import re
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from edge_client.bundle import accepted
from edge_client.enrollment import UID
from edge_client.keys import load_kit, load_operator_key
from fleet.provisioning.app_bundle import bundle_digest
from fleet.provisioning.check import check_kits
from fleet.provisioning.kits import signed_roster
from fleet.provisioning.site import Changes, provision_site, read_record
from fleet.provisioning.site_file import Client, read_site
from protocol.errors import ConfigError, KeyFileError, RosterRefused
from protocol.plan import Plan
from protocol.roster import load_roster
from tests.fleet.command import call

ROOT = Path(__file__).parents[3]
SITE = """
[aggregator]
hosts = ["fl.example.org", "192.0.2.7"]
port = 8443

[plan]
rounds = 3
"""


def written(path: Path, *names: str, text: str = SITE) -> Path:
    path.write_text(text + "".join(f'[[clients]]\nname = "{name}"\n' for name in names))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    provision_site(folder / "kits", read_site(written(folder / "site.toml", "a", "b", "c")))
    return folder / "kits"


@pytest.fixture
def kits(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "kits"))


def content(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_there_is_a_kit_and_an_archive_for_every_machine_and_none_for_the_operator(made: Path) -> None:
    assert {path.name for path in made.iterdir()} == {
        *("a", "b", "c", "aggregator", "operator"),
        *("a.tar.gz", "b.tar.gz", "c.tar.gz", "aggregator.tar.gz"),
    }


def test_every_client_can_load_its_keys_and_accepts_the_plan_and_its_bundle(made: Path) -> None:
    plan = Plan(rounds=3)
    for number, name in enumerate("abc"):
        kit = load_kit(made / name / "kit")
        assert (kit.node, kit.plan) == (number, plan.digest)
        assert accepted(made / name / "kit") == {bundle_digest(plan)}
        assert (made / name / ".env").read_text().count("PRUNESEAL_SUPERLINK=fl.example.org:8443") == 1


def test_flowers_key_is_apart_from_the_keys_of_the_encryption(made: Path) -> None:
    assert {path.name for path in (made / "a" / "node").iterdir()} == {"flower.key", "flower.key.pub", "ca.crt"}
    assert "flower.key" not in {path.name for path in (made / "a" / "kit").iterdir()}


def test_an_archive_holds_its_kit_with_modes_for_the_user_of_the_images(made: Path) -> None:
    with tarfile.open(made / "b.tar.gz") as archive:
        entries = {entry.name: entry for entry in archive}
    assert {(entry.uid, entry.gid) for entry in entries.values()} == {(UID, UID)}
    assert entries["b"].mode == 0o700
    assert entries["b/kit/cohort.secret"].mode == 0o600
    assert {name.removeprefix("b/") for name, entry in entries.items() if entry.isfile()} == {
        str(path) for path in content(made / "b")
    }
    assert stat.S_IMODE((made / "b.tar.gz").stat().st_mode) == 0o600


def test_good_kits_are_proved_good(made: Path) -> None:
    done = call("provision", "--check", made)
    assert done.exit_code == 0, done.stderr
    assert "3 clients: keys, plan, bundle and Flower keys fit one another" in done.stdout
    assert "aggregator: none of" in done.stdout


@pytest.mark.parametrize("form", ["file", "raw", "hex", "HEX", "base64"])
@pytest.mark.parametrize(
    "source",
    ["operator/cohort.secret", "a/kit/sign.key", "operator/ca.key", "operator/operator.key", "b/node/flower.key"],
)
def test_a_secret_in_the_aggregators_kit_is_found_in_every_form(kits: Path, form: str, source: str) -> None:
    data = (kits / source).read_bytes().strip()
    forms = {
        "file": data,
        "raw": data if b"-" in data else bytes.fromhex(data.decode()),
        "hex": data.hex().encode(),
        "HEX": data.hex().upper().encode(),
        "base64": base64.b64encode(data),
    }
    (kits / "aggregator" / "federation" / "app" / "LICENSE").write_bytes(b"text " + forms[form] + b" text")
    with pytest.raises(KeyFileError, match="LICENSE holds a secret of"):
        check_kits(kits)


def test_a_secret_in_the_aggregators_archive_alone_is_found(kits: Path) -> None:
    planted = kits / "aggregator" / "notes"
    shutil.copy(kits / "operator" / "cohort.secret", planted)
    with tarfile.open(kits / "aggregator.tar.gz", "w:gz") as archive:
        archive.add(kits / "aggregator", "aggregator")
    planted.unlink()
    with pytest.raises(KeyFileError, match=r"aggregator\.tar\.gz: aggregator/notes holds a secret"):
        check_kits(kits)


def test_a_client_with_another_clients_key_is_found(kits: Path) -> None:
    shutil.copy(kits / "a" / "kit" / "seal.key", kits / "b" / "out" / "notes")
    with pytest.raises(KeyFileError, match="holds a secret of a"):
        check_kits(kits)


def spoil_mode(kits: Path) -> None:
    (kits / "a" / "node" / "flower.key").chmod(0o644)


def spoil_folder(kits: Path) -> None:
    (kits / "a" / "node").chmod(0o755)


def spoil_bundle(kits: Path) -> None:
    (kits / "a" / "kit" / "bundle.sha256").write_text("0" * 64)


def spoil_certificate(kits: Path) -> None:
    shutil.copy(kits / "operator" / "ca.crt", kits / "aggregator" / "tls" / "server.crt")


def spoil_node(kits: Path) -> None:
    shutil.copy(kits / "a" / "node" / "flower.key.pub", kits / "aggregator" / "federation" / "nodes" / "b.pub")


def spoil_node_key(kits: Path) -> None:
    (kits / "aggregator" / "federation" / "nodes" / "b.pub").unlink()


def spoil_number(kits: Path) -> None:
    """The kit of another node of the same federation."""
    shutil.rmtree(kits / "a" / "kit")
    shutil.copytree(kits / "b" / "kit", kits / "a" / "kit")


def spoil_archive(kits: Path) -> None:
    (kits / "a.tar.gz").write_bytes(b"")


def spoil_roster(kits: Path) -> None:
    """The operator's own signature, and yet not the operator's newest roster."""
    path = kits / "aggregator" / "federation" / "roster.json"
    whole = load_roster(path)
    path.write_bytes(signed_roster(replace(whole, serial=whole.serial + 1), load_operator_key(kits / "operator")))


def spoil_client_roster(kits: Path) -> None:
    path = kits / "b" / "kit" / "roster.json"
    whole = load_roster(path)
    path.write_bytes(signed_roster(replace(whole, serial=whole.serial + 1), load_operator_key(kits / "operator")))


def spoil_operator(kits: Path) -> None:
    (kits / "b" / "kit" / "operator.pub").write_text("0" * 64)


def spoil_aggregators_operator(kits: Path) -> None:
    (kits / "aggregator" / "federation" / "operator.pub").unlink()


def spoil_operator_key(kits: Path) -> None:
    shutil.copy(kits / "a" / "kit" / "sign.key", kits / "operator" / "operator.key")


def spoil_operator_mode(kits: Path) -> None:
    (kits / "operator" / "operator.key").chmod(0o644)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (spoil_mode, "can be read by others"),
        (spoil_folder, "chmod 700 it"),
        (spoil_bundle, "does not accept the bundle"),
        (spoil_certificate, "not a certificate of the operator's authority"),
        (spoil_node, "does not know the Flower key of b"),
        (spoil_node_key, r"b\.pub cannot be read"),
        (spoil_number, "a belongs to another federation, plan or node"),
        (spoil_archive, "cannot be read"),
        (spoil_roster, "the rosters of .* differ"),
        (spoil_client_roster, "b has a newer roster than"),
        (spoil_operator, "operator.pub is not the key of this operator"),
        (spoil_aggregators_operator, "operator.pub cannot be read"),
        (spoil_operator_key, "operator.key does not fit operator.pub"),
        (spoil_operator_mode, "operator.key has mode 0644 and can be read by others"),
    ],
)
def test_what_is_wrong_is_named(kits: Path, spoil: object, text: str) -> None:
    assert callable(spoil)
    spoil(kits)
    with pytest.raises(KeyFileError, match=text):
        check_kits(kits)


def test_a_damaged_key_is_looked_for_as_it_is_written(kits: Path) -> None:
    key = kits / "a" / "node" / "flower.key"
    lines = key.read_bytes().splitlines()
    damaged = [lines[0], b"AAAA" + lines[1][4:], *lines[2:]]
    key.write_bytes(b"\n".join(damaged))
    (kits / "aggregator" / "federation" / "note").write_bytes(b"".join(damaged[1:-1]))
    with pytest.raises(KeyFileError, match="note holds a secret of a: do not hand this kit out"):
        check_kits(kits)


def test_a_secret_of_any_kind_is_looked_for_as_it_is_written(kits: Path) -> None:
    key = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (kits / "a" / "node" / "flower.key").write_bytes(key)
    (kits / "aggregator" / "federation" / "note").write_bytes(b"".join(key.splitlines()[1:-1]))
    with pytest.raises(KeyFileError, match="note holds a secret of a: do not hand this kit out"):
        check_kits(kits)


@pytest.mark.parametrize("place", ["operator", "aggregator/federation", "c/kit"])
def test_a_roster_that_was_changed_is_found_wherever_it_lies(kits: Path, place: str) -> None:
    path = kits / place / "roster.json"
    path.write_text(path.read_text().replace('"name": "c"', '"name": "d"'))
    done = call("provision", "--check", kits)
    assert done.exit_code == 1
    assert f"{path} is not signed with the operator's key of this kit: ask the operator" in done.stderr


def test_clients_are_added_and_revoked_without_touching_the_kits_of_others(kits: Path, tmp_path: Path) -> None:
    before = content(kits)
    site = read_site(written(tmp_path / "new.toml", "a", "b", "d"))
    assert provision_site(kits, site, amend=True) == Changes((Client("d"),), ("c",))
    after = content(kits)
    changed = {str(path) for path, data in before.items() if after.get(path) != data}
    assert changed == {
        *("operator/roster.json", "operator/federation.json", "aggregator/federation/roster.json"),
        *("aggregator/federation/nodes/c.pub", "aggregator.tar.gz"),
    }
    roster = load_roster(kits / "aggregator" / "federation" / "roster.json")
    assert {number: node.name for number, node in roster.nodes.items()} == {0: "a", 1: "b", 3: "d"}
    assert load_kit(kits / "d" / "kit").node == 3
    assert check_kits(kits)


def test_an_amended_roster_has_the_next_number_and_is_accepted_by_kits_that_were_made_before(
    kits: Path, tmp_path: Path
) -> None:
    old = load_kit(kits / "a" / "kit").roster
    provision_site(kits, read_site(written(tmp_path / "1.toml", "a", "b", "c", "d")), amend=True)
    provision_site(kits, read_site(written(tmp_path / "2.toml", "a", "b", "d")), amend=True)
    assert [load_kit(kits / name / "kit").roster.serial for name in "abd"] == [1, 1, 2]
    shutil.copy(kits / "operator" / "roster.json", kits / "a" / "kit" / "roster.json")
    new = load_kit(kits / "a" / "kit").roster
    assert (old.serial, new.serial) == (1, 3)
    assert {node.name for node in new.nodes.values()} == {"a", "b", "d"}
    assert "rosters: signed by the operator; number 3 is in force" in check_kits(kits)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda kits: (kits / "operator" / "operator.key").unlink(), "operator.key cannot be read"),
        (spoil_operator_mode, "can be read by others"),
        (spoil_operator_key, "does not fit operator.pub"),
    ],
)
def test_without_the_operators_key_nothing_is_amended(
    kits: Path, tmp_path: Path, spoil: Callable[[Path], object], text: str
) -> None:
    spoil(kits)
    before = content(kits)
    with pytest.raises(KeyFileError, match=text):
        provision_site(kits, read_site(written(tmp_path / "new.toml", "a", "b", "d")), amend=True)
    assert content(kits) == before


def test_a_roster_that_was_changed_is_not_signed_anew(kits: Path, tmp_path: Path) -> None:
    path = kits / "operator" / "roster.json"
    path.write_text(path.read_text().replace('"name": "c"', '"name": "d"'))
    before = content(kits)
    with pytest.raises(RosterRefused, match="is not signed with the operator's key"):
        provision_site(kits, read_site(written(tmp_path / "new.toml", "a", "b", "d")), amend=True)
    assert content(kits) == before


def test_amending_without_a_change_changes_no_secret(kits: Path, tmp_path: Path) -> None:
    site = read_site(written(tmp_path / "same.toml", "a", "b", "c"))
    before = content(kits)
    assert provision_site(kits, site, amend=True) == Changes((), ())
    after = content(kits)
    changed = {str(path) for path in before if before[path] != after[path]}
    assert changed == {"operator/roster.json", "aggregator/federation/roster.json", "aggregator.tar.gz"}


def test_a_revoked_name_is_not_used_again(kits: Path, tmp_path: Path) -> None:
    provision_site(kits, read_site(written(tmp_path / "1.toml", "a", "b", "d")), amend=True)
    with pytest.raises(ConfigError, match="c was revoked; a name is not used again"):
        provision_site(kits, read_site(written(tmp_path / "2.toml", "a", "b", "c", "d")), amend=True)


def test_a_folder_with_kits_is_left_alone_without_amend(kits: Path, tmp_path: Path) -> None:
    before = content(kits)
    done = call("provision", written(tmp_path / "site.toml", "a", "b", "c"), "--out", kits)
    assert done.exit_code == 1
    assert "keys are never overwritten" in done.stderr
    assert "--amend" in done.stderr
    assert content(kits) == before


def test_a_change_that_needs_new_kits_for_all_is_refused(kits: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "other.toml", "a", "b", "c", text=SITE.replace("rounds = 3", "rounds = 4"))
    with pytest.raises(ConfigError, match="needs new kits for all"):
        provision_site(kits, read_site(other), amend=True)


@pytest.mark.parametrize(
    ("text", "names", "reason"),
    [
        ("[aggregator]\nhosts = []\n", "abc", "one or more hosts"),
        ("[aggregator]\nhosts = ['x']\nport = 0\n", "abc", "a port from 1 to 65535"),
        ("", "abc", "lacks aggregator"),
        (SITE, "aab", "names a client twice"),
        (SITE, "ab", "can never form a cohort of 3"),
        (SITE + "rounds = 2\n", "abc", "not a TOML file"),
        (SITE.replace("rounds = 3", f"rounds = {'9' * 5000}"), "abc", "not a TOML file"),
        (SITE.replace("rounds = 3", f"seed = {'9' * 4000}"), "abc", "at most 63 bits"),
        (SITE.replace("rounds = 3", f"rounds = {'[' * 5000}"), "abc", "not a TOML file"),
        (f"[{'.'.join(['a'] * 600_000)}]", "abc", "is larger than"),
        ("[aggregator]\nhosts = ['x']\nport = 1e999\n", "abc", "not a site file"),
        (SITE + "speed = 2\n", "abc", "unknown keys: speed"),
        ("speed = 1\n" + SITE, "abc", "has unknown keys: speed"),
        (SITE.replace("hosts =", "host ="), "abc", "unknown keys: host"),
        ("aggregator = 3\n", "abc", "not a site file"),
        (SITE, ["a", "b", "../c"], "name is made of"),
        (SITE, ["a", "b", "operator"], "the name of another kit"),
    ],
)
def test_a_site_file_that_cannot_be_is_refused(tmp_path: Path, text: str, names: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_site(written(tmp_path / "site.toml", *names, text=text))


def test_a_site_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_bytes(b'[aggregator]\nhosts = ["\xff"]\n')
    with pytest.raises(ConfigError, match="not a TOML file"):
        read_site(tmp_path / "site.toml")


def test_a_site_file_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_site(tmp_path / "absent.toml")


def test_the_site_file_of_the_one_machine_federation_is_one() -> None:
    site = read_site(ROOT / "docker" / "site.toml")
    assert [client.name for client in site.clients] == ["client-0", "client-1", "client-2"]
    assert site.plan.rounds == 20


def test_neither_out_nor_check_is_an_error_that_says_so() -> None:
    done = call("provision")
    assert done.exit_code == 1
    assert "--out" in done.stderr


def test_a_folder_without_a_federation_is_named(tmp_path: Path) -> None:
    done = call("provision", "--check", tmp_path)
    assert done.exit_code == 1
    assert "holds no federation" in done.stderr


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ('{"format": "pruneseal-federation", "version": 0}', "has version 0, not 1"),
        ('{"format": "pruneseal-federation"}', "has version none, not 1"),
        ("[]", "is damaged"),
        ("{", "is damaged"),
    ],
)
def test_a_record_that_is_none_is_named(tmp_path: Path, record: str, reason: str) -> None:
    path = tmp_path / "operator" / "federation.json"
    path.parent.mkdir()
    path.write_text(record)
    with pytest.raises(ConfigError, match=f"{re.escape(str(path))} {reason}"):
        read_record(tmp_path)


def test_the_images_and_compose_files_agree_on_the_user() -> None:
    for name in (
        "docker/Dockerfile",
        "docker/compose.yaml",
        "fleet/provisioning/kit/edge.yaml",
        "fleet/provisioning/kit/aggregator.yaml",
    ):
        assert str(UID) in (ROOT / name).read_text(), name


def test_the_lock_files_hold_what_the_project_asks_for() -> None:
    for role in ("aggregator", "edge", "serve"):
        text = (ROOT / "docker" / "requirements" / f"{role}.txt").read_text()
        assert "==" in text
        assert ("torch==" in text) == (role == "edge")
        assert "nvidia" not in text
        pins = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
        assert text.count("--hash=sha256:") >= len(pins)


def test_shell_scripts_of_the_images_are_scripts() -> None:
    for name in ("docker/install", "docker/make-images", "docker/requirements/lock", "docker/flwr-clientapp"):
        subprocess.run(["bash", "-n", str(ROOT / name)], check=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="no docker-compose")
@pytest.mark.parametrize(
    ("name", "services"),
    [("a", {"supernode", "trainer"}), ("aggregator", {"superlink", "ingress", "app", "service", "nodes"})],
)
def test_the_compose_file_of_a_kit_is_complete_with_its_settings(made: Path, name: str, services: set[str]) -> None:
    done = subprocess.run(
        ["docker-compose", "config", "--services"], cwd=made / name, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == services
    assert "variable is not set" not in done.stderr
