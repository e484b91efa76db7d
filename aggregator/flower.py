"""Flower's private rooms, as far as the aggregator's processes enter them.

Flower promises its public packages alone: `flwr.app`, `flwr.serverapp`, `flwr.clientapp`. What the aggregator needs of
`flwr.cli`, `flwr.common`, `flwr.proto`, `flwr.supercore` and `flwr.superlink` is imported here and nowhere else.
``tests/test_flower_rooms.py`` names every part of it, and is the first to fail when another version of Flower has moved
one.

* The Control API, because the `flwr` command wants to find the code of both components of an app before it submits it,
  and no code of the clients is on the aggregator; and because it takes one process for each node that it registers.
* The SuperLink's database, whose patience is no setting.
"""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from flwr.cli.build import build_fab_from_disk
from flwr.cli.flower_config import read_superlink_connection
from flwr.cli.utils import init_http_client_from_connection
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.constant import NodeStatus
from flwr.supercore.fab import Fab
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

# --- the Control API -----------------------------------------------------------------------------


class Control:
    """The part of the SuperLink's Control API that is needed here.

    Args:
        client: Flower's `ControlHttpClient`.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def start_run(self, app: Path) -> str:
        """Start a Flower app; the name of Flower's run.

        Args:
            app: The app's folder.

        Raises:
            OSError: The SuperLink has not started it.
        """
        bundle = build_fab_from_disk(app)
        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        answer = self._client.StartRun(StartRunRequest(fab=fab_to_proto(fab)))
        if not answer.HasField("run_id"):
            raise OSError(f"the SuperLink has not started the run: {answer.note or 'it says no more'}")
        return str(answer.run_id)

    def stop_run(self, run: str) -> None:
        """Let a run end."""
        self._client.StopRun(StopRunRequest(run_id=int(run)))

    def nodes(self) -> dict[bytes, NodeInfo]:
        """The nodes that are registered, by their public keys."""
        nodes = self._client.ListNodes(ListNodesRequest()).nodes_info
        return {bytes(node.public_key): node for node in nodes if node.status != NodeStatus.UNREGISTERED}

    def register(self, key: bytes, name: str) -> None:
        """Admit a node.

        Args:
            key: Its public key, as :func:`key_bytes` has it.
            name: What it is called.
        """
        self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=name))

    def unregister(self, node: NodeInfo) -> None:
        """Refuse a node from now on."""
        self._client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))


@contextmanager
def control(connection: str) -> Iterator[Control]:
    """Talk to the Control API.

    Args:
        connection: The name of the SuperLink's connection in ``$FLWR_HOME/config.toml``.

    Raises:
        OSError: The SuperLink cannot be reached, or refuses.
    """
    client = init_http_client_from_connection(read_superlink_connection(connection))
    try:
        yield Control(client)
    except httpx.HTTPError as error:
        raise OSError(f"the SuperLink has not done it: {type(error).__name__}: {error}") from error
    finally:
        client.close()


def key_bytes(key: EllipticCurvePublicKey) -> bytes:
    """A node's public key in the encoding by which the SuperLink knows it."""
    return public_key_to_bytes(key)


# --- the SuperLink -------------------------------------------------------------------------------


def run_superlink(busy_milliseconds: int) -> None:
    """Run `flower-superlink` with a patient database.

    Replaced is the tuple ``SQLITE_PRAGMAS`` of `flwr.supercore.sql_mixin`, which every connection that Flower opens
    reads: its ``busy_timeout`` is five seconds, and no flag or variable sets another.

    Args:
        busy_milliseconds: How long a connection waits for its lock.
    """
    # Here: the other processes of the aggregator do without the SuperLink and its database, 35 MB and two seconds.
    from flwr.supercore import sql_mixin  # noqa: PLC0415
    from flwr.superlink.cli import flower_superlink  # noqa: PLC0415

    module = vars(sql_mixin)
    module["SQLITE_PRAGMAS"] = tuple({**dict(module["SQLITE_PRAGMAS"]), "busy_timeout": str(busy_milliseconds)}.items())
    sys.argv[0] = "flower-superlink"
    flower_superlink()
