"""Flower's SuperNode that does not hang: ``python -m edge_client.supernode``, with the flags of Flower's own.

* When its connection breaks in the middle of a TLS handshake, Flower's SuperNode gives up: it logs the error and its
  main function raises it or simply returns, but other threads keep the process alive, connected to nothing, and whoever
  would start it again never learns. Here the process ends with exit code 1.
* When a client app is killed while it hands over its reply, Flower's SuperNode waits for the rest of it for ever, and
  answers nothing else. Here it gives the reply up: the node is lost for that message, not for
  the run.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from flwr.supercore.object_store import ObjectStore
from flwr.supernode import start_client_internal as flower
from flwr.supernode.cli import flower_supernode

PATIENCE: Final = 60.0
"""Seconds that a part of a reply, at most some megabytes from the next process, may take."""

_log = logging.getLogger("pruneseal.supernode")


class _Impatient:
    """An object store that does not let anybody wait for one object longer than `PATIENCE`."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._missed: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get(self, object_id: str) -> bytes | None:
        """What the store has; empty where it is still to come.

        Raises:
            TimeoutError: It does not come.
        """
        if (content := self._store.get(object_id)) == b"":
            now = time.monotonic()
            if now - self._missed.setdefault(object_id, now) > PATIENCE:
                raise TimeoutError("the client app has ended while it handed over its reply")
        return content


def patiently(push_messages: Callable[..., None]) -> Callable[..., None]:
    """Flower's `_push_messages`, which logs what an object store raises and forgets the reply, with such a store."""

    def push(state: Any, object_store: ObjectStore, *functions: Any, **named: Any) -> None:
        push_messages(state, _Impatient(object_store), *functions, **named)

    return push


def main() -> None:
    """Run SuperNode."""
    sys.argv[0] = "flower-supernode"
    vars(flower)["_push_messages"] = patiently(vars(flower)["_push_messages"])
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
