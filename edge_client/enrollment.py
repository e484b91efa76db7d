"""A node makes its own long-term keys, so that nobody else ever has them: ``python -m edge_client.enrollment FOLDER``.

``FOLDER/kit/`` gets ``sign.key`` and ``seal.key``, ``FOLDER/node/`` gets ``flower.key``; ``FOLDER/enrollment.json`` has
the public halves, signed with the first. It goes to the operator, who answers with a kit that lacks just these three
and is unpacked over the folder. Run as root, as in the image, all of it belongs to the user of the images.

The signature says that whoever drew up the enrollment has the signature key, and stands by the other two. That it has
their private halves is not proved: without them a node only shuts itself out.
"""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import Field

from edge_client.keys import SEAL_FILE, SIGN_FILE
from protocol import DOMAIN
from protocol.documents import Document
from protocol.errors import ConfigError, PruneSealError
from protocol.files import create_file

ENROLLMENT_FILE: Final = "enrollment.json"
KEYS_FOLDER, NODE_FOLDER = "kit", "node"
NODE_KEY_FILE: Final = "flower.key"
"""A node's private key, in the OpenSSH form that `flower-supernode --auth-supernode-private-key` reads."""
NODE_PUBLIC_FILE: Final = "flower.key.pub"
"""The same node's public key, as `flwr supernode register` reads it."""
UID: Final = 49999
"""The user and the group that the images run as."""
_LONGEST: Final = 1000
_Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Enrollment(Document):
    """A node's public keys: ``enrollment.json``.

    Attributes:
        sign: Its Ed25519 key, in hex.
        seal: Its X25519 key, in hex.
        flower: The key by which Flower knows it, as OpenSSH writes it.
        signature: Of the three, with the first, in hex.
    """

    refusal = ConfigError
    format: str = "pruneseal-enrollment"
    version: str = "1.0"
    sign: _Key
    seal: _Key
    flower: Annotated[str, Field(pattern=r"^ecdsa-sha2-nistp384 [A-Za-z0-9+/=]+$", max_length=_LONGEST)]
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

    @property
    def fingerprint(self) -> str:
        """What two people compare over the phone: 128 bits of a digest of the keys, in groups of four digits."""
        digest = hashlib.sha256(_to_sign(self.sign, self.seal, self.flower)).hexdigest()[:32]
        return " ".join(digest[i : i + 4] for i in range(0, 32, 4))


def read_enrollment(path: Path) -> Enrollment:
    """Read what a node has sent.

    Raises:
        ConfigError: It cannot be read, or is not signed with the key that it names.
    """
    try:
        made = Enrollment.read(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing: it is what `pruneseal enroll` makes on the client's machine") from error
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(made.sign)).verify(
            bytes.fromhex(made.signature), _to_sign(made.sign, made.seal, made.flower)
        )
        serialization.load_ssh_public_key(made.flower.encode())
    except (InvalidSignature, ValueError) as error:
        raise ConfigError(f"{path} is not signed with the key that it names: ask for it again") from error
    return made


def enroll(folder: Path) -> Enrollment:
    """Make a node's long-term keys, and what is sent to the operator.

    Args:
        folder: Made if it is absent; the node's kit is unpacked over it later.

    Raises:
        ConfigError: There are keys in it already, or it cannot be written.
    """
    sign, seal = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
    try:
        for place in (folder, folder / KEYS_FOLDER, folder / NODE_FOLDER):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        create_file(folder / KEYS_FOLDER / SIGN_FILE, pem(sign), 0o600)
        create_file(folder / KEYS_FOLDER / SEAL_FILE, pem(seal), 0o600)
        public = [key.public_key().public_bytes_raw().hex() for key in (sign, seal)]
        flower = write_node_key(folder / NODE_FOLDER)
        made = Enrollment(sign=public[0], seal=public[1], flower=flower, signature=_signed(sign, *public, flower))
        create_file(folder / ENROLLMENT_FILE, made.to_json(indent=1) + b"\n")
        if os.geteuid() == 0:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, UID, UID)
    except FileExistsError as error:
        raise ConfigError(f"{error.filename} is already there; keys are never overwritten") from error
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}") from error
    return made


def write_node_key(folder: Path) -> str:
    """Make the key by which a node proves itself to Flower: ``flower.key`` and ``flower.key.pub``; the public one.

    Raises:
        FileExistsError: One of them is already there.
    """
    key: EllipticCurvePrivateKey = generate_private_key(SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    create_file(folder / NODE_KEY_FILE, private, 0o600)
    create_file(folder / NODE_PUBLIC_FILE, public + b"\n")
    return public.decode()


def pem(key: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    """A private key as its file holds it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).strip()


def advice(folder: Path, made: Enrollment) -> str:
    """What whoever has enrolled a node does next."""
    return (
        f"keys made in {folder}; they stay on this machine.\n"
        f"Send {folder / ENROLLMENT_FILE} to the operator, and compare this fingerprint over another channel:\n"
        f"    {made.fingerprint}\n"
        f"Then unpack the kit that comes back over this folder (tar -xzf {folder.name}.tar.gz in {folder.parent})."
    )


def _to_sign(*keys: str) -> bytes:
    return DOMAIN + b"enrollment\n" + "\n".join(keys).encode()


def _signed(key: Ed25519PrivateKey, *keys: str) -> str:
    return key.sign(_to_sign(*keys)).hex()


def main(arguments: Sequence[str]) -> None:
    """Enroll a node, and say what to do next; ends the process with an error otherwise."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.exit("usage: python -m edge_client.enrollment FOLDER")
    folder = Path(arguments[0]).absolute()
    try:
        sys.stdout.write(advice(folder, enroll(folder)) + "\n")
    except PruneSealError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
