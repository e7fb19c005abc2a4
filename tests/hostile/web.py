"""The internet as a hostile caller arranges it: names, servers, and a canary for the rest.

The worker's own code is left alone. Below it, `socket.getaddrinfo` answers for names of the
reserved domain `example`, and `socket.socket.connect` leads one public address to the test servers
and every other address to the canary, which therefore counts each connection that should not be.
"""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import trustme

PUBLIC = "93.184.216.34"
# What a server sends as its whole answer, in the pieces it is sent in.
Answer = Callable[[], Iterator[bytes]]
TRUSTED = ("media.example", "mixed.example", "rebinding.example")

_real_getaddrinfo = socket.getaddrinfo
_RealSocket = socket.socket


@dataclass
class Web:
    """What is known of the network while it is hostile."""

    ports: Mapping[int, int]
    canary_port: int
    # Each look-up of a name takes the next answer; the last one stays.
    names: dict[str, list[list[str]]] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    # Addresses outside the test servers that somebody dialled.
    strays: list[Any] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    canary_hits: int = 0

    def lookup(self, host: Any, port: Any, *args: Any, **options: Any) -> list[Any]:
        """`socket.getaddrinfo` for this network; numbers are left to the real one."""
        name = host.decode() if isinstance(host, bytes) else host
        if name in self.names:
            answers = self.names[name]
            addresses = answers.pop(0) if len(answers) > 1 else answers[0]
            return [
                found
                for address in addresses
                for found in _real_getaddrinfo(address, port, type=socket.SOCK_STREAM)
            ]
        if str(name).endswith((".example", ".invalid")):
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return _real_getaddrinfo(host, port, *args, **options)

    def route(self, address: Any) -> Any:
        """Where a connection to `address` really goes."""
        if not isinstance(address, tuple):
            return address
        if address[0] == PUBLIC and address[1] in self.ports:
            return ("127.0.0.1", self.ports[address[1]])
        if address[1] in (80, 443, 22):
            self.strays.append(address)
            return ("127.0.0.1", self.canary_port)
        return address


@contextmanager
def hostile_web(folder: Path) -> Generator[Web]:
    """Servers on loopback that `https://media.example` and `http://media.example` lead to."""
    authority = trustme.CA()
    trust = folder / "authority.pem"
    authority.cert_pem.write_to_path(str(trust))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*TRUSTED).configure_cert(context)
    web = Web({}, 0)
    with (
        _serving(web, context) as https,
        _serving(web, None) as http,
        _canary(web) as canary_port,
    ):
        web.ports, web.canary_port = {443: https, 80: http}, canary_port

        class Routed(_RealSocket):
            def connect(self, address: Any) -> None:
                super().connect(web.route(address))

        with (
            patch.object(socket, "getaddrinfo", web.lookup),
            patch.object(socket, "socket", Routed),
            # OpenSSL's own setting for whom to trust.
            patch.dict(os.environ, {"SSL_CERT_FILE": str(trust)}),
        ):
            yield web


@contextmanager
def _serving(web: Web, context: ssl.SSLContext | None) -> Generator[int]:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                connection = self.request
                connection.settimeout(20)
                if context is not None:
                    connection = context.wrap_socket(connection, server_side=True)
                with connection:
                    request = b""
                    while b"\r\n\r\n" not in request and (piece := connection.recv(4096)):
                        request += piece
                    web.requests.append(request)
                    path = request.split(b" ", 2)[1].decode().partition("?")[0]
                    for piece in web.answers[path]():
                        connection.sendall(piece)

    with _running(Handler) as port:
        yield port


@contextmanager
def _canary(web: Web) -> Generator[int]:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            web.canary_hits += 1

    with _running(Handler) as port:
        yield port


@contextmanager
def _running(handler: type[socketserver.BaseRequestHandler]) -> Generator[int]:
    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 64

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that leaves early is what these tests are about."""

    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
