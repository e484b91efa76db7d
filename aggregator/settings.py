"""What is private to the aggregator: its roster and its state folder. Read once, when a run starts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import ConfigError


@dataclass(frozen=True)
class AggregatorSettings:
    """The aggregator's private settings.

    Attributes:
        roster: The roster file.
        state: The folder of the run; a run found there is resumed.
    """

    roster: Path
    state: Path


def read_settings(environment: Mapping[str, str]) -> AggregatorSettings:
    """From ``PRUNESEAL_ROSTER`` and ``PRUNESEAL_RUN``.

    Raises:
        ConfigError: One of them is not set.
    """
    for name in ("PRUNESEAL_ROSTER", "PRUNESEAL_RUN"):
        if name not in environment:
            raise ConfigError(f"set {name}: the aggregator needs its roster file and a folder for the run")
    return AggregatorSettings(Path(environment["PRUNESEAL_ROSTER"]), Path(environment["PRUNESEAL_RUN"]))
