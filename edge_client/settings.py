"""What is private to one node: where its kit, its state and its data are. Read once, when a message arrives.

From the environment: ``PRUNESEAL_KIT`` is the folder of this node's keys, or ``PRUNESEAL_KITS`` that of the kits of
many nodes on one machine (a simulation), of which this one is ``node-<partition-id>``. ``PRUNESEAL_STATE`` is where
the node keeps what must survive between two messages (by default ``state`` in its kit); ``PRUNESEAL_DATA`` names data
that is this node's own, instead of a part of the plan's; ``PRUNESEAL_THREADS`` the threads of torch, 1 by default;
``PRUNESEAL_OUT`` the folder that the final model is left in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import ConfigError


@dataclass(frozen=True)
class NodeSettings:
    """One node's private settings.

    Attributes:
        kit: The folder of its keys.
        state: The folder of what it keeps.
        data: Data that is its own, or None for its part of the plan's data.
        position: Which part, from 0.
        nodes: Of how many.
        threads: The threads of torch.
        out: The folder for the final model, or None to leave none.
    """

    kit: Path
    state: Path
    data: str | None
    position: int
    nodes: int
    threads: int
    out: Path | None = None


def read_settings(environment: Mapping[str, str], node_config: Mapping[str, object]) -> NodeSettings:
    """The settings of this node.

    Args:
        environment: The process's environment.
        node_config: Flower's node config: ``partition-id`` and ``num-partitions``, which a simulation sets.

    Raises:
        ConfigError: The kit's folder is not named, or a number is not one or out of range.
    """
    position, nodes = _number(node_config, "partition-id", 0), _number(node_config, "num-partitions", 1)
    if not 0 <= position < nodes:
        raise ConfigError(
            f"partition-id must lie between 0 and {nodes - 1}, for num-partitions is {nodes}; not {position}"
        )
    threads = _number(environment, "PRUNESEAL_THREADS", 1)
    if threads < 1:
        raise ConfigError(f"PRUNESEAL_THREADS must be 1 or more, not {threads}")
    if "PRUNESEAL_KIT" in environment:
        kit, own = Path(environment["PRUNESEAL_KIT"]), ""
    elif "PRUNESEAL_KITS" in environment:
        kit, own = Path(environment["PRUNESEAL_KITS"]) / f"node-{position}", f"node-{position}"
    else:
        raise ConfigError("set PRUNESEAL_KIT to the folder of this node's keys (`pruneseal provision` makes it)")
    return NodeSettings(
        kit=kit,
        state=Path(environment["PRUNESEAL_STATE"]) / own if "PRUNESEAL_STATE" in environment else kit / "state",
        data=environment.get("PRUNESEAL_DATA"),
        position=position,
        nodes=nodes,
        threads=threads,
        out=Path(environment["PRUNESEAL_OUT"]) / own if "PRUNESEAL_OUT" in environment else None,
    )


def _number(mapping: Mapping[str, object], key: str, default: int) -> int:
    try:
        return int(str(mapping.get(key, default)))
    except ValueError:
        raise ConfigError(f"{key} must be a whole number, not {mapping[key]!r}") from None
