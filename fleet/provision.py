"""Make the keys of a federation: the only place that ever generates one.

``kits/node-<i>/`` is what one client needs, ``kits/aggregator/`` what the aggregator needs (nothing secret), and
``kits/operator/`` keeps the cohort secret for whoever may open the result. Secret files have mode 0600, folders 0700.
Nothing is ever overwritten.
"""

import secrets
import tomllib
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_client.keys import COHORT_FILE, MASK_FILE, PLAN_FILE, ROSTER_FILE, SECRET_BYTES, SIGN_FILE, CohortSecret
from protocol.errors import ConfigError
from protocol.files import create_file
from protocol.plan import Plan, plan_from_config
from protocol.roster import Node, Roster

AGGREGATOR, OPERATOR = "aggregator", "operator"


def kit_name(node: int) -> str:
    """The folder of a node's kit."""
    return f"node-{node}"


def provision(folder: Path, nodes: int, plan: Plan) -> Roster:
    """Make the kits of ``nodes`` clients, the aggregator and the operator.

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
    secret = secrets.token_bytes(SECRET_BYTES)
    pairs = [(Ed25519PrivateKey.generate(), X25519PrivateKey.generate()) for _ in range(nodes)]
    roster = Roster(
        CohortSecret(secret).id, {number: node_of(kit_name(number), *pair) for number, pair in enumerate(pairs)}
    )
    for number, pair in enumerate(pairs):
        write_client_keys(new_folder(folder / kit_name(number)), secret, *pair, plan, roster)
    (new_folder(folder / AGGREGATOR) / ROSTER_FILE).write_text(roster.to_json())
    create_file(new_folder(folder / OPERATOR) / COHORT_FILE, secret.hex().encode(), 0o600)
    return roster


def node_of(name: str, sign: Ed25519PrivateKey, mask: X25519PrivateKey) -> Node:
    """The roster's entry of the node that holds these keys."""
    return Node(name, sign.public_key().public_bytes_raw(), mask.public_key().public_bytes_raw())


def write_client_keys(
    kit: Path, secret: bytes, sign: Ed25519PrivateKey, mask: X25519PrivateKey, plan: Plan, roster: Roster
) -> None:
    """Write what one client needs to take part in the protocol into its folder.

    Raises:
        FileExistsError: A key is there already.
    """
    create_file(kit / COHORT_FILE, secret.hex().encode(), 0o600)
    create_file(kit / SIGN_FILE, _pem(sign), 0o600)
    create_file(kit / MASK_FILE, _pem(mask), 0o600)
    create_file(kit / PLAN_FILE, plan.digest.hex().encode())
    create_file(kit / ROSTER_FILE, roster.to_json().encode())


def plan_from_toml(path: Path) -> Plan:
    """The plan in ``[tool.flwr.app.config]`` of a Flower app's pyproject.toml.

    Raises:
        ConfigError: The file cannot be read or holds no plan.
    """
    try:
        config = tomllib.loads(path.read_text())["tool"]["flwr"]["app"]["config"]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds no [tool.flwr.app.config]: {error}") from error
    return plan_from_config(config)


def new_folder(path: Path) -> Path:
    """Make a folder, with mode 0700, that must not be there yet."""
    path.mkdir(parents=True, mode=0o700)
    return path


def _pem(key: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).strip()
