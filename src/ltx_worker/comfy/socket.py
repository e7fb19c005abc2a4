"""ComfyUI's WebSocket, which is for progress only: it may fail at any time and loses no result."""

from __future__ import annotations

import websocket

from ltx_worker.stop import StopSignal

# How long one wait for a frame lasts: the stop signal and the process are checked this often.
_RECEIVE_TIMEOUT_S = 0.2
_CONNECT_TIMEOUT_S = 5.0


class ComfySocket:
    """Closed at first; opened when asked to, also again after a loss."""

    def __init__(self, url: str, stop: StopSignal) -> None:
        self._url = url
        self._stop = stop
        self._connection: websocket.WebSocket | None = None

    def __enter__(self) -> ComfySocket:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()

    @property
    def is_open(self) -> bool:
        """Whether it is connected, as far as anybody knows."""
        return self._connection is not None

    def open(self) -> bool:
        """Connect; whether that worked."""
        try:
            self._connection = self._stop.call(self._connect)
        except (OSError, websocket.WebSocketException):
            self._connection = None
        return self.is_open

    def receive(self) -> str | bytes | None:
        """The next frame; None when none comes for a moment, or the socket is lost."""
        if self._connection is None:
            return None
        try:
            return self._connection.recv()
        except websocket.WebSocketTimeoutException:
            return None
        except (OSError, websocket.WebSocketException):
            self._drop()
            return None

    def _connect(self) -> websocket.WebSocket:
        connection = websocket.create_connection(
            self._url, timeout=_CONNECT_TIMEOUT_S, http_no_proxy=["*"], skip_utf8_validation=True
        )
        connection.settimeout(_RECEIVE_TIMEOUT_S)
        return connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close(timeout=0)
            # A connection that is lost already is not closed by `close`.
            self._connection.shutdown()
            self._connection = None
