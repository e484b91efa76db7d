"""What one client, or very many, may take of the server: connections, seconds, bytes."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from protocol.errors import Overloaded

_HEAD: Final = 1 << 16
_FULL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: 41\r\n"
    b'connection: close\r\n\r\n{"error":"too many connections are open"}'
)


class ByteBudget:
    """Bytes of request bodies that may be in memory at the same time, over all clients."""

    def __init__(self, size: int) -> None:
        self._left = size

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Hold so many bytes.

        Raises:
            Overloaded: There are not as many left.
        """
        if size > self._left:
            raise Overloaded("the server holds as many requests as it has memory for; try again later")
        self._left -= size
        try:
            yield
        finally:
            self._left += size


def guarded(connections: int, seconds: float, max_bytes: int) -> type[HttpToolsProtocol]:
    """The protocol of uvicorn with a cap of open connections, a limit of time and one of bytes.

    uvicorn itself answers beyond a cap only when a whole request has arrived, waits for ever for a first one, and takes
    a head of any length.

    Args:
        connections: How many may be open; one more is told 503 and closed.
        seconds: A connection is closed when a request on it has not arrived whole this long after the connection was
            opened, or after the request began.
        max_bytes: Of a request's body. A connection is closed at a head longer than 64 KiB, or at a request of more
            than twice as many bytes, whatever they are.
    """

    class Guarded(HttpToolsProtocol):
        _deadline: asyncio.TimerHandle | None = None
        _in_head = True
        _received = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > connections:
                transport.write(_FULL)
                transport.close()
            else:
                self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._received += len(data)
            super().data_received(data)
            if self._received > (_HEAD if self._in_head else 2 * max_bytes + _HEAD):
                self.transport.abort()

        def on_message_begin(self) -> None:
            self._in_head, self._received = True, 0
            self._arm()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_head = False
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._in_head, self._received = True, 0
            self._disarm()
            super().on_message_complete()

        def _arm(self) -> None:
            self._disarm()
            self._deadline = self.loop.call_later(seconds, self.transport.abort)

        def _disarm(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return Guarded
