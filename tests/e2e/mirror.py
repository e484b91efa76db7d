"""A package index behind a proxy that opens TLS, as companies have them, with certificates of a CA of its own."""

import re
import socket
import ssl
import threading
from collections import defaultdict
from contextlib import ExitStack, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

from fleet.provisioning.certificates import SERVER_FILE, SERVER_KEY_FILE, Authority

HOST = "packages.example"  # RFC 2606: there is no such host, so only the proxy can lead to it


class Mirror:
    """A folder of wheels as a package index (PEP 503) that only a CONNECT proxy on this machine reaches.

    Attributes:
        authority: The proxy's CA.
        connected: The hosts and ports that clients asked the proxy for.
        served: The wheels that were sent.
        port: Of the proxy.
    """

    def __init__(self, wheels: Path, folder: Path) -> None:
        self.authority = Authority.create("Company")
        self.connected: list[str] = []
        self.served: list[str] = []
        self.authority.issue(folder, [HOST])
        _write_index(wheels, folder / "index")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / SERVER_FILE, folder / SERVER_KEY_FILE)
        self._index = ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(_Index, directory=str(folder / "index"), served=self.served)
        )
        self._index.socket = context.wrap_socket(self._index.socket, server_side=True, do_handshake_on_connect=False)
        self._proxy = ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(_Proxy, target=self._index.server_port, connected=self.connected)
        )
        self.port = self._proxy.server_port
        self._stack = ExitStack()

    @property
    def arguments(self) -> list[str]:
        """The build arguments that lead to it."""
        return [
            *("--build-arg", f"HTTPS_PROXY=http://127.0.0.1:{self.port}"),
            *("--build-arg", f"PIP_INDEX_URL=https://{HOST}/simple/"),
        ]

    def __enter__(self) -> Self:
        for server in (self._index, self._proxy):
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self._stack.callback(server.server_close)
            self._stack.callback(server.shutdown)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _write_index(wheels: Path, out: Path) -> None:
    links: dict[str, list[str]] = defaultdict(list)
    (out / "wheels").mkdir(parents=True)
    for wheel in wheels.glob("*.whl"):
        (out / "wheels" / wheel.name).symlink_to(wheel)
        name = re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower()
        links[name].append(f'<a href="../../wheels/{wheel.name}">{wheel.name}</a>')
    for name, lines in links.items():
        page = out / "simple" / name / "index.html"
        page.parent.mkdir(parents=True)
        page.write_text("<!DOCTYPE html><html><body>" + "\n".join(lines) + "</body></html>")


class _Index(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: object, directory: str, served: list[str]) -> None:
        self._served = served
        super().__init__(*arguments, directory=directory)  # type: ignore[arg-type]

    def setup(self) -> None:
        self.request.settimeout(60)
        super().setup()

    def handle(self) -> None:
        with suppress(ssl.SSLError):  # a client that does not trust the certificate hangs up
            super().handle()

    def log_message(self, format: str, *arguments: object) -> None:  # the name of the base class
        if self.path.endswith(".whl"):
            self._served.append(self.path.rpartition("/")[2])


class _Proxy(BaseHTTPRequestHandler):
    def __init__(self, *arguments: object, target: int, connected: list[str]) -> None:
        self._target, self._connected = target, connected
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_CONNECT(self) -> None:  # the name that http.server calls
        self._connected.append(self.path)
        if self.path != f"{HOST}:443":
            self.send_error(502)
            return
        with socket.create_connection(("127.0.0.1", self._target)) as far:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=_pump, args=(far, self.connection), daemon=True)
            back.start()
            _pump(self.connection, far)
            back.join()
        self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:  # the name of the base class
        """Say nothing."""


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
