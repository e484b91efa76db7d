"""``fleet.provisioning.certificates``: what TLS and Flower accept, with the modes of secrets, once."""

import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from edge_client.enrollment import NODE_KEY_FILE, NODE_PUBLIC_FILE, write_node_key
from fleet.provisioning.certificates import CA_FILE, CA_KEY_FILE, SERVER_FILE, SERVER_KEY_FILE, Authority
from protocol.errors import ConfigError, KeyFileError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("certificates")
    authority = Authority.create()
    authority.save(made)
    authority.issue(made, ["fl.example", "localhost", "127.0.0.1", "::1"])
    write_node_key(made)
    return made


def handshake(folder: Path, trusted: Path, name: str) -> None:
    """A TLS handshake with the server's certificate over a socket pair."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / SERVER_FILE, folder / SERVER_KEY_FILE)
    client = ssl.create_default_context(cafile=trusted)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except (ssl.SSLError, OSError):
            theirs.close()  # the client has hung up: it says why itself

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client.wrap_socket(ours, server_hostname=name).close()
    finally:
        ours.close()
        thread.join()


@pytest.mark.parametrize("name", ["fl.example", "localhost", "127.0.0.1", "::1"])
def test_a_client_that_trusts_the_authority_accepts_the_server_under_each_of_its_names(folder: Path, name: str) -> None:
    handshake(folder, folder / CA_FILE, name)


@pytest.mark.parametrize("name", ["other.example", "127.0.0.2"])
def test_a_server_under_another_name_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(folder, folder / CA_FILE, name)


def test_a_client_that_trusts_another_authority_refuses_the_server(folder: Path, tmp_path: Path) -> None:
    Authority.create().save_certificate(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(folder, tmp_path / CA_FILE, "localhost")


def test_private_files_are_private(folder: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert {name for name, mode in modes.items() if mode == 0o600} == {CA_KEY_FILE, SERVER_KEY_FILE, NODE_KEY_FILE}
    assert set(modes) == {CA_FILE, CA_KEY_FILE, SERVER_FILE, SERVER_KEY_FILE, NODE_KEY_FILE, NODE_PUBLIC_FILE}


def test_a_node_key_has_the_form_that_flower_reads(folder: Path) -> None:
    private = load_ssh_private_key((folder / NODE_KEY_FILE).read_bytes(), password=None)
    public = load_ssh_public_key((folder / NODE_PUBLIC_FILE).read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    assert private.public_key() == public


def test_a_clock_that_is_a_little_late_accepts_a_new_certificate(folder: Path) -> None:
    for name in (CA_FILE, SERVER_FILE):
        certificate = x509.load_pem_x509_certificate((folder / name).read_bytes())
        assert certificate.not_valid_before_utc <= datetime.now(UTC) - timedelta(hours=23)
        assert certificate.not_valid_after_utc >= datetime.now(UTC) + timedelta(days=800)


def test_a_stored_authority_goes_on_issuing(folder: Path, tmp_path: Path) -> None:
    Authority.load(folder).issue(tmp_path, ["renewed.example"])
    handshake(tmp_path, folder / CA_FILE, "renewed.example")


def test_nothing_is_overwritten(folder: Path) -> None:
    authority = Authority.load(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match="keys are never overwritten"):
        authority.save(folder)
    with pytest.raises(ConfigError, match="keys are never overwritten"):
        authority.issue(folder, ["localhost"])
    with pytest.raises(FileExistsError):
        write_node_key(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("host", ["", "https://fl.example", "fl.example:443", "two words", "flöwer.example"])
def test_what_is_no_host_is_refused_before_a_file_is_written(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="neither a host name nor an IP address"):
        Authority.create().issue(tmp_path, ["localhost", host])
    with pytest.raises(ConfigError, match="at least one host"):
        Authority.create().issue(tmp_path, [])
    assert list(tmp_path.iterdir()) == []


def test_an_authority_that_is_absent_damaged_or_mixed_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"ca.crt cannot be read: No such file"):
        Authority.load(tmp_path)
    Authority.create().save(tmp_path)
    (tmp_path / CA_FILE).unlink()
    Authority.create().save_certificate(tmp_path)
    with pytest.raises(KeyFileError, match="is not the key of"):
        Authority.load(tmp_path)
    (tmp_path / CA_KEY_FILE).write_text("no key")
    with pytest.raises(KeyFileError, match="holds no certificate authority in PEM form"):
        Authority.load(tmp_path)
