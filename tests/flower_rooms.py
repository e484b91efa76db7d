"""Every part of Flower's private rooms that PruneSeal relies on, and what of it must not change.

Flower promises `flwr.app`, `flwr.clientapp` and `flwr.serverapp` alone. Where a line below no longer holds for another
version of Flower, read the docstring of the module that uses it and Flower's new code; then change both.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from types import CodeType
from typing import Any, Final


@dataclass(frozen=True)
class Part:
    """One private thing.

    Attributes:
        user: The module of ours that relies on it.
        place: The module of Flower that holds it.
        name: Its name there; dotted for a thing within a class.
        parameters: The names of what it is called with; None where it is not called, or with nothing.
        fields: Attributes, or fields of a message, that are read or written.
        value: What a constant must be.
        calls: Names that its code must look up in its module, since they are replaced there.
    """

    user: str
    place: str
    name: str
    parameters: tuple[str, ...] | None = None
    fields: tuple[str, ...] = ()
    value: Any = None
    calls: tuple[str, ...] = field(default=())

    def wrong(self) -> list[str]:
        """What no longer holds, in words; nothing where all does."""
        try:
            thing: Any = import_module(self.place)
            for step in self.name.split("."):
                thing = getattr(thing, step)
        except (ImportError, AttributeError) as error:
            return [f"it is gone: {error}"]
        found = []
        if self.parameters is not None and (missing := set(self.parameters) - set(signature(thing).parameters)):
            found.append(f"it takes no {sorted(missing)}: {signature(thing)}")
        if missing := set(self.fields) - _attributes(thing):
            found.append(f"it has no {sorted(missing)}")
        if self.value is not None and thing != self.value:
            found.append(f"it is {thing!r}, not {self.value!r}")
        if missing := set(self.calls) - _globals(thing):
            found.append(f"it does not look up {sorted(missing)}, so that a replacement has no effect")
        return found


def _attributes(thing: Any) -> set[str]:
    """What a thing has, or an instance of it."""
    descriptor = getattr(thing, "DESCRIPTOR", None)
    message = set(descriptor.fields_by_name) if descriptor is not None else set[str]()
    return message | set(dir(thing)) | set(getattr(thing, "__dataclass_fields__", ()))


def _globals(thing: Callable[..., Any]) -> set[str]:
    """The names that a function and those within it look up."""
    waiting, names = [thing.__code__] if hasattr(thing, "__code__") else [], set[str]()
    while waiting:
        code = waiting.pop()
        names |= set(code.co_names)
        waiting += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
    return names


_AGGREGATOR, _EDGE, _FLEET = "aggregator.flower", "edge_client.flower", "fleet.flower"
_CONTROL, _STEPS = "flwr.proto.control_pb2", "flwr.supernode.start_client_internal"
_PULL = ("state", "object_store", "node_config", "receive", "get_run", "get_fab", "pull_object")

PARTS: Final = (
    # --- the Control API ---
    Part(_AGGREGATOR, "flwr.cli.build", "build_fab_from_disk", ("app",)),
    Part(_AGGREGATOR, "flwr.cli.flower_config", "read_superlink_connection", ("connection_name",)),
    Part(_AGGREGATOR, "flwr.cli.utils", "init_http_client_from_connection", ("connection",)),
    Part(_AGGREGATOR, "flwr.supercore.control", "ControlHttpClient.StartRun", ("request",)),
    Part(_AGGREGATOR, "flwr.supercore.control", "ControlHttpClient.StopRun", ("request",)),
    Part(_AGGREGATOR, "flwr.supercore.control", "ControlHttpClient.ListNodes", ("request",)),
    Part(_AGGREGATOR, "flwr.supercore.control", "ControlHttpClient.RegisterNode", ("request",)),
    Part(_AGGREGATOR, "flwr.supercore.control", "ControlHttpClient.UnregisterNode", ("request",)),
    Part(_AGGREGATOR, "flwr.supercore.control", "ControlHttpClient.close", ()),
    Part(_AGGREGATOR, "flwr.common.serde", "fab_to_proto", ("fab",)),
    Part(_AGGREGATOR, "flwr.supercore.fab", "Fab", ("hash_str", "content", "verifications")),
    Part(_AGGREGATOR, _CONTROL, "StartRunRequest", fields=("fab",)),
    Part(_AGGREGATOR, _CONTROL, "StartRunResponse", fields=("run_id", "note")),
    Part(_AGGREGATOR, _CONTROL, "StopRunRequest", fields=("run_id",)),
    Part(_AGGREGATOR, _CONTROL, "ListNodesRequest"),
    Part(_AGGREGATOR, _CONTROL, "ListNodesResponse", fields=("nodes_info",)),
    Part(_AGGREGATOR, _CONTROL, "RegisterNodeRequest", fields=("public_key", "name")),
    Part(_AGGREGATOR, _CONTROL, "UnregisterNodeRequest", fields=("node_id",)),
    Part(_AGGREGATOR, "flwr.proto.node_pb2", "NodeInfo", fields=("node_id", "name", "public_key", "status")),
    Part(_AGGREGATOR, "flwr.supercore.constant", "NodeStatus.UNREGISTERED", value="unregistered"),
    Part(_AGGREGATOR, "flwr.supercore.primitives.asymmetric", "public_key_to_bytes", ("public_key",)),
    # --- the SuperLink: its database's patience is replaced ---
    Part(_AGGREGATOR, "flwr.superlink.cli", "flower_superlink", ()),
    Part(_AGGREGATOR, "flwr.supercore.sql_mixin", "SQLITE_PRAGMAS"),
    Part(_AGGREGATOR, "flwr.supercore.sql_mixin", "_set_sqlite_pragmas", calls=("SQLITE_PRAGMAS",)),
    # --- the SuperExec: its executor is replaced ---
    Part(_EDGE, "flwr.supercore.cli", "flower_superexec", ()),
    Part(_EDGE, "flwr.supercore.superexec.run_superexec", "run_superexec", calls=("get_executor",)),
    Part(_EDGE, "flwr.supercore.superexec.run_superexec", "get_executor"),
    Part(_EDGE, "flwr.supercore.superexec.executor", "Executor.get_eligible_capacity"),
    Part(_EDGE, "flwr.supercore.superexec.executor", "Executor.launch", ("spec",)),
    Part(_EDGE, "flwr.supercore.superexec.executor", "Executor.reconcile"),
    Part(_EDGE, "flwr.supercore.superexec.executor", "Executor.close"),
    Part(
        _EDGE,
        "flwr.supercore.superexec.executor",
        "ExecutionSpec",
        fields=("task_type", "runtime_api_address", "token", "insecure", "root_certificates_path", "parent_pid"),
    ),
    Part(_EDGE, "flwr.supercore.superexec.executor", "LaunchResult.accepted", ()),
    Part(_EDGE, "flwr.supercore.superexec.executor", "LaunchResult.failed", ("message",)),
    Part(_EDGE, "flwr.supercore.constant", "TaskType.CLIENT_APP", value="flwr-clientapp"),
    Part(_EDGE, "flwr.supercore.exit.exit_handler", "registered_exit_handlers.clear"),
    # --- the app of a client: what unpacks its bundle is replaced ---
    Part(_EDGE, "flwr.supernode.cli", "flwr_clientapp", ()),
    Part(_EDGE, "flwr.supernode.runtime.run_clientapp", "install_from_fab"),
    Part(_EDGE, "flwr.supernode.runtime.run_clientapp", "run_clientapp", calls=("install_from_fab",)),
    # --- the SuperNode: its two steps are replaced ---
    Part(_EDGE, "flwr.supernode.cli", "flower_supernode", ()),
    Part(_EDGE, _STEPS, "start_client_internal", calls=("_pull_and_store_message", "_push_messages")),
    Part(_EDGE, _STEPS, "_pull_and_store_message", (*_PULL, "confirm_message_received", "trusted_entities")),
    Part(_EDGE, _STEPS, "_push_messages", ("state", "object_store", "send", "push_object")),
    Part(_EDGE, _STEPS, "_insert_message", ("msg", "state", "store")),
    Part(_EDGE, "flwr.supernode.nodestate", "NodeState.create_task"),
    Part(_EDGE, "flwr.supernode.nodestate", "NodeState.store_message", ("message",)),
    Part(_EDGE, "flwr.supernode.nodestate", "NodeState.get_messages_legacy", ("is_reply",)),
    Part(_EDGE, "flwr.supernode.nodestate", "NodeState.get_tasks", ("task_ids",)),
    Part(_EDGE, "flwr.supernode.nodestate", "NodeState.finish_task", ("task_id", "sub_status", "details")),
    Part(_EDGE, "flwr.supernode.nodestate", "NodeState.delete_messages", ("message_ids",)),
    Part(_EDGE, "flwr.proto.task_pb2", "Task", fields=("task_id", "status")),
    Part(_EDGE, "flwr.supercore.object_store", "ObjectStore.get", ("object_id",)),
    Part(_EDGE, "flwr.supercore.object_store", "ObjectStore.delete", ("object_id",)),
    Part(_EDGE, "flwr.supernode.nodestate.in_memory_nodestate", "CLIENT_APP_CRASHED_ERROR", fields=("code", "reason")),
    Part(_EDGE, "flwr.common.constant", "Status.FINISHED", value="finished"),
    Part(_EDGE, "flwr.common.constant", "SubStatus.FAILED", value="failed"),
    # --- a grid without a network ---
    Part(_FLEET, "flwr.supercore.task_identity", "TaskIdentity", fields=("_task_id", "_run_id", "_node_id")),
    Part(_FLEET, "flwr.supercore.run", "Run.create_empty", ("run_id",)),
    Part(_FLEET, "flwr.proto.node_pb2", "NodeInfo", fields=("node_id", "name")),
    Part(_FLEET, "flwr.app", "Message", fields=("object_id", "deflate", "metadata")),
    Part(_FLEET, "flwr.supercore.inflatable.inflatable_object", "get_all_nested_objects", ("obj",)),
    Part(
        _FLEET,
        "flwr.supercore.inflatable.inflatable_utils",
        "inflate_object_from_contents",
        ("object_id", "object_contents"),
    ),
    Part(_FLEET, "flwr.common.constant", "ErrorCode.CLIENT_APP_RAISED_EXCEPTION", value=2),
    Part(_FLEET, "flwr.common.constant", "ErrorCode.NODE_UNAVAILABLE", value=5),
    Part(_FLEET, "flwr.common.constant", "ErrorCode.CLIENT_APP_CRASHED", value=8),
    # --- bundles ---
    Part(_FLEET, "flwr.cli.build", "build_fab_from_files", ("files",)),
)
