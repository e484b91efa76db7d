"""``edge_client.keys``: everything follows from one secret, and a kit that is not whole is refused, never repaired."""

import copy
import hmac
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from edge_client.keys import (
    COHORT_FILE,
    OPERATOR_KEY_FILE,
    PLAN_FILE,
    ROSTER_FILE,
    SEAL_FILE,
    SIGN_FILE,
    CohortSecret,
    load_kit,
    load_operator_key,
    load_operator_kit,
)
from protocol.errors import KeyFileError, MalformedMessage, RosterRefused
from protocol.roster import OPERATOR_PUBLIC_FILE
from tests.edge_client.federation import RUN, Federation, pem
from tests.factories import OPERATOR, OPERATOR_PUBLIC, sign_key, signed_roster, write_roster

SECRET = bytes(range(32))
OTHER_RUN = bytes(16)
FILES = (COHORT_FILE, SIGN_FILE, SEAL_FILE, ROSTER_FILE, PLAN_FILE, OPERATOR_PUBLIC_FILE)
SECRET_FILES = (COHORT_FILE, SIGN_FILE, SEAL_FILE)


def hkdf(info: bytes, length: int) -> bytes:
    """RFC 5869 with SHA-256 and no salt, from HMAC alone."""
    key = hmac.digest(bytes(32), SECRET, "sha256")
    stream, block = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(key, block + b"pruneseal/2 " + info + bytes([counter]), "sha256")
        stream += block
    return stream[:length]


# --- the cohort secret --------------------------------------------------------------------------


def test_everything_derived_is_the_hkdf_of_rfc_5869_under_its_own_label() -> None:
    secret = CohortSecret(SECRET)
    assert secret.id == hkdf(b"cohort id", 16)
    assert secret.bfv_seed(RUN, 7) == hkdf(b"bfv" + RUN + b"\x07\0\0\0", 32)
    assert secret.tag_key(b"a head") == hkdf(b"tag" + b"a head", 64)


def test_the_public_name_is_pinned_so_that_no_release_can_change_it_unnoticed() -> None:
    assert CohortSecret(SECRET).id.hex() == "cfcd25a01a20320c13cff8d5b4f13b37"


def test_every_run_and_every_round_has_a_bfv_key_of_its_own() -> None:
    secret = CohortSecret(SECRET)
    seeds = {secret.bfv_seed(run, round_) for run in (RUN, OTHER_RUN) for round_ in range(1, 50)}
    seeds.add(CohortSecret(bytes(32)).bfv_seed(RUN, 1))
    assert len(seeds) == 2 * 49 + 1


@given(terms=st.binary(max_size=300), run=st.binary(min_size=16, max_size=16), round_=st.integers(0, 2**32 - 1))
def test_sealed_terms_open_to_themselves_and_seal_to_the_same_bytes(terms: bytes, run: bytes, round_: int) -> None:
    sealed = CohortSecret(SECRET).seal(terms, run, round_)
    assert CohortSecret(SECRET).seal(terms, run, round_) == sealed
    assert CohortSecret(SECRET).unseal(sealed, run, round_) == terms
    assert terms not in sealed or len(terms) < 4


@pytest.mark.parametrize(("secret", "run", "round_"), [(bytes(32), RUN, 1), (SECRET, OTHER_RUN, 1), (SECRET, RUN, 2)])
def test_terms_sealed_by_another_secret_or_for_another_run_or_round_stay_closed(
    secret: bytes, run: bytes, round_: int
) -> None:
    sealed = CohortSecret(SECRET).seal(b"the terms", RUN, 1)
    with pytest.raises(MalformedMessage, match="not made with this cohort secret for this round"):
        CohortSecret(secret).unseal(sealed, run, round_)


