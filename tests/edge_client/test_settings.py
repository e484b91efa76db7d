"""``edge_client.settings``: read from environment and node config, and refused where they make no sense."""

from pathlib import Path

import pytest

from edge_client.settings import NodeSettings, read_settings
from protocol.errors import ConfigError


def test_a_deployed_node_has_one_kit_and_everything_else_follows() -> None:
    assert read_settings({"PRUNESEAL_KIT": "kit"}, {}) == NodeSettings(Path("kit"), Path("kit/state"), None, 0, 1, 1)


def test_everything_can_be_named() -> None:
    environment = {
        "PRUNESEAL_KIT": "kit",
        "PRUNESEAL_STATE": "elsewhere",
        "PRUNESEAL_DATA": "npz:mine.npz",
        "PRUNESEAL_THREADS": "4",
        "PRUNESEAL_OUT": "results",
    }
    settings = read_settings(environment, {"partition-id": 2, "num-partitions": "3"})
    assert settings == NodeSettings(Path("kit"), Path("elsewhere"), "npz:mine.npz", 2, 3, 4, Path("results"))


def test_a_simulated_node_finds_its_kit_by_its_position() -> None:
    settings = read_settings({"PRUNESEAL_KITS": "kits"}, {"partition-id": 7, "num-partitions": 10})
    assert settings == NodeSettings(Path("kits/node-7"), Path("kits/node-7/state"), None, 7, 10, 1)


def test_a_nodes_own_kit_comes_before_the_kits_of_many() -> None:
    assert read_settings({"PRUNESEAL_KIT": "kit", "PRUNESEAL_KITS": "kits"}, {}).kit == Path("kit")


def test_without_a_kit_there_is_nothing_to_do() -> None:
    with pytest.raises(ConfigError, match="set PRUNESEAL_KIT to the folder of this node's keys"):
        read_settings({"PRUNESEAL_DATA": "digits"}, {})


@pytest.mark.parametrize("value", ["one", "", "1.5", None, 2.0, True])
@pytest.mark.parametrize("key", ["partition-id", "num-partitions"])
def test_a_position_that_is_no_whole_number_is_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be a whole number, not {value!r}"):
        read_settings({"PRUNESEAL_KIT": "kit"}, {key: value})


@pytest.mark.parametrize("threads", ["many", "0", "-1"])
def test_a_number_of_threads_that_torch_cannot_use_is_refused(threads: str) -> None:
    with pytest.raises(ConfigError, match="PRUNESEAL_THREADS must be"):
        read_settings({"PRUNESEAL_KIT": "kit", "PRUNESEAL_THREADS": threads}, {})


@pytest.mark.parametrize(("position", "nodes"), [(-1, 3), (3, 3), (0, 0), (1, 1)])
def test_a_position_outside_the_federation_is_refused(position: int, nodes: int) -> None:
    with pytest.raises(ConfigError, match=f"partition-id must lie between 0 and {nodes - 1}, .* not {position}"):
        read_settings({"PRUNESEAL_KIT": "kit"}, {"partition-id": position, "num-partitions": nodes})
