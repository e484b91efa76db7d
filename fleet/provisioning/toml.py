"""The operator's TOML files."""

import tomllib
from pathlib import Path
from typing import Any, Final

from protocol.errors import ConfigError

_MOST_BYTES: Final = 1 << 20


def read_toml(path: Path) -> dict[str, Any]:
    """The table that a file holds.

    Raises:
        ConfigError: It cannot be read, is no TOML, or is longer than any of ours.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{path} is larger than {_MOST_BYTES} bytes")
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # tomllib's own error is one of them, and so is that of the encoding
        raise ConfigError(f"{path} is not a TOML file: {error}") from error
