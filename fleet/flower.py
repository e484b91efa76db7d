"""Flower's private rooms, as far as the operator's desk enters them.

Flower promises its public packages alone: `flwr.app`, `flwr.clientapp`, `flwr.serverapp`. What the desk needs of
`flwr.cli`, `flwr.common`, `flwr.proto` and `flwr.supercore` is imported here and nowhere else.
``tests/test_flower_rooms.py`` names every part of it, and is the first to fail when another version of Flower has moved
one.

* A grid without a network (:mod:`fleet.running.local_grid`) does what Flower's runtime does around an app: it says who
  the process is, names the nodes, takes messages apart into the objects that would travel, and puts them together.
* The digest of a bundle must be known before `flwr` builds it.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["ErrorCode", "NodeInfo", "Parcel", "Run", "be_task", "empty_run", "make_bundle", "unwrap", "wrap"]


def be_task(run: int, node: int) -> None:
    """Say who this process is: a message that is made in it comes from this node of this run."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run, node


def empty_run(number: int) -> Run:
    """Flower's description of a run of which nothing but its number matters."""
    return Run.create_empty(number)


# --- messages as they travel -------------------------------------------------------------------------


@dataclass(frozen=True)
class Parcel:
    """A message as Flower's objects, by id."""

    message_id: str
    objects: Mapping[str, bytes]


def wrap(message: Message) -> Parcel:
    """Take a message apart into what would travel.

    Flower gives a message its number as it sends it, the digest of the message without one; nothing public sets it.
    """
    message.metadata.__dict__["_message_id"] = ""
    parcel = Parcel(message.object_id, {i: o.deflate() for i, o in get_all_nested_objects(message).items()})
    message.metadata.__dict__["_message_id"] = parcel.message_id
    return parcel


def unwrap(parcel: Parcel) -> Message:
    """Put a message together again.

    Raises:
        TypeError: The parcel holds something else.
    """
    message = inflate_object_from_contents(parcel.message_id, dict(parcel.objects))
    if not isinstance(message, Message):
        raise TypeError(f"a parcel holds a {type(message).__name__}, not a message")
    message.metadata.__dict__["_message_id"] = parcel.message_id
    return message


# --- bundles -----------------------------------------------------------------------------------------


def make_bundle(files: Mapping[str, bytes]) -> bytes:
    """The bundle that `flwr run` makes of an app with these files."""
    # Here: the processes of a local run's clients do without Flower's command line, 25 MB and a second each.
    from flwr.cli.build import build_fab_from_files  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "GitWildMatchPattern", DeprecationWarning)  # of a library that Flower uses
        return build_fab_from_files(files)[0]
