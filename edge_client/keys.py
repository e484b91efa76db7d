"""The keys of one node, and everything that is derived from the cohort secret.

A node's kit is a folder: ``cohort.secret`` (32 bytes in hex), ``sign.key`` (Ed25519) and ``seal.key`` (X25519), both
PKCS #8 PEM, and ``roster.json``, which is public and signed by the key in ``operator.pub``; ``plan.digest`` names the
plan that the node will accept. The operator's kit holds ``cohort.secret`` and ``operator.key`` (Ed25519), which signs
rosters. Secret files have mode 0600. A file that is absent or exposed is an error; nothing is ever generated in its
place, since a client with a key of its own would turn every sum into noise.

Derived by HKDF-SHA256 (RFC 5869) from the cohort secret: its public name, the BFV key of each round, the key that
seals the terms of a run, the key of the tags, the vouchers of sums, and the key of the model digests. Nothing is
distributed during a run.
"""

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from cryptography.exceptions import InternalError, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocol import DOMAIN
from protocol.errors import KeyFileError, MalformedMessage
from protocol.roster import (
    KEY_ID_BYTES,
    OPERATOR_PUBLIC_FILE,
    Roster,
    load_operator_public,
    load_roster,
    signed_digest,
)
from protocol.tag import TAG_KEY_BYTES

SECRET_BYTES: Final = 32
VOUCHER_BYTES: Final = 32
COHORT_FILE, SIGN_FILE, SEAL_FILE, ROSTER_FILE, PLAN_FILE, OPERATOR_KEY_FILE = (
    "cohort.secret",
    "sign.key",
    "seal.key",
    "roster.json",
    "plan.digest",
    "operator.key",
)


class CohortSecret:
    """The secret that all clients of a federation share and the aggregator never sees."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SECRET_BYTES:
            raise KeyFileError(f"a cohort secret is {SECRET_BYTES} bytes long, not {len(secret)}")
        self._secret = secret

    def __repr__(self) -> str:
        return f"CohortSecret(id={self.id.hex()})"

    def __reduce__(self) -> str:
        raise TypeError("a cohort secret is never pickled")

    @property
    def id(self) -> bytes:
        """The public name of this secret, 16 bytes."""
        return self._derive(b"cohort id", KEY_ID_BYTES)

    def bfv_seed(self, run: bytes, round_: int) -> bytes:
        """The 32 bytes that the BFV secret key of one round is expanded from."""
        return self._derive(b"bfv" + run + round_.to_bytes(4, "little"), 32)

    def seal(self, terms: bytes, run: bytes, round_: int) -> bytes:
        """Encrypt the terms of a round so that every client makes the same bytes of them.

        AES-SIV (RFC 5297) is deterministic and safe if a round is ever announced twice with different terms.
        """
        return self._siv(run).encrypt(terms, [run, round_.to_bytes(4, "little")])

    def unseal(self, sealed: bytes, run: bytes, round_: int) -> bytes:
        """Open what :meth:`seal` made.

        Raises:
            MalformedMessage: The bytes were not sealed under this secret for this round.
        """
        try:
            return self._siv(run).decrypt(sealed, [run, round_.to_bytes(4, "little")])
        except (InvalidTag, ValueError):
            raise MalformedMessage("the sealed terms were not made with this cohort secret for this round") from None

    def tag_key(self, head: bytes) -> bytes:
        """The 64 bytes that a tag is expanded from, for sums of this head alone."""
        return self._derive(b"tag" + head, TAG_KEY_BYTES)

    def voucher(self, head: bytes) -> bytes:
        """What vouches for the head of an aggregate, 32 bytes: those who may decrypt can make and check it."""
        return self._derive(b"voucher" + head, VOUCHER_BYTES)

    def model_digest(self, model: bytes, run: bytes, round_: int) -> bytes:
        """A keyed digest of a model, 32 bytes: clients compare it, the aggregator cannot test a guess against it."""
        key = self._derive(b"model digest" + run, 32)
        return hashlib.blake2b(round_.to_bytes(4, "little") + model, key=key, digest_size=32).digest()

    def _siv(self, run: bytes) -> AESSIV:
        return AESSIV(self._derive(b"terms" + run, 64))

    def _derive(self, info: bytes, length: int) -> bytes:
        return HKDF(SHA256(), length, salt=None, info=DOMAIN + info).derive(self._secret)


class Opener(Protocol):
    """What opening a sum takes: the cohort secret, and the roster that names its keys."""

    @property
    def secret(self) -> CohortSecret:
        """The cohort secret."""

    @property
    def roster(self) -> Roster:
        """The public keys of all nodes."""


@dataclass(frozen=True)
class OperatorKit:
    """What opens every sum of a federation; the operator has it.

    Attributes:
        secret: The cohort secret.
        roster: The public keys of all nodes.
    """

    secret: CohortSecret
    roster: Roster


@dataclass(frozen=True)
class SharedKit:
    """What a node's kit holds beside the node's own keys.

    Attributes:
        secret: The cohort secret.
        roster: The public keys of all nodes.
        plan: Digest of the plan that the node will accept.
    """

    secret: CohortSecret
    roster: Roster
    plan: bytes


@dataclass(frozen=True)
class Kit:
    """What one node was provisioned with.

    Attributes:
        node: The node's own number, found on the roster by its signature key.
        secret: The cohort secret.
        roster: The public keys of all nodes.
        plan: Digest of the plan that the node will accept.
    """

    node: int
    secret: CohortSecret
    roster: Roster
    plan: bytes
    sign_key: Ed25519PrivateKey
    seal_key: X25519PrivateKey

    def sign(self, message: bytes) -> bytes:
        """The node's Ed25519 signature, 64 bytes."""
        return self.sign_key.sign(signed_digest(message))

    def pair_secret(self, peer: int) -> bytes:
        """The X25519 secret that this node shares with a peer of the roster, 32 bytes."""
        return self.seal_key.exchange(X25519PublicKey.from_public_bytes(self.roster.nodes[peer].seal))


