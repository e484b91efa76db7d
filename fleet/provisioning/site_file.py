"""The site file: which machines a federation has, and under which plan.

``site.toml`` names the aggregator's hosts, the clients and what of the plan differs from the defaults::

    [aggregator]
    hosts = ["fl.example.org"]      # by which nodes reach it; the first is the one that they use
    port = 443

    [[clients]]
    name = "hospital-a"
    data = "npz:/data/train.npz"    # as the node sees it; this is the default
    enrollment = "a/enrollment.json"  # beside this file: what `pruneseal enroll` has made on the client's machine

    [plan]
    rounds = 20

    [plan.options]                  # what only the method knows, where it differs from its defaults
    exponent = 2.0
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_client.enrollment import Enrollment, read_enrollment
from fleet.provisioning.kits import AGGREGATOR, OPERATOR
from fleet.provisioning.toml import read_toml
from protocol.errors import ConfigError
from protocol.plan import Plan, plan_from_config

_DATA: Final = "npz:/data/train.npz"
_NAME_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


@dataclass(frozen=True)
class Client:
    """One client of a site file: its name, its data as the node sees it, and its public keys if it has enrolled."""

    name: str
    data: str = _DATA
    enrollment: Enrollment | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= 63 or set(self.name) - _NAME_CHARACTERS or self.name.startswith("-"):
            raise ConfigError(f"a client's name is made of a-z, 0-9 and -, at most 63 of them; {self.name!r} is not")
        if self.name in {AGGREGATOR, OPERATOR}:
            raise ConfigError(f"no client can be called {self.name}: that is the name of another kit")


@dataclass(frozen=True)
class Site:
    """A site file."""

    hosts: tuple[str, ...]
    port: int
    clients: tuple[Client, ...]
    plan: Plan


def read_site(path: Path) -> Site:
    """Read a site file.

    Raises:
        ConfigError: It cannot be read, or something in it is missing, unknown or impossible.
    """
    table = read_toml(path)
    try:
        _known("", table, {"aggregator", "clients", "plan"})
        server, entries, given = table["aggregator"], table["clients"], table.get("plan", {})
        _known("[aggregator] ", server, {"hosts", "port"})
        for entry in entries:
            _known("[[clients]] ", entry, {"name", "data", "enrollment"})
        hosts, port = tuple(str(host) for host in server["hosts"]), int(server.get("port", 443))
        clients = tuple(
            Client(
                str(entry["name"]),
                str(entry.get("data", _DATA)),
                read_enrollment(path.parent / str(entry["enrollment"])) if "enrollment" in entry else None,
            )
            for entry in entries
        )
        most = {"max-cohort": max(len(clients), Plan.max_cohort)}
        plan = plan_from_config({**Plan().to_config(), **most, **given})
    except KeyError as error:
        raise ConfigError(f"{path} lacks {error.args[0]}") from error
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ConfigError(f"{path} is not a site file: {error}") from error
    if not hosts or not 0 < port < 1 << 16:
        raise ConfigError(f"{path} must name one or more hosts of the aggregator, and a port from 1 to 65535")
    if len({client.name for client in clients}) < len(clients):
        raise ConfigError(f"{path} names a client twice")
    keys = [key for one in clients if one.enrollment for key in (one.enrollment.sign, one.enrollment.seal)]
    if len({*keys}) < len(keys):
        raise ConfigError(f"{path} gives two clients the same enrollment: each makes its own")
    if len(clients) < plan.min_cohort:
        raise ConfigError(f"{len(clients)} clients can never form a cohort of {plan.min_cohort}")
    return Site(hosts, port, clients, plan)


def _known(where: str, table: Mapping[str, object], names: set[str]) -> None:
    if unknown := sorted(set(table) - names):
        raise ConfigError(
            f"{where}has unknown keys: {', '.join(unknown)}; known are {', '.join(sorted(names))}".strip()
        )
