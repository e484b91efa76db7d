"""The proof that kits are what they should be, and that the aggregator's opens nothing.

Nothing is believed of how the kits were made: every file, and every file in the archive beside it, is searched for
every secret of every other party, in each form in which it could lie there: raw, in hex or base64, and as the file
that holds it.
"""

import base64
import ipaddress
import re
import stat
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from edge_client.bundle import accepted
from edge_client.enrollment import KEYS_FOLDER, NODE_FOLDER, NODE_KEY_FILE, NODE_PUBLIC_FILE
from edge_client.keys import (
    COHORT_FILE,
    OPERATOR_KEY_FILE,
    ROSTER_FILE,
    SEAL_FILE,
    SECRET_BYTES,
    SIGN_FILE,
    Kit,
    load_kit,
    load_operator_key,
    load_operator_kit,
    load_shared,
)
from fleet.provisioning.app_bundle import APP_FOLDER, bundle_digest
from fleet.provisioning.certificates import CA_FILE, CA_KEY_FILE, SERVER_FILE, SERVER_KEY_FILE
from fleet.provisioning.kits import AGGREGATOR, OPERATOR, plan_from_toml
from fleet.provisioning.site import PUBLIC_FOLDER, SUPEREXEC_FILE, TLS_FOLDER, read_record
from protocol.errors import KeyFileError
from protocol.roster import OPERATOR_PUBLIC_FILE, Node, load_operator_public, load_roster

_PEM: Final = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.+?-----END [A-Z ]*PRIVATE KEY-----\n?", re.DOTALL)
_HEX: Final = re.compile(rb"(?<![0-9a-fA-F])[0-9a-fA-F]{64}(?![0-9a-fA-F])")
_SECRET_FILES: Final = frozenset(
    {
        *(COHORT_FILE, SIGN_FILE, SEAL_FILE, OPERATOR_KEY_FILE),
        *(NODE_KEY_FILE, CA_KEY_FILE, SERVER_KEY_FILE, SUPEREXEC_FILE),
    }
)


def check_kits(folder: Path) -> list[str]:
    """Look at all kits of a federation; what was proved, one line each.

    Raises:
        KeyFileError: Something is wrong, or a secret lies where it must not.
        RosterRefused: A roster is none, or not signed by the operator.
        ConfigError: The folder holds no federation.
    """
    record = read_record(folder)
    hosts, enrolled = record.hosts, frozenset(record.enrolled)
    operator, aggregator = folder / OPERATOR, folder / AGGREGATOR
    signer = load_operator_key(operator).public_key()
    secret = load_operator_kit(operator, operator / ROSTER_FILE)
    _check_public(aggregator / PUBLIC_FOLDER, signer)
    roster = load_roster(aggregator / PUBLIC_FOLDER / ROSTER_FILE)
    if roster != secret.roster:
        raise KeyFileError(f"the rosters of {operator} and {aggregator} differ: provision with --amend again")
    plan = plan_from_toml(aggregator / PUBLIC_FOLDER / APP_FOLDER / "pyproject.toml")
    _check_certificate(operator, aggregator, hosts)
    for number, node in roster.nodes.items():
        place = folder / node.name
        _check_public(place / KEYS_FOLDER, signer)
        kit = load_shared(place / KEYS_FOLDER) if node.name in enrolled else load_kit(place / KEYS_FOLDER)
        other = isinstance(kit, Kit) and kit.node != number
        if other or kit.plan != plan.digest or kit.secret.id != roster.cohort_id:
            raise KeyFileError(f"{place} belongs to another federation, plan or node")
        if kit.roster.serial > roster.serial:
            raise KeyFileError(f"{place} has a newer roster than {operator}: which copy of the kits is the newest?")
        if bundle_digest(plan) not in accepted(place / KEYS_FOLDER):
            raise KeyFileError(f"{place} does not accept the bundle of the aggregator's app")
        if (place / NODE_FOLDER / NODE_PUBLIC_FILE).read_bytes() != _node_key(aggregator, node.name):
            raise KeyFileError(f"the aggregator does not know the Flower key of {node.name}")
    parties = [AGGREGATOR, *(node.name for node in roster.nodes.values())]
    for name in (*parties, OPERATOR):
        _check_modes(folder / name)
    looked, forms = _search(folder, parties)
    own = [node.name for node in roster.nodes.values() if node.name not in enrolled]
    _check_absent(folder, [node for node in roster.nodes.values() if node.name in enrolled])
    return [
        f"{len(roster.nodes)} clients: keys, plan, bundle and Flower keys fit one another",
        f"rosters: signed by the operator; number {roster.serial} is in force",
        f"server certificate: signed by the operator's authority for {', '.join(hosts)}",
        "modes: folders 0700, secrets 0600",
        f"enrolled clients: {len(roster.nodes) - len(own)}; none of their own keys is here",
        *([f"the own keys of {', '.join(own)} are here: this is for trials"] if own else []),
        f"aggregator: none of {forms} forms of the others' secrets in {looked} files, of the archive as well",
    ]


def _check_absent(folder: Path, nodes: Sequence[Node]) -> None:
    """Look for the own keys of nodes that have enrolled, by their public halves, in every file and archive.

    What is looked at are the forms in which a key is kept: PEM and OpenSSH, 32 bytes alone, and 64 hexadecimal digits.
    """
    public = {key: node.name for node in nodes for key in (node.sign, node.seal)}
    public |= {(folder / node.name / NODE_FOLDER / NODE_PUBLIC_FILE).read_bytes().strip(): node.name for node in nodes}
    for where, data in _contents(*sorted(folder.iterdir())):
        for key in _private_keys(data):
            if owner := public.get(key):
                raise KeyFileError(f"{where} holds an own key of {owner}, which has enrolled and alone may have it")