def load_kit(folder: Path) -> Kit:
    """Read a node's kit.

    Raises:
        KeyFileError: A file is absent, readable by others, not what it should be, or does not fit the others.
        RosterRefused: The roster cannot be read, or is not signed by the operator.
    """
    shared = load_shared(folder)
    for name in (SIGN_FILE, SEAL_FILE):
        if not (folder / name).exists():
            raise KeyFileError(
                f"{folder / name} is missing. Where this node has enrolled, unpack its kit over the folder that "
                "`pruneseal enroll` has made; else provision this node again"
            )
    sign_key, seal_key = _private_key(folder / SIGN_FILE), _private_key(folder / SEAL_FILE)
    if not isinstance(sign_key, Ed25519PrivateKey) or not isinstance(seal_key, X25519PrivateKey):
        raise KeyFileError(f"{folder} must hold an Ed25519 key in {SIGN_FILE} and an X25519 key in {SEAL_FILE}")
    ours = (sign_key.public_key().public_bytes_raw(), seal_key.public_key().public_bytes_raw())
    for number, node in shared.roster.nodes.items():
        if (node.sign, node.seal) == ours:
            return Kit(number, shared.secret, shared.roster, shared.plan, sign_key, seal_key)
    raise KeyFileError(f"the keys in {folder} belong to no node of its roster: provision this node again")


def load_shared(folder: Path) -> SharedKit:
    """Read what a node's kit holds beside its own keys.

    Raises:
        KeyFileError, RosterRefused: As in :func:`load_kit`.
    """
    secret = CohortSecret(_hex(_read_secret(folder / COHORT_FILE), folder / COHORT_FILE))
    roster = load_roster(folder / ROSTER_FILE)
    if roster.cohort_id != secret.id:
        raise KeyFileError(f"the cohort secret in {folder} is not the one of its roster: provision this node again")
    return SharedKit(secret, roster, _hex(_read(folder / PLAN_FILE), folder / PLAN_FILE))


def load_operator_kit(folder: Path, roster: Path) -> OperatorKit:
    """Read the operator's kit.

    Args:
        folder: Holds ``cohort.secret`` and ``operator.pub``.
        roster: The roster's file.

    Raises:
        KeyFileError: The secret is absent, readable by others, not one, or not that of the roster.
        RosterRefused: The roster cannot be read, or is not signed by this operator.
    """
    secret = CohortSecret(_hex(_read_secret(folder / COHORT_FILE), folder / COHORT_FILE))
    kit = OperatorKit(secret, load_roster(roster, folder / OPERATOR_PUBLIC_FILE))
    if kit.roster.cohort_id != kit.secret.id:
        raise KeyFileError(f"the cohort secret in {folder} is not the one of the roster {roster}")
    return kit


def load_operator_key(folder: Path) -> Ed25519PrivateKey:
    """Read the key that signs rosters.

    Args:
        folder: The operator's kit; holds ``operator.key`` and ``operator.pub``.

    Raises:
        KeyFileError: A file is absent, readable by others, not an Ed25519 key, or the two are no pair.
    """
    path, key = folder / OPERATOR_KEY_FILE, _private_key(folder / OPERATOR_KEY_FILE)
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path} is not an Ed25519 key")
    if key.public_key() != load_operator_public(folder / OPERATOR_PUBLIC_FILE):
        raise KeyFileError(f"{path} does not fit {OPERATOR_PUBLIC_FILE}, so no kit would accept what it signs")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyFileError(
            f"{path} cannot be read: {error.strerror}. PruneSeal never makes a missing key; provision this node again."
        ) from error


def _read_secret(path: Path) -> bytes:
    data = _read(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise KeyFileError(f"{path} has mode {mode:04o} and can be read by others: chmod 600 it, or replace the key")
    return data


def _hex(data: bytes, path: Path) -> bytes:
    try:
        return bytes.fromhex(data.decode("ascii").strip())
    except ValueError:
        raise KeyFileError(f"{path} does not hold hexadecimal digits") from None


def _private_key(path: Path) -> object:
    try:
        return serialization.load_pem_private_key(_read_secret(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError):  # the last where OpenSSL stumbles
        raise KeyFileError(f"{path} is not a private key in PEM form") from None
