"""A TCP proxy in front of an engine, which fails as networks do.

Whether a connection is a WebSocket is told by its first bytes; nothing else is understood.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

_CHUNK = 1 << 16
_SOCKET_REQUEST = b"GET /ws"
# What ComfyUI sends on the socket when a prompt has ended well; one more frame follows it.
_FINAL_EVENT = b"execution_success"


class Proxy:
    """Listens on a port of its own for an engine on `target_port`, both on loopback."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._links: set[_Link] = set()
        self.loses_final_events = False
        self._listen()

    @property
    def url(self) -> str:
        """What a worker is told to be the engine's address."""
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Refuse connections and cut those that there are."""
        # Closing alone would not wake the thread that waits for the next connection.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for link in list(self._links):
            link.cut()

    @contextmanager
    def refusing(self) -> Generator[None]:
        """Nobody listens for a while."""
        self.close()
        try:
            yield
        finally:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._listen()

    def cut_sockets(self) -> int:
        """Close every WebSocket; returns how many there were."""
        sockets = self._sockets()
        for link in sockets:
            link.cut()
        return len(sockets)

    def silence_sockets(self) -> int:
        """Let nothing more through from the engine on the WebSockets that are open now."""
        sockets = self._sockets()
        for link in sockets:
            link.is_silent = True
        return len(sockets)

    def _sockets(self) -> list[_Link]:
        return [link for link in list(self._links) if link.is_websocket]

    def _listen(self) -> None:
        self._accepting = threading.Thread(target=self._accept, daemon=True, name="proxy")
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target_port))
            except OSError:
                client.close()
                continue
            link = _Link(client, server, self)
            self._links.add(link)
            threading.Thread(target=self._carry, args=(link,), daemon=True).start()

    def _carry(self, link: _Link) -> None:
        back = threading.Thread(target=link.carry_back, daemon=True)
        back.start()
        link.carry_forth()
        back.join()
        link.close()
        self._links.discard(link)


class _Link:
    """One connection and its continuation to the engine."""

    def __init__(self, client: socket.socket, server: socket.socket, proxy: Proxy) -> None:
        self._client, self._server, self._proxy = client, server, proxy
        self.is_websocket = False
        self.is_silent = False

    def carry_forth(self) -> None:
        """From the worker to the engine, until either closes."""
        with suppress(OSError):
            while chunk := self._client.recv(_CHUNK):
                self.is_websocket |= chunk.startswith(_SOCKET_REQUEST)
                self._server.sendall(chunk)
        self.cut()

    def carry_back(self) -> None:
        """From the engine to the worker, until either closes."""
        with suppress(OSError):
            while chunk := self._server.recv(_CHUNK):
                if self.is_websocket and self._proxy.loses_final_events:
                    self.is_silent |= _FINAL_EVENT in chunk
                if not self.is_silent:
                    self._client.sendall(chunk)
        self.cut()

    def cut(self) -> None:
        """End both halves; who waits for them wakes."""
        for half in (self._client, self._server):
            with suppress(OSError):
                half.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._client.close()
        self._server.close()
