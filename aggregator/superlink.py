"""Flower's SuperLink with a patient database: ``python -m aggregator.superlink`` takes the flags of `flower-superlink`.

SuperLink gives SQLite five seconds to get a lock. When many nodes upload at once that is not enough; it then answers
with an internal error that the node does not retry, and a whole reply is lost. Here it waits for two minutes.
"""

import sys

from flwr.supercore import sql_mixin
from flwr.superlink.cli import flower_superlink

BUSY_MILLISECONDS = 120_000


def be_patient() -> None:
    """Let every connection that Flower opens from now on wait for its lock."""
    module = vars(sql_mixin)
    module["SQLITE_PRAGMAS"] = tuple({**dict(module["SQLITE_PRAGMAS"]), "busy_timeout": str(BUSY_MILLISECONDS)}.items())


def main() -> None:
    """Run SuperLink."""
    be_patient()
    sys.argv[0] = "flower-superlink"
    flower_superlink()


if __name__ == "__main__":
    main()