def _private_keys(data: bytes) -> Iterator[bytes]:
    """The public halves of all private keys that lie in some bytes."""
    for text in _PEM.findall(data):
        key = _loaded(text)
        if isinstance(key, EllipticCurvePrivateKey):
            yield key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        elif isinstance(key, Ed25519PrivateKey | X25519PrivateKey):
            yield key.public_key().public_bytes_raw()
    bare = [data] if len(data) == SECRET_BYTES else []
    for raw in (*bare, *(bytes.fromhex(digits.decode()) for digits in _HEX.findall(data))):
        yield Ed25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw()
        yield X25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw()


def _check_public(kit: Path, signer: Ed25519PublicKey) -> None:
    path = kit / OPERATOR_PUBLIC_FILE
    if load_operator_public(path) != signer:
        raise KeyFileError(f"{path} is not the key of this operator: do not hand this kit out; provision anew")


def _search(folder: Path, parties: list[str]) -> tuple[int, int]:
    """Look for the secrets of every party in the kits of the others; how many files and forms for the aggregator."""
    secrets = {name: _secrets(folder / name) for name in (*parties, OPERATOR)}
    cohort = _forms((folder / OPERATOR / COHORT_FILE).read_bytes())
    counted = (0, 0)
    for name in parties:
        foreign = {form: owner for owner, forms in secrets.items() if owner != name for form in forms}
        if name != AGGREGATOR:  # the one secret that clients share
            foreign = {form: owner for form, owner in foreign.items() if form not in cohort}
        files = 0
        for where, data in _contents(folder / name, folder / f"{name}.tar.gz"):
            files += 1
            for form, owner in foreign.items():
                if form in data:
                    raise KeyFileError(f"{where} holds a secret of {owner}: do not hand this kit out; provision anew")
        if name == AGGREGATOR:
            counted = (files, len(foreign))
    return counted


def _secrets(kit: Path) -> set[bytes]:
    """Every form of every secret in a kit."""
    return {form for path in kit.rglob("*") if path.name in _SECRET_FILES for form in _forms(path.read_bytes())}


def _forms(data: bytes) -> set[bytes]:
    """Every form in which the secret of a file could lie elsewhere."""
    text = data.strip()
    raw = {text}
    if text.startswith(b"-----BEGIN"):
        key = _loaded(data)
        if isinstance(key, EllipticCurvePrivateKey):
            raw.add(key.private_numbers().private_value.to_bytes(key.key_size // 8, "big"))
        elif isinstance(key, Ed25519PrivateKey | X25519PrivateKey):
            raw.add(key.private_bytes_raw())
        raw.add(b"".join(text.splitlines()[1:-1]))
    elif len(text) == 2 * SECRET_BYTES:
        raw.add(bytes.fromhex(text.decode("ascii")))
    encoders = (bytes, lambda one: one.hex().encode(), lambda one: one.hex().upper().encode(), _base64)
    return {encode(one) for one in raw for encode in encoders}


def _loaded(data: bytes) -> object:
    """The private key of a file; none where it holds none, which is refused where it is used."""
    ssh = data.strip().startswith(b"-----BEGIN OPENSSH")
    try:
        return (serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key)(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError):
        return None


def _base64(data: bytes) -> bytes:
    return base64.b64encode(data).rstrip(b"=")


def _subject(host: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _contents(*places: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of these: of folders, of archives, or a file itself."""
    for place in places:
        if place.name.endswith(".tar.gz"):
            yield from _packed(place)
            continue
        for path in (place, *sorted(place.rglob("*"))):
            if path.is_file():
                yield str(path), path.read_bytes()


def _packed(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of an archive."""
    try:
        with tarfile.open(archive) as packed:
            for entry in packed:
                file = packed.extractfile(entry) if entry.isfile() else None
                if file is not None:
                    yield f"{archive}: {entry.name}", file.read()
    except (OSError, tarfile.TarError) as error:
        raise KeyFileError(f"{archive} cannot be read: {error}") from error


def _check_modes(kit: Path) -> None:
    for path in (kit, *kit.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir() and path.name not in {APP_FOLDER} and mode != 0o700:
            raise KeyFileError(f"{path} has mode {mode:04o}: chmod 700 it")
        if path.name in _SECRET_FILES and mode != 0o600:
            raise KeyFileError(f"{path} has mode {mode:04o} and can be read by others: chmod 600 it")


def _node_key(aggregator: Path, name: str) -> bytes:
    path = aggregator / PUBLIC_FOLDER / "nodes" / f"{name}.pub"
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from error


def _check_certificate(operator: Path, aggregator: Path, hosts: Sequence[str]) -> None:
    path = aggregator / TLS_FOLDER / SERVER_FILE
    try:
        authority = x509.load_pem_x509_certificate((operator / CA_FILE).read_bytes())
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        for host in hosts:
            PolicyBuilder().store(Store([authority])).build_server_verifier(_subject(host)).verify(certificate, [])
    except (OSError, ValueError, VerificationError) as error:
        raise KeyFileError(f"{path} is not a certificate of the operator's authority for its hosts: {error}") from error
