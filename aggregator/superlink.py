"""Flower's SuperLink with a patient database: ``python -m aggregator.superlink`` takes the flags of `flower-superlink`.

SuperLink gives SQLite five seconds to get a lock. When many nodes upload at once that is not enough; it then answers
with an internal error that the node does not retry, and a whole reply is lost. Here it waits for two minutes.
"""

from typing import Final

from aggregator.flower import run_superlink

BUSY_MILLISECONDS: Final = 120_000


def main() -> None:
    """Run SuperLink."""
    run_superlink(BUSY_MILLISECONDS)


if __name__ == "__main__":
    main()
