"""The roster: who may take part, by number, and the public keys that prove it.

It holds no secret; the same file lies with the aggregator and with every client. The *cohort id* is a public name of
the cohort secret: whoever holds the secret derives the same id, and nobody can derive the secret from it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from protocol.errors import ConfigError, SignatureRefused

KEY_ID_BYTES = 16
_FORMAT = "pruneseal-roster"


def signed_digest(message: bytes) -> bytes:
    """What a signature of a message is made over: the protocol's name and the SHA-256 of the message.

    Ed25519 itself reads its input twice; hashed once with what most processors have an instruction for, a large
    contribution is signed and verified several times faster.
    """
    return b"pruneseal/1 signature" + hashlib.sha256(message).digest()


@dataclass(frozen=True)
class Node:
    """One client's public keys: Ed25519 for signatures, X25519 for pairwise masks; 32 bytes each."""

    name: str
    sign: bytes
    mask: bytes

    def __post_init__(self) -> None:
        if len(self.sign) != 32 or len(self.mask) != 32:
            raise ConfigError(f"the public keys of {self.name} must be 32 bytes each")


@dataclass(frozen=True)
class Roster:
    """The nodes of a federation by number, and the public name of their cohort secret (16 bytes)."""

    cohort_id: bytes
    nodes: Mapping[int, Node]

    def __post_init__(self) -> None:
        if len(self.cohort_id) != KEY_ID_BYTES:
            raise ConfigError(f"the cohort id must be {KEY_ID_BYTES} bytes, not {len(self.cohort_id)}")
        if not all(0 <= number < 1 << 32 for number in self.nodes):
            raise ConfigError("the number of a node must lie between 0 and 2^32 - 1")

    def key_id(self, run: bytes, round_: int) -> bytes:
        """The public name of the BFV key of one round, 16 bytes."""
        return hashlib.blake2b(
            self.cohort_id + run + round_.to_bytes(4, "little"), digest_size=KEY_ID_BYTES, person=b"pruneseal key id"
        ).digest()

    def verify(self, node: int, signature: bytes, message: bytes) -> None:
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

    def to_json(self) -> str:
        """The roster as the text of its file."""
        nodes = [
            {"node": number, "name": node.name, "sign": node.sign.hex(), "mask": node.mask.hex()}
            for number, node in sorted(self.nodes.items())
        ]
        return json.dumps({"format": _FORMAT, "version": 1, "cohort": self.cohort_id.hex(), "nodes": nodes}, indent=1)


def load_roster(path: Path) -> Roster:
    """Read a roster file.

    Raises:
        ConfigError: The file is absent or not a roster.
    """
    try:
        data = json.loads(path.read_text())
        if (data["format"], data["version"]) != (_FORMAT, 1):
            raise ConfigError(f"{path} is not a roster of version 1")
        nodes = {
            int(entry["node"]): Node(str(entry["name"]), bytes.fromhex(entry["sign"]), bytes.fromhex(entry["mask"]))
            for entry in data["nodes"]
        }
        if len(nodes) != len(data["nodes"]):
            raise ConfigError(f"{path} lists a node twice")
        return Roster(bytes.fromhex(data["cohort"]), nodes)
    except OSError as error:
        raise ConfigError(f"the roster {path} cannot be read: {error.strerror}. Provision the node first.") from error
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ConfigError(f"{path} is not a roster: {error}") from error
