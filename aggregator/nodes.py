"""Keeps the SuperLink's list of nodes equal to a folder: ``python -m aggregator.nodes``.

``PRUNESEAL_NODES`` is a folder with one public key a node, ``<name>.pub``. A key that appears there is registered, and
a node whose file is gone is unregistered, within seconds and without a restart. So admitting and revoking are a matter
of copying a file. ``PRUNESEAL_SUPERLINK`` is the connection's name in ``$FLWR_HOME/config.toml`` (``aggregator``).
SIGTERM and SIGINT end it.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Final, Protocol

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.cli.flower_config import read_superlink_connection
from flwr.cli.utils import init_http_client_from_connection
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, UnregisterNodeRequest
from flwr.supercore.constant import NodeStatus
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from aggregator.logs import JsonFormatter
from protocol.errors import ConfigError, PruneSealError

_log = logging.getLogger("pruneseal.nodes")
_TICK_SECONDS: Final = 2.0


class Control(Protocol):
    """What is needed of the SuperLink's Control API."""

    def ListNodes(self, request: Any) -> Any: ...  # noqa: N802, D102  # Flower's name
    def RegisterNode(self, request: Any) -> Any: ...  # noqa: N802, D102
    def UnregisterNode(self, request: Any) -> Any: ...  # noqa: N802, D102


def read_keys(folder: Path) -> dict[bytes, str]:
    """The names of the nodes that shall be admitted, by their public keys in Flower's encoding.

    Raises:
        ConfigError: The folder or a key cannot be read.
    """
    keys = {}
    try:
        for path in sorted(folder.glob("*.pub")):
            key = load_ssh_public_key(path.read_bytes())
            if not isinstance(key, EllipticCurvePublicKey):
                raise ConfigError(f"{path} is not an EC key")
            keys[public_key_to_bytes(key)] = path.stem
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder: PRUNESEAL_NODES must name that of the nodes' public keys")
    except OSError as error:
        raise ConfigError(f"the nodes' keys in {folder} cannot be read: {error.strerror}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is not a public key in OpenSSH form: {error}") from error
    return keys


def equalise(wanted: Mapping[bytes, str], control: Control) -> None:
    """Register who is wanted and unregister who is not; a node that is there already is left alone."""
    nodes = control.ListNodes(ListNodesRequest()).nodes_info
    there = {bytes(node.public_key): node for node in nodes if node.status != NodeStatus.UNREGISTERED}
    for key, node in there.items():
        if key not in wanted:
            control.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
            _log.warning("node %s is revoked: the SuperLink refuses it from now on", node.name or node.node_id)
    for key, name in wanted.items():
        if key not in there:
            control.RegisterNode(RegisterNodeRequest(public_key=key, name=name))
            _log.info("node %s is admitted", name)


def keep(folder: Path, connection: str, stop: threading.Event) -> None:
    """Equalise whenever the folder has changed, until told to stop; what fails is told and tried again."""
    done: dict[bytes, str] | None = None
    while not stop.wait(0 if done is None else _TICK_SECONDS):
        try:
            wanted = read_keys(folder)
            if wanted != done:
                control = init_http_client_from_connection(read_superlink_connection(connection))
                try:
                    equalise(wanted, control)
                finally:
                    control.close()
                done = wanted
        except PruneSealError as error:
            _log.error("%s", error)
            stop.wait(_TICK_SECONDS)
        except httpx.HTTPError as error:
            _log.warning("the SuperLink cannot be told, trying again: %s: %s", type(error).__name__, error)
            stop.wait(_TICK_SECONDS)


def main(environment: Mapping[str, str] = os.environ) -> int:
    """The process; its exit code."""
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the signature of a signal handler
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(""))
    logging.getLogger("pruneseal").addHandler(handler)
    logging.getLogger("pruneseal").setLevel(logging.INFO)
    if "PRUNESEAL_NODES" not in environment:
        _log.error("set PRUNESEAL_NODES to the folder of the nodes' public keys")
        return 1
    keep(Path(environment["PRUNESEAL_NODES"]), environment.get("PRUNESEAL_SUPERLINK", "aggregator"), stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
