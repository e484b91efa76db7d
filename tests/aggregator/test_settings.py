"""``aggregator.settings``: two paths from the environment, and no default for either."""

from pathlib import Path

import pytest

from aggregator.settings import AggregatorSettings, read_settings
from protocol.errors import ConfigError

ENVIRONMENT = {"PRUNESEAL_ROSTER": "/etc/roster.json", "PRUNESEAL_RUN": "/var/run-1", "HOME": "/"}


def test_both_paths_come_from_the_environment() -> None:
    assert read_settings(ENVIRONMENT) == AggregatorSettings(Path("/etc/roster.json"), Path("/var/run-1"))


@pytest.mark.parametrize("name", ["PRUNESEAL_ROSTER", "PRUNESEAL_RUN"])
def test_a_path_that_is_not_set_is_asked_for_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        read_settings({key: value for key, value in ENVIRONMENT.items() if key != name})
