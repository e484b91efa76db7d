"""Flower's SuperNode that ends when it fails: ``python -m edge_client.supernode``, with the flags of Flower's own.

When its connection breaks in the middle of a TLS handshake, Flower's SuperNode gives up: it logs the error and its main
function raises it or simply returns, but other threads keep the process alive, connected to nothing, and whoever would
start it again never learns. Here the process ends with exit code 1.
"""

import logging
import os
import sys

from flwr.supernode.cli import flower_supernode

_log = logging.getLogger("pruneseal.supernode")


def main() -> None:
    """Run SuperNode."""
    sys.argv[0] = "flower-supernode"
    reason: Exception | None = None
    try:
        flower_supernode()  # as long as it is well, it does not return
    except Exception as error:
        reason = error
    _log.error("the SuperNode has failed; start it again", exc_info=reason)
    logging.shutdown()
    os._exit(1)  # not sys.exit, which would wait for the other threads


if __name__ == "__main__":
    main()