@given(cut=st.integers(0, 24), bit=st.integers(0, 25 * 8 - 1))
def test_sealed_terms_that_were_touched_stay_closed(cut: int, bit: int) -> None:
    sealed = CohortSecret(SECRET).seal(b"the terms", RUN, 1)
    assert len(sealed) == 25
    flipped = bytearray(sealed)
    flipped[bit // 8] ^= 1 << bit % 8
    for touched in (sealed[:cut], bytes(flipped), sealed + b"\0"):
        with pytest.raises(MalformedMessage):
            CohortSecret(SECRET).unseal(touched, RUN, 1)


def test_a_model_digest_depends_on_secret_run_round_and_every_byte_of_the_model() -> None:
    secret = CohortSecret(SECRET)
    digests = {
        secret.model_digest(b"model", RUN, 1),
        secret.model_digest(b"modem", RUN, 1),
        secret.model_digest(b"model", RUN, 2),
        secret.model_digest(b"model", OTHER_RUN, 1),
        CohortSecret(bytes(32)).model_digest(b"model", RUN, 1),
    }
    assert len(digests) == 5
    assert secret.model_digest(b"model", RUN, 1) in digests
    assert {len(digest) for digest in digests} == {32}


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_secret_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(KeyFileError, match=f"32 bytes long, not {length}"):
        CohortSecret(bytes(length))


def test_a_secret_shows_its_public_name_only(fed: Federation) -> None:
    secret = CohortSecret(SECRET)
    assert repr(secret) == f"CohortSecret(id={secret.id.hex()})"
    assert fed.secret.hex() not in repr(fed.kits[2])
    assert str(fed.secret) not in repr(fed.kits[2])


@pytest.mark.parametrize("spread", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_secret_is_never_pickled_or_copied(spread: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="never pickled"):
        spread(CohortSecret(SECRET))


# --- a kit --------------------------------------------------------------------------------------


def test_a_kit_is_read_as_it_was_written_and_finds_its_own_number(fed: Federation, tmp_path: Path) -> None:
    for node in fed.kits:
        kit = load_kit(fed.write(node, tmp_path / str(node)))
        assert kit.node == node
        assert kit.plan == fed.plan.digest
        assert kit.roster == fed.roster
        assert kit.secret.id == CohortSecret(fed.secret).id
        fed.roster.verify(node, kit.sign(b"hello"), b"hello")


def test_two_nodes_share_one_pair_secret_and_no_third_has_it(fed: Federation) -> None:
    secrets = {
        tuple(sorted((a, b))): {fed.kits[a].pair_secret(b), fed.kits[b].pair_secret(a)}
        for a in fed.kits
        for b in fed.kits
        if a != b
    }
    assert all(len(both_ends) == 1 for both_ends in secrets.values())
    assert len(set.union(*secrets.values())) == len(secrets) == 6


@pytest.mark.parametrize("name", [COHORT_FILE, SIGN_FILE, SEAL_FILE, PLAN_FILE, OPERATOR_PUBLIC_FILE])
def test_a_missing_file_is_an_error_and_is_not_made(name: str, fed: Federation, tmp_path: Path) -> None:
    folder = fed.write(2, tmp_path / "kit")
    (folder / name).unlink()
    own = name in {SIGN_FILE, SEAL_FILE}
    reason = "is missing. Where this node has enrolled" if own else "cannot be read: No such file"
    with pytest.raises(KeyFileError, match=f"{name} {reason}.*provision this .* again"):
        load_kit(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(set(FILES) - {name})


def test_a_missing_roster_is_an_error(fed: Federation, tmp_path: Path) -> None:
    folder = fed.write(2, tmp_path / "kit")
    (folder / ROSTER_FILE).unlink()
    with pytest.raises(RosterRefused, match="Provision the node first"):
        load_kit(folder)
    assert not (folder / ROSTER_FILE).exists()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
@pytest.mark.parametrize("name", SECRET_FILES)
def test_a_secret_file_that_others_can_use_is_refused(name: str, mode: int, fed: Federation, tmp_path: Path) -> None:
    folder = fed.write(2, tmp_path / "kit")
    (folder / name).chmod(mode)
    with pytest.raises(KeyFileError, match=f"{name} has mode {mode:04o} and can be read by others"):
        load_kit(folder)
    (folder / name).chmod(0o400)
    assert load_kit(folder).node == 2


@pytest.mark.parametrize("name", [ROSTER_FILE, PLAN_FILE, OPERATOR_PUBLIC_FILE])
def test_public_files_may_be_read_by_all(name: str, fed: Federation, tmp_path: Path) -> None:
    folder = fed.write(2, tmp_path / "kit")
    (folder / name).chmod(0o644)
    assert load_kit(folder).node == 2


@pytest.mark.parametrize("name", [COHORT_FILE, PLAN_FILE])
@pytest.mark.parametrize("content", [b"not hexadecimal", b"abc", "caf\u00e9".encode(), b"\xff\xfe"])
def test_garbage_where_hexadecimal_digits_belong_is_refused(
    name: str, content: bytes, fed: Federation, tmp_path: Path
) -> None:
    folder = fed.write(2, tmp_path / "kit")
    (folder / name).write_bytes(content)
    with pytest.raises(KeyFileError, match=f"{name} does not hold hexadecimal digits"):
        load_kit(folder)


def test_a_cohort_secret_that_is_cut_short_is_refused(fed: Federation, tmp_path: Path) -> None:
    folder = fed.write(2, tmp_path / "kit")
    (folder / COHORT_FILE).write_text(fed.secret.hex()[:-2])
    with pytest.raises(KeyFileError, match="32 bytes long, not 31"):
        load_kit(folder)


@pytest.mark.parametrize("name", [SIGN_FILE, SEAL_FILE])
def test_a_pem_of_another_kind_of_key_is_refused(name: str, fed: Federation, tmp_path: Path) -> None:
    folder = fed.write(2, tmp_path / "kit")
    wrong = X25519PrivateKey.generate() if name == SIGN_FILE else Ed25519PrivateKey.generate()
    curve = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for content in (pem(wrong), curve):
        (folder / name).write_bytes(content)
        with pytest.raises(KeyFileError, match=r"an Ed25519 key in sign\.key and an X25519 key in seal\.key"):
            load_kit(folder)


STUMBLES = bytes.fromhex(
    "2d2d2d2d2d424547494e2050524956415445204b45592d2d2d2d2d0a4d43344341514177425159444b3256764243494549484e705a32344241"
    "41414163326c6e626745414141427a615764754151414141484e705a323442414141410a2d2d2d2d2d454e442050524956415445204b45592d"
    "2d2d2d2d"
)
"""An X25519 key of which a bit has flipped; OpenSSL leaves an error behind at which cryptography stumbles."""


@pytest.mark.parametrize("name", [SIGN_FILE, SEAL_FILE])
def test_what_is_no_open_private_key_is_refused(name: str, fed: Federation, tmp_path: Path) -> None:
    folder = fed.write(2, tmp_path / "kit")
    locked = fed.kits[2].sign_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word"))
    for content in (b"", b"garbage", pem(fed.kits[2].sign_key)[:-40], locked, STUMBLES):
        (folder / name).write_bytes(content)
        with pytest.raises(KeyFileError, match=f"{name} is not a private key in PEM form"):
            load_kit(folder)


def test_a_roster_of_another_secret_is_refused(fed: Federation, tmp_path: Path) -> None:
    folder = fed.write(2, tmp_path / "kit")
    other = CohortSecret(bytes(32)).id
    (folder / ROSTER_FILE).write_text(signed_roster(replace(fed.roster, cohort_id=other)))
    with pytest.raises(KeyFileError, match="is not the one of its roster: provision this node again"):
        load_kit(folder)


@pytest.mark.parametrize("name", [SIGN_FILE, SEAL_FILE])
def test_a_key_that_is_not_this_nodes_own_is_refused(name: str, fed: Federation, tmp_path: Path) -> None:
    folder = fed.write(2, tmp_path / "kit")
    kit = fed.kits[3]
    (folder / name).write_bytes(pem(kit.sign_key if name == SIGN_FILE else kit.seal_key))
    with pytest.raises(KeyFileError, match="belong to no node of its roster"):
        load_kit(folder)


def test_a_roster_that_somebody_else_has_signed_is_refused(fed: Federation, tmp_path: Path) -> None:
    folder = fed.write(2, tmp_path / "kit")
    for key in (sign_key(2), Ed25519PrivateKey.generate()):
        (folder / ROSTER_FILE).write_text(fed.roster.to_json(key.sign(fed.roster.to_sign())))
        with pytest.raises(RosterRefused, match="is not signed with the operator's key of this kit"):
            load_kit(folder)


# --- the operator's kit -------------------------------------------------------------------------


@pytest.fixture
def operator(tmp_path: Path) -> Path:
    folder = tmp_path / "operator"
    folder.mkdir(mode=0o700)
    for name, content in {COHORT_FILE: SECRET.hex().encode(), OPERATOR_KEY_FILE: pem(OPERATOR)}.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)
    (folder / OPERATOR_PUBLIC_FILE).write_text(OPERATOR_PUBLIC)
    return folder


def test_the_operator_reads_the_key_that_signs_rosters(operator: Path) -> None:
    assert load_operator_key(operator).private_bytes_raw() == OPERATOR.private_bytes_raw()


def test_an_operators_key_that_others_can_read_is_refused(operator: Path) -> None:
    (operator / OPERATOR_KEY_FILE).chmod(0o640)
    with pytest.raises(KeyFileError, match=r"operator\.key has mode 0640 and can be read by others"):
        load_operator_key(operator)


@pytest.mark.parametrize("name", [OPERATOR_KEY_FILE, OPERATOR_PUBLIC_FILE])
def test_a_missing_key_of_the_operator_is_an_error_and_is_not_made(name: str, operator: Path) -> None:
    (operator / name).unlink()
    with pytest.raises(KeyFileError, match=f"{name} cannot be read: No such file"):
        load_operator_key(operator)
    assert not (operator / name).exists()


def test_a_key_of_another_kind_signs_no_rosters(operator: Path) -> None:
    (operator / OPERATOR_KEY_FILE).write_bytes(pem(X25519PrivateKey.generate()))
    with pytest.raises(KeyFileError, match=r"operator\.key is not an Ed25519 key"):
        load_operator_key(operator)


def test_a_key_whose_signatures_no_kit_would_accept_is_refused(operator: Path) -> None:
    (operator / OPERATOR_KEY_FILE).write_bytes(pem(sign_key(1)))
    with pytest.raises(KeyFileError, match=r"operator\.key does not fit operator\.pub"):
        load_operator_key(operator)


def test_opening_needs_the_operators_public_key_and_not_the_one_beside_the_roster(
    fed: Federation, operator: Path, tmp_path: Path
) -> None:
    (operator / OPERATOR_KEY_FILE).unlink()
    roster = write_roster(tmp_path, fed.roster)
    (tmp_path / OPERATOR_PUBLIC_FILE).unlink()
    assert load_operator_kit(operator, roster).roster == fed.roster
    roster.write_text(fed.roster.to_json(sign_key(1).sign(fed.roster.to_sign())))
    (tmp_path / OPERATOR_PUBLIC_FILE).write_text(sign_key(1).public_key().public_bytes_raw().hex())
    with pytest.raises(RosterRefused, match="is not signed with the operator's key"):
        load_operator_kit(operator, roster)


def test_an_operators_secret_of_another_roster_is_refused(fed: Federation, operator: Path, tmp_path: Path) -> None:
    roster = write_roster(tmp_path, replace(fed.roster, cohort_id=bytes(16)))
    with pytest.raises(KeyFileError, match="is not the one of the roster"):
        load_operator_kit(operator, roster)
