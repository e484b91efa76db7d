"""Keeps the SuperLink's list of nodes equal to the roster: ``python -m aggregator.nodes``.

``PRUNESEAL_ROSTER`` names who takes part, ``PRUNESEAL_NODES`` is a folder with the public Flower key of each, as
``<name>.pub``. Who is new on the roster is registered with the SuperLink and who is gone from it is unregistered,
within seconds and without a restart: admitting and revoking are a matter of copying files. ``PRUNESEAL_SUPERLINK`` is
the connection's name in ``$FLWR_HOME/config.toml`` (``aggregator``). SIGTERM and SIGINT end it.
"""

import logging
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from aggregator.flower import Control, control, key_bytes
from aggregator.process import begin
from protocol.errors import ConfigError, PruneSealError
from protocol.roster import load_roster

_log = logging.getLogger("pruneseal.nodes")
_TICK_SECONDS: Final = 2.0


def read_keys(roster: Path, folder: Path) -> dict[bytes, str]:
    """The names of the nodes to admit, by their public keys in Flower's encoding.

    Raises:
        ConfigError: The roster or a key cannot be read: nobody is unregistered for that.
    """
    keys = {}
    for node in load_roster(roster).nodes.values():
        path = folder / f"{node.name}.pub"
        try:
            key = load_ssh_public_key(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}; copy the whole of the kit's folder") from error
        except (ValueError, UnsupportedAlgorithm, InternalError) as error:
            raise ConfigError(f"{path} is not a public key in OpenSSH form: {error}") from error
        if not isinstance(key, EllipticCurvePublicKey):
            raise ConfigError(f"{path} is not an EC key, which Flower needs")
        keys[key_bytes(key)] = node.name
    return keys


def equalise(wanted: Mapping[bytes, str], superlink: Control) -> None:
    """Register who is wanted and unregister who is not; a node that is there already is left alone."""
    there = superlink.nodes()
    for key, node in there.items():
        if key not in wanted:
            superlink.unregister(node)
            _log.warning("node %s is revoked: the SuperLink refuses it from now on", node.name or node.node_id)
    for key, name in wanted.items():
        if key not in there:
            superlink.register(key, name)
            _log.info("node %s is admitted", name)


def keep(roster: Path, folder: Path, connection: str, stop: threading.Event) -> None:
    """Update the list whenever roster or keys change, until told to stop; what fails is logged and retried."""
    done: dict[bytes, str] | None = None
    while not stop.wait(0 if done is None else _TICK_SECONDS):
        try:
            wanted = read_keys(roster, folder)
            if wanted != done:
                with control(connection) as superlink:
                    equalise(wanted, superlink)
                done = wanted
        except PruneSealError as error:
            _log.error("%s", error)
            stop.wait(_TICK_SECONDS)
        except OSError as error:
            _log.warning("trying again: %s", error)
            stop.wait(_TICK_SECONDS)


def main(environment: Mapping[str, str] = os.environ) -> int:
    """The process; its exit code."""
    stop = begin()
    if missing := [name for name in ("PRUNESEAL_ROSTER", "PRUNESEAL_NODES") if name not in environment]:
        _log.error("set %s: the roster's file, and the folder of the nodes' public keys", " and ".join(missing))
        return 1
    roster, folder = (Path(environment[name]) for name in ("PRUNESEAL_ROSTER", "PRUNESEAL_NODES"))
    keep(roster, folder, environment.get("PRUNESEAL_SUPERLINK", "aggregator"), stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
