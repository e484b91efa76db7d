"""Make the keys of a federation, all but those that nodes make for themselves (`edge_client/enrollment.py`).

``kits/node-<i>/`` is what one client needs, ``kits/aggregator/`` what the aggregator needs (nothing secret), and
``kits/operator/`` keeps the cohort secret for whoever may open the result, and the key that signs the roster. Secret
files have mode 0600, folders 0700. Nothing is ever overwritten.
"""

import secrets
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_client.enrollment import pem
from edge_client.keys import (
    COHORT_FILE,
    OPERATOR_KEY_FILE,
    PLAN_FILE,
    ROSTER_FILE,
    SEAL_FILE,
    SECRET_BYTES,
    SIGN_FILE,
    CohortSecret,
)
from fleet.provisioning.toml import read_toml
from protocol.errors import ConfigError
from protocol.files import create_file
from protocol.plan import Plan, plan_from_config
from protocol.roster import OPERATOR_PUBLIC_FILE, Node, Roster

AGGREGATOR, OPERATOR = "aggregator", "operator"


def kit_name(node: int) -> str:
    """The folder of a node's kit."""
    return f"node-{node}"


def provision(folder: Path, nodes: int, plan: Plan) -> Roster:
    """Make the kits of ``nodes`` clients, the aggregator and the operator: all keys in one folder, for trials.

    Args:
        folder: Must not exist, or be empty.
        nodes: How many clients.
        plan: The plan that the clients will accept.

    Raises:
        ConfigError: The folder holds something, or there are fewer nodes than the smallest cohort.
    """
    if nodes < plan.min_cohort:
        raise ConfigError(f"{nodes} clients can never form a cohort of {plan.min_cohort}")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; keys are never overwritten. Choose another folder.")
    secret, operator = secrets.token_bytes(SECRET_BYTES), Ed25519PrivateKey.generate()
    pairs = [(Ed25519PrivateKey.generate(), X25519PrivateKey.generate()) for _ in range(nodes)]
    roster = Roster(
        CohortSecret(secret).id, {number: node_of(kit_name(number), *pair) for number, pair in enumerate(pairs)}
    )
    for number, pair in enumerate(pairs):
        kit = new_folder(folder / kit_name(number))
        write_own_keys(kit, *pair)
        write_shared_keys(kit, secret, plan, roster, operator)
    write_roster(new_folder(folder / AGGREGATOR), roster, operator)
    write_operator_keys(new_folder(folder / OPERATOR), secret, operator)
    return roster


def node_of(name: str, sign: Ed25519PrivateKey, seal: X25519PrivateKey) -> Node:
    """The roster's entry of the node that holds these keys."""
    return Node(name, sign.public_key().public_bytes_raw(), seal.public_key().public_bytes_raw())


def signed_roster(roster: Roster, operator: Ed25519PrivateKey) -> bytes:
    """The file of a roster, signed by the operator."""
    return roster.to_json(operator.sign(roster.to_sign())).encode()


def write_operator_keys(kit: Path, secret: bytes, operator: Ed25519PrivateKey) -> None:
    """Write the cohort secret and the key pair that signs rosters into the operator's folder.

    Raises:
        FileExistsError: A key is there already.
    """
    create_file(kit / COHORT_FILE, secret.hex().encode(), 0o600)
    create_file(kit / OPERATOR_KEY_FILE, pem(operator), 0o600)
    write_operator_public(kit, operator)


def write_operator_public(kit: Path, operator: Ed25519PrivateKey) -> None:
    """Write the operator's public key, by which a party knows the roster, into the party's folder.

    Raises:
        FileExistsError: One is there already.
    """
    create_file(kit / OPERATOR_PUBLIC_FILE, operator.public_key().public_bytes_raw().hex().encode())


def write_roster(kit: Path, roster: Roster, operator: Ed25519PrivateKey) -> None:
    """Write the signed roster, and the key that proves it, into a party's folder.

    Raises:
        FileExistsError: One of them is there already.
    """
    create_file(kit / ROSTER_FILE, signed_roster(roster, operator))
    write_operator_public(kit, operator)


def write_own_keys(kit: Path, sign: Ed25519PrivateKey, seal: X25519PrivateKey) -> None:
    """Write the long-term keys of a client that has not enrolled into its folder.

    Raises:
        FileExistsError: A key is there already.
    """
    create_file(kit / SIGN_FILE, pem(sign), 0o600)
    create_file(kit / SEAL_FILE, pem(seal), 0o600)


def write_shared_keys(kit: Path, secret: bytes, plan: Plan, roster: Roster, operator: Ed25519PrivateKey) -> None:
    """Write what a client needs beside its own keys to take part in the protocol into its folder.

    Args:
        kit: The folder.
        secret: The cohort secret.
        plan: The plan that it will accept.
        roster: The roster.
        operator: Signs the roster, and stays here.

    Raises:
        FileExistsError: A key is there already.
    """
    create_file(kit / COHORT_FILE, secret.hex().encode(), 0o600)
    create_file(kit / PLAN_FILE, plan.digest.hex().encode())
    write_roster(kit, roster, operator)


def plan_from_toml(path: Path) -> Plan:
    """The plan in ``[tool.flwr.app.config]`` of a Flower app's pyproject.toml.

    Raises:
        ConfigError: The file cannot be read or holds no plan.
    """
    try:
        config = read_toml(path)["tool"]["flwr"]["app"]["config"]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds no [tool.flwr.app.config]: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} holds no [tool.flwr.app.config]: it is no table")
    return plan_from_config(config)


def new_folder(path: Path) -> Path:
    """Make a folder, with mode 0700, that must not exist yet."""
    path.mkdir(parents=True, mode=0o700)
    return path
