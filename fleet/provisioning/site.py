"""A federation over several machines: from a site file to one kit per machine, and later changes to it.

Every kit is a folder of mode 0700 and an archive beside it, ``<name>.tar.gz``, whose files belong to the user of the
images. ``operator/`` has no archive: it stays here. A second call on the same folder changes nothing unless it is told
to amend; then it makes kits for new clients, revokes those that the file no longer names, signs the roster under the
next serial number, and touches no other kit.

The kit of a client that has enrolled holds none of its own keys. For one that has not they are made here, which is for
trials: whoever has the folder can do as the client does.
"""

import secrets
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_client.bundle import BUNDLES_FILE
from edge_client.enrollment import (
    KEYS_FOLDER,
    NODE_FOLDER,
    NODE_PUBLIC_FILE,
    UID,
    write_node_key,
)
from edge_client.keys import COHORT_FILE, ROSTER_FILE, SECRET_BYTES, CohortSecret, load_operator_key
from fleet.provisioning.app_bundle import APP_FOLDER, bundle_digest, write_app
from fleet.provisioning.certificates import CA_FILE, Authority
from fleet.provisioning.federation import Federation
from fleet.provisioning.kits import (
    AGGREGATOR,
    OPERATOR,
    new_folder,
    node_of,
    signed_roster,
    write_operator_keys,
    write_operator_public,
    write_own_keys,
    write_shared_keys,
)
from fleet.provisioning.site_file import Client, Site
from protocol.errors import ConfigError
from protocol.files import create_file, replace_file
from protocol.roster import Node, Roster, load_roster

FEDERATION_FILE: Final = "federation.json"
SUPEREXEC_FILE: Final = "superexec.secret"
TLS_FOLDER, PUBLIC_FOLDER = "tls", "federation"
_FLOWER_CONFIG: Final = """[superlink]
default = "aggregator"

[superlink.aggregator]
address = "superlink:8443"
root-certificates = "/run/tls/ca.crt"
"""


@dataclass(frozen=True)
class Changes:
    """What a call has done: clients with new kits, and the names of those that were revoked."""

    added: tuple[Client, ...]
    revoked: tuple[str, ...]


def provision_site(folder: Path, site: Site, *, amend: bool = False) -> Changes:
    """Make the kits of a site, or bring those in the folder up to it.

    Args:
        folder: Must not exist or be empty, unless ``amend``.
        site: What is wanted.
        amend: Add the clients that are new and revoke those that are gone; all else must be as it was.

    Raises:
        ConfigError: The folder holds a federation and ``amend`` is not given, or something else would have to change.
        KeyFileError: The operator's kit does not hold the key that signs rosters.
    """
    if folder.exists() and any(folder.iterdir()):
        if not amend:
            raise ConfigError(
                f"{folder} is not empty; keys are never overwritten. Choose another folder, or add and revoke clients "
                "of the federation in it with --amend."
            )
        return _amend(folder, site)
    secret, key = secrets.token_bytes(SECRET_BYTES), Ed25519PrivateKey.generate()
    operator = new_folder(folder / OPERATOR)
    write_operator_keys(operator, secret, key)
    Authority.create(site.hosts[0][:40]).save(operator)
    _make_aggregator(folder / AGGREGATOR, operator, site, key)
    return _admit(folder, site, Roster(CohortSecret(secret).id, {}), site.clients, (), key)


def _amend(folder: Path, site: Site) -> Changes:
    record = read_record(folder)
    wanted = {client.name: client for client in site.clients}
    if (record.plan, record.hosts, record.port) != (site.plan.digest.hex(), site.hosts, site.port):
        raise ConfigError(
            "the plan, the aggregator's hosts or its port differ from those of the federation; a change of these needs "
            "new kits for all: provision into another folder"
        )
    roster, key = load_roster(folder / OPERATOR / ROSTER_FILE), load_operator_key(folder / OPERATOR)
    present = {node.name for node in roster.nodes.values()}
    if back := sorted((wanted.keys() & record.numbers.keys()) - present):
        raise ConfigError(f"{', '.join(back)} was revoked; a name is not used again: choose another")
    _require_same_keys(roster, site.clients)
    added = tuple(client for client in site.clients if client.name not in present)
    revoked = tuple(sorted(present - wanted.keys()))
    for name in revoked:
        (folder / AGGREGATOR / PUBLIC_FOLDER / "nodes" / f"{name}.pub").unlink(missing_ok=True)
    left = {number: node for number, node in roster.nodes.items() if node.name not in revoked}
    return _admit(folder, site, Roster(roster.cohort_id, left, roster.serial + 1), added, revoked, key)


