"""The WebSocket side: who listens, and sending events in the order they happened.

Events are put in a queue from any thread and sent by one task, so a client sees them in order. As
in ComfyUI, a client id names one socket: a second connection takes it over, and whichever of the
two ends first takes the id out of use.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import WSMsgType, web

from ltx_worker.workflow.node_inputs import is_object

_FEATURES = {"supports_preview_metadata": True, "max_upload_size": 104857600, "assets": False}


class Sockets:
    """The connected clients. Made inside the event loop that serves them.

    While `hushed`, nothing is sent to anybody.
    """

    def __init__(self) -> None:
        self.hushed = False
        self._loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._by_client: dict[str, web.WebSocketResponse] = {}
        self._silent: set[web.WebSocketResponse] = set()
        self._closing: set[asyncio.Task[bool]] = set()

    def send(self, event: str, data: Mapping[str, Any], client_id: str | None = None) -> None:
        """Queue an event for one client, or with None for all. Callable from any thread."""
        if not self.hushed:
            self._post(lambda: self._deliver(event, data, client_id))

    def drop(self, client_id: str) -> None:
        """Close a client's socket once what is queued has been sent."""
        self._post(lambda: self._close(client_id))

    def silence(self, client_id: str) -> None:
        """Never send to a client's present socket again, and leave it open."""
        self._post(lambda: self._mute(client_id))

    def _post(self, action: Callable[[], Awaitable[None]]) -> None:
        self._loop.call_soon_threadsafe(self._outbox.put_nowait, action)

    async def publish(self) -> None:
        """Carry out what is queued, for ever."""
        while True:
            action = await self._outbox.get()
            await action()

    async def serve(
        self, request: web.Request, status: Callable[[], dict[str, Any]], current: str | None
    ) -> web.WebSocketResponse:
        """Hold one connection; `current` is the node that the client's own prompt is at."""
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(request)
        client_id = request.query.get("clientId") or uuid.uuid4().hex
        self._by_client[client_id] = socket
        try:
            await self._deliver("status", {"status": status(), "sid": client_id}, client_id)
            if current is not None:
                await self._deliver("executing", {"node": current}, client_id)
            await self._listen(socket, client_id)
        finally:
            self._by_client.pop(client_id, None)
            self._silent.discard(socket)
        return socket

    async def _listen(self, socket: web.WebSocketResponse, client_id: str) -> None:
        first = True
        async for message in socket:
            if message.type is WSMsgType.PING and socket not in self._silent:
                await socket.pong(message.data)
            elif message.type is WSMsgType.TEXT:
                if first and _kind(message.data) == "feature_flags":
                    await self._deliver("feature_flags", _FEATURES, client_id)
                first = False

    async def _deliver(self, event: str, data: Mapping[str, Any], client_id: str | None) -> None:
        if client_id is None:
            sockets = list(self._by_client.values())
        else:
            sockets = [self._by_client[client_id]] if client_id in self._by_client else []
        for socket in sockets:
            if socket in self._silent:
                continue
            try:
                await socket.send_json({"type": event, "data": data})
            except ConnectionError:
                continue  # the client has gone; its own task takes it off the list

    async def _close(self, client_id: str) -> None:
        if socket := self._by_client.pop(client_id, None):
            # Not awaited here: a client slow to answer must not hold up the other events.
            task = asyncio.create_task(socket.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _mute(self, client_id: str) -> None:
        if socket := self._by_client.get(client_id):
            self._silent.add(socket)


def _kind(text: str) -> str | None:
    try:
        message = json.loads(text)
    except json.JSONDecodeError:
        return None
    return message.get("type") if is_object(message) else None
