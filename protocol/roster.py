"""The roster: who may take part, by number, and the public keys that prove it.

It holds no secret; the same file lies with the aggregator and with every client. The *cohort id* is a public name of
the cohort secret: whoever holds the secret derives the same id, and nobody can derive the secret from it.

The operator signs it, and each party has the operator's public key in its kit, so a roster may come by any channel. Its
*serial number* grows whenever the operator amends it. The pair `Roster.to_json` / `load_roster`: a file that was
changed by a single byte since it was signed is refused.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from protocol import DOMAIN
from protocol.errors import KeyFileError, RosterRefused, SignatureRefused

KEY_ID_BYTES = 16
OPERATOR_PUBLIC_FILE: Final = "operator.pub"
"""Beside a roster: the Ed25519 key of the operator, 32 bytes in hex."""
_FORMAT, _VERSION = "pruneseal-roster", 2
_TAG: Final = b"pruneseal/1 roster 2"
_REMEDY: Final = "ask the operator for the roster, or for a new kit if all were made anew"


def signed_digest(message: bytes | memoryview) -> bytes:
    """What a signature of a message is made over: the protocol's name and the SHA-256 of the message.

    Ed25519 itself reads its input twice; hashed once with what most processors have an instruction for, a large
    contribution is signed and verified several times faster.
    """
    return DOMAIN + b"signature" + hashlib.sha256(message).digest()


@dataclass(frozen=True)
class Node:
    """One client's public keys: Ed25519 for signatures, X25519 for sealing shares to it; 32 bytes each."""

    name: str
    sign: bytes
    seal: bytes

    def __post_init__(self) -> None:
        if len(self.sign) != 32 or len(self.seal) != 32:
            raise RosterRefused(f"the public keys of {self.name} must be 32 bytes each")


@dataclass(frozen=True)
class Roster:
    """The nodes of a federation by number, and the public name of their cohort secret (16 bytes).

    Attributes:
        cohort_id: That name.
        nodes: The nodes.
        serial: Counts the rosters of this federation from 1: of two, the one of the higher number is in force.
    """

    cohort_id: bytes
    nodes: Mapping[int, Node]
    serial: int = 1

    def __post_init__(self) -> None:
        if len(self.cohort_id) != KEY_ID_BYTES:
            raise RosterRefused(f"the cohort id must be {KEY_ID_BYTES} bytes, not {len(self.cohort_id)}")
        if not all(0 <= number < 1 << 32 for number in self.nodes):
            raise RosterRefused("the number of a node must lie between 0 and 2^32 - 1")
        if not 0 < self.serial < 1 << 32:
            raise RosterRefused("the serial number of a roster must lie between 1 and 2^32 - 1")

    def key_id(self, run: bytes, round_: int) -> bytes:
        """The public name of the BFV key of one round, 16 bytes."""
        return hashlib.blake2b(
            self.cohort_id + run + round_.to_bytes(4, "little"), digest_size=KEY_ID_BYTES, person=b"pruneseal key id"
        ).digest()

    def names(self, nodes: Iterable[int]) -> str:
        """The names of these nodes, in the order of their numbers, for somebody to read."""
        return ", ".join(self.nodes[node].name for node in sorted(nodes))

    def verify(self, node: int, signature: bytes, message: bytes | memoryview) -> None:
        """Check that ``node`` has signed ``message``.

        Raises:
            SignatureRefused: The node is not on the roster, or the signature is not its own.
        """
        if node not in self.nodes:
            raise SignatureRefused(node, "not on the roster")
        try:
            Ed25519PublicKey.from_public_bytes(self.nodes[node].sign).verify(signature, signed_digest(message))
        except InvalidSignature:
            raise SignatureRefused(node, "the signature is not valid") from None

    def to_sign(self) -> bytes:
        """What the operator signs: a tag, the cohort id, and then every field in one fixed form."""
        parts = [_TAG, self.cohort_id, self.serial.to_bytes(4, "little"), len(self.nodes).to_bytes(4, "little")]
        for number, node in sorted(self.nodes.items()):
            name = node.name.encode()
            parts += [number.to_bytes(4, "little"), len(name).to_bytes(4, "little"), name, node.sign, node.seal]
        return b"".join(parts)

    def to_json(self, signature: bytes) -> str:
        """The roster as the text of its file.

        Args:
            signature: The operator's Ed25519 signature of :meth:`to_sign`, 64 bytes.
        """
        nodes = [
            {"node": number, "name": node.name, "sign": node.sign.hex(), "seal": node.seal.hex()}
            for number, node in sorted(self.nodes.items())
        ]
        head = {"format": _FORMAT, "version": _VERSION, "cohort": self.cohort_id.hex(), "serial": self.serial}
        return json.dumps({**head, "nodes": nodes, "signature": signature.hex()}, indent=1)


def load_operator_public(path: Path) -> Ed25519PublicKey:
    """Read the operator's public key.

    Raises:
        KeyFileError: The file is absent or holds no key.
    """
    try:
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(path.read_text().strip()))
    except OSError as error:
        raise KeyFileError(
            f"the operator's public key {path} cannot be read: {error.strerror}. Without it no roster can be trusted; "
            "provision this kit again."
        ) from error
    except ValueError:
        raise KeyFileError(f"{path} is not the operator's public key: 64 hexadecimal digits") from None


def load_roster(path: Path, key: Path | None = None) -> Roster:
    """Read a roster file and check that the operator has signed it.

    Args:
        path: The file.
        key: The file of the operator's public key; by default the one beside the roster.

    Raises:
        RosterRefused: The file is absent, not a roster, or not what the operator has signed.
        KeyFileError: The operator's public key is absent or none.
    """
    operator = load_operator_public(key or path.with_name(OPERATOR_PUBLIC_FILE))
    try:
        text = path.read_bytes().decode("ascii")
        data = json.loads(text)
        if (data["format"], data["version"]) != (_FORMAT, _VERSION):
            raise RosterRefused(f"{path} is not a roster of version {_VERSION}, which is signed: provision again")
        nodes = {
            int(entry["node"]): Node(str(entry["name"]), bytes.fromhex(entry["sign"]), bytes.fromhex(entry["seal"]))
            for entry in data["nodes"]
        }
        if len(nodes) != len(data["nodes"]):
            raise RosterRefused(f"{path} lists a node twice")
        roster = Roster(bytes.fromhex(data["cohort"]), nodes, int(data["serial"]))
        signature = bytes.fromhex(data["signature"])
        operator.verify(signature, roster.to_sign())
    except OSError as error:
        raise RosterRefused(f"the roster {path} cannot be read: {error.strerror}. Provision the node first.") from error
    except InvalidSignature:
        raise RosterRefused(f"{path} is not signed with the operator's key of this kit: {_REMEDY}") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise RosterRefused(f"{path} is not a signed roster ({error}): {_REMEDY}") from error
    if text != roster.to_json(signature):
        raise RosterRefused(f"{path} was changed since the operator signed it: {_REMEDY}")
    return roster
