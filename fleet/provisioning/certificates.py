"""The identities of the transport: a certificate authority, the server's certificate, the keys of Flower's nodes.

TLS proves the server to the nodes and hides what travels from the network; a node's EC key proves the node to Flower's
SuperLink. Neither opens an update: those keys are in ``edge_client/keys.py``. All keys are on NIST P-384, the curve
that Flower documents; private files have mode 0600, and nothing is ever overwritten.

Certificates are valid from one day before they are made, so that a node whose clock runs a little late accepts them.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.errors import ConfigError, KeyFileError
from protocol.files import create_file

CA_FILE: Final = "ca.crt"
"""The authority's certificate: public, on every node."""
CA_KEY_FILE: Final = "ca.key"
"""The authority's key: stays with the operator."""
SERVER_FILE: Final = "server.crt"
SERVER_KEY_FILE: Final = "server.key"

AUTHORITY_DAYS: Final = 3650
SERVER_DAYS: Final = 825
_LEEWAY: Final = timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """A certificate authority for one federation.

    Attributes:
        certificate: Self-signed; what nodes trust.
        key: What signs the server's certificates.
    """

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey

    @classmethod
    def create(cls, name: str = "PruneSeal") -> Self:
        """A new authority.

        Args:
            name: Its common name, at most 64 characters.
        """
        key = generate_private_key(SECP384R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} CA")])
        builder = (
            _unsigned(subject, subject, key, AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
        )
        return cls(builder.sign(key, SHA384()), key)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an authority that :meth:`save` has written.

        Raises:
            KeyFileError: A file is absent, is not what it should be, or does not fit the other.
        """
        try:
            certificate = x509.load_pem_x509_certificate((folder / CA_FILE).read_bytes())
            key = serialization.load_pem_private_key((folder / CA_KEY_FILE).read_bytes(), password=None)
        except OSError as error:
            raise KeyFileError(f"{error.filename} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:
            raise KeyFileError(f"{folder} holds no certificate authority in PEM form: {error}") from error
        if not isinstance(key, EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise KeyFileError(f"{CA_KEY_FILE} in {folder} is not the key of {CA_FILE}")
        return cls(certificate, key)

    def save(self, folder: Path) -> None:
        """Write ``ca.crt`` and ``ca.key``.

        Raises:
            ConfigError: One of them is already there.
        """
        _create(folder / CA_KEY_FILE, _pem(self.key), 0o600)
        self.save_certificate(folder)

    def save_certificate(self, folder: Path) -> None:
        """Write ``ca.crt`` alone, for those who only need to trust it.

        Raises:
            ConfigError: It is already there.
        """
        _create(folder / CA_FILE, self.certificate.public_bytes(serialization.Encoding.PEM), 0o644)

    def issue(self, folder: Path, hosts: Sequence[str]) -> None:
        """Write ``server.crt`` and ``server.key`` for a server under these names and addresses.

        Args:
            folder: Where to.
            hosts: Host names and IP addresses by which the nodes reach the server, one or more.

        Raises:
            ConfigError: There is no host, a name cannot stand in a certificate, or a file is already there.
        """
        if not hosts:
            raise ConfigError("a server's certificate needs at least one host name or address")
        key = generate_private_key(SECP384R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
        builder = (
            _unsigned(subject, self.certificate.subject, key, SERVER_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        certificate = builder.sign(self.key, SHA384())
        _create(folder / SERVER_KEY_FILE, _pem(key), 0o600)
        _create(folder / SERVER_FILE, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _unsigned(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _LEEWAY)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass  # a name, then
    if not host or not host.isascii() or any(c.isspace() or c in "/:@" for c in host):
        raise ConfigError(f"{host!r} is neither a host name nor an IP address; write a name without scheme and port")
    return x509.DNSName(host)


def _pem(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        create_file(path, data, mode)
    except FileExistsError:
        raise ConfigError(f"{path} is already there; keys are never overwritten") from None