def _admit(
    folder: Path,
    site: Site,
    roster: Roster,
    added: Sequence[Client],
    revoked: tuple[str, ...],
    key: Ed25519PrivateKey,
) -> Changes:
    """Make the kits of new clients, then sign and write the roster, and the operator's record."""
    operator, aggregator = folder / OPERATOR, folder / AGGREGATOR
    if (operator / FEDERATION_FILE).exists():
        record = read_record(folder)
    else:
        record = Federation(plan=site.plan.digest.hex(), hosts=site.hosts, port=site.port, numbers={}, enrolled=())
    numbers = dict(record.numbers)
    for client in added:
        numbers[client.name] = len(numbers)
    new = {numbers[client.name]: _make_own(new_folder(folder / client.name), client) for client in added}
    roster = replace(roster, nodes={**roster.nodes, **new})
    secret = bytes.fromhex((operator / COHORT_FILE).read_text())
    for client in added:
        _make_client(folder / client.name, client, site, secret, roster, operator, key)
        public = (folder / client.name / NODE_FOLDER / NODE_PUBLIC_FILE).read_bytes()
        create_file(aggregator / PUBLIC_FOLDER / "nodes" / f"{client.name}.pub", public)
        _archive(folder / client.name)
    for place in (operator, aggregator / PUBLIC_FOLDER):
        replace_file(place / ROSTER_FILE, signed_roster(roster, key))
    _archive(aggregator)
    enrolled = (*record.enrolled, *(client.name for client in added if client.enrollment))
    record.model_copy(update={"numbers": numbers, "enrolled": enrolled}).write(operator / FEDERATION_FILE)
    return Changes(tuple(added), revoked)


def _require_same_keys(roster: Roster, clients: Sequence[Client]) -> None:
    """Refuse other keys under a name that has some.

    Raises:
        ConfigError: A client's enrollment is not the one that it was admitted with.
    """
    ours = {node.name: (node.sign.hex(), node.seal.hex()) for node in roster.nodes.values()}
    for client in clients:
        if client.enrollment and ours.get(client.name, ()) not in {
            (),
            (client.enrollment.sign, client.enrollment.seal),
        }:
            raise ConfigError(
                f"{client.name} was admitted with other keys than those of its enrollment; a name keeps its keys: "
                "enroll it under a new name, and leave the old one out of the site file"
            )


def _make_own(kit: Path, client: Client) -> Node:
    """The roster's entry of a new client. Where it has not enrolled, its own keys are made, and put into its kit."""
    own, node = new_folder(kit / KEYS_FOLDER), new_folder(kit / NODE_FOLDER)
    if client.enrollment:
        create_file(node / NODE_PUBLIC_FILE, client.enrollment.flower.encode() + b"\n")
        return Node(client.name, bytes.fromhex(client.enrollment.sign), bytes.fromhex(client.enrollment.seal))
    sign, seal = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
    write_own_keys(own, sign, seal)
    write_node_key(node)
    return node_of(client.name, sign, seal)


def _make_aggregator(kit: Path, operator: Path, site: Site, key: Ed25519PrivateKey) -> None:
    new_folder(kit)
    tls, public = new_folder(kit / TLS_FOLDER), new_folder(kit / PUBLIC_FOLDER)
    authority = Authority.load(operator)
    authority.save_certificate(tls)
    authority.issue(tls, [*site.hosts, *({"superlink", "ingress", "localhost", "127.0.0.1"} - set(site.hosts))])
    create_file(kit / SUPEREXEC_FILE, secrets.token_bytes(32), 0o600)
    new_folder(public / "nodes")
    write_operator_public(public, key)
    write_app(public / APP_FOLDER, site.plan)
    create_file(public / "config.toml", _FLOWER_CONFIG.encode())
    _write_text(kit, AGGREGATOR, {"PRUNESEAL_PORT": str(site.port)}, name=AGGREGATOR)


def _make_client(
    kit: Path,
    client: Client,
    site: Site,
    secret: bytes,
    roster: Roster,
    operator: Path,
    key: Ed25519PrivateKey,
) -> None:
    own = kit / KEYS_FOLDER
    write_shared_keys(own, secret, site.plan, roster, key)
    create_file(own / BUNDLES_FILE, f"{bundle_digest(site.plan)}\n".encode())
    create_file(kit / NODE_FOLDER / CA_FILE, (operator / CA_FILE).read_bytes())
    create_file(kit / SUPEREXEC_FILE, secrets.token_bytes(32), 0o600)
    new_folder(kit / "data")
    new_folder(kit / "out")
    settings = {"PRUNESEAL_SUPERLINK": f"{site.hosts[0]}:{site.port}", "PRUNESEAL_DATA": client.data}
    _write_text(kit, "edge", settings, name=client.name)


def _write_text(kit: Path, template: str, settings: Mapping[str, str], name: str) -> None:
    """The compose file, its settings and the page that says what to do."""
    source = files("fleet.provisioning") / "kit"
    create_file(kit / "docker-compose.yaml", (source / f"{template}.yaml").read_bytes())
    lines = {"COMPOSE_PROJECT_NAME": f"pruneseal-{name}", **settings}
    create_file(kit / ".env", "".join(f"{key}={value}\n" for key, value in lines.items()).encode())
    text = (source / f"{template}.md").read_text().replace("{name}", name).replace("{uid}", str(UID))
    create_file(kit / "README.md", text.encode())


def _archive(kit: Path) -> None:
    """Pack a kit as ``<name>.tar.gz``, mode 0600, with its modes and the images' user as the owner of everything."""

    def owned(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = UID
        entry.uname = entry.gname = ""
        return entry

    path = kit.with_name(f"{kit.name}.tar.gz")
    temporary = kit.with_name(f".{kit.name}.{secrets.token_hex(8)}.tmp")
    create_file(temporary, b"", 0o600)
    try:
        with tarfile.open(temporary, "w:gz") as archive:
            archive.add(kit, kit.name, filter=owned)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_record(folder: Path) -> Federation:
    """What the operator keeps of the federation in a folder.

    Raises:
        ConfigError: The folder holds no federation.
    """
    path = folder / OPERATOR / FEDERATION_FILE
    try:
        return Federation.read(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} holds no federation: {path}: {error.strerror}") from error
