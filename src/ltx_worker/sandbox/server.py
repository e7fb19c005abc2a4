"""The sandbox's HTTP and WebSocket routes, answered as ComfyUI 0.27 answers them.

Every route is also there under `/api`. What ComfyUI answers with status 500 because its code fails,
the sandbox answers with 500 in the same way: the exception reaches aiohttp.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
import os
import platform
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from ltx_worker.sandbox.engine import Engine
from ltx_worker.sandbox.faults import Faults, PromptFaults, UnknownFaultError
from ltx_worker.sandbox.folders import OutsideFolderError, within
from ltx_worker.sandbox.nodes import file_checks
from ltx_worker.sandbox.prompts import QueuedPrompt
from ltx_worker.sandbox.sockets import Sockets
from ltx_worker.workflow.node_inputs import is_object
from ltx_worker.workflow.validation import validate

COMFYUI_VERSION = "0.27.0"

_LARGEST_UPLOAD = 100 * 1024 * 1024
_INVALID_PROMPT_ID: dict[str, Any] = {
    "type": "invalid_prompt_id",
    "message": "prompt_id must be a valid UUID",
    "details": (
        "prompt_id must be a UUID string in canonical lowercase hyphenated form; "
        "omit it to let the server generate one"
    ),
    "extra_info": {},
}
_NO_PROMPT: dict[str, Any] = {
    "type": "no_prompt",
    "message": "No prompt provided",
    "details": "No prompt provided",
    "extra_info": {},
}

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """The routes over one engine."""

    def __init__(self, engine: Engine, sockets: Sockets) -> None:
        self._engine = engine
        self._sockets = sockets
        self._faults = Faults()
        self._number = 0

    def application(self) -> web.Application:
        """The routes as an aiohttp application."""
        app = web.Application(client_max_size=_LARGEST_UPLOAD, middlewares=[self._hang])
        routes: list[tuple[str, str, _Handler]] = [
            ("GET", "/ws", self._ws),
            ("GET", "/system_stats", self._system_stats),
            ("GET", "/object_info", self._object_info),
            ("GET", "/object_info/{node_class}", self._object_info),
            ("GET", "/prompt", self._prompt_status),
            ("POST", "/prompt", self._post_prompt),
            ("GET", "/queue", self._queue),
            ("POST", "/queue", self._post_queue),
            ("GET", "/history", self._histories),
            ("GET", "/history/{prompt_id}", self._history),
            ("POST", "/history", self._post_history),
            ("POST", "/interrupt", self._interrupt),
            ("POST", "/free", self._free),
            ("GET", "/view", self._view),
            ("POST", "/upload/image", self._upload),
        ]
        for method, path, handler in routes:
            app.router.add_route(method, path, handler)
            app.router.add_route(method, f"/api{path}", handler)
        app.router.add_route("*", "/sandbox/faults", self._sandbox_faults)
        return app

    @web.middleware
    async def _hang(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if self._faults.hangs_everything and not request.path.startswith("/sandbox/"):
            await asyncio.Event().wait()
        return await handler(request)

    async def _ws(self, request: web.Request) -> web.StreamResponse:
        current = self._engine.current_node(request.query.get("clientId"))
        return await self._sockets.serve(request, self._engine.status, current)

    async def _system_stats(self, _request: web.Request) -> web.Response:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = (page * os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
        # Like a ComfyUI without a GPU: the device's memory is the machine's.
        memory = {
            f"{owner}vram_{kind}": size
            for owner in ("", "torch_")
            for kind, size in (("total", total), ("free", free))
        }
        system = {
            "os": sys.platform,
            "ram_total": total,
            "ram_free": free,
            "comfyui_version": COMFYUI_VERSION,
            "python_version": platform.python_version(),
            "pytorch_version": None,
            "embedded_python": False,
            "argv": sys.argv,
            "engine": "sandbox",
        }
        devices = [{"name": "cpu", "type": "cpu", "index": None, **memory}]
        return web.json_response({"system": system, "devices": devices})

    async def _object_info(self, request: web.Request) -> web.Response:
        wanted = request.match_info.get("node_class")
        info = self._engine.node_info
        if wanted is None:
            return web.json_response(info)
        return web.json_response({wanted: info[wanted]} if wanted in info else {})

    async def _prompt_status(self, _request: web.Request) -> web.Response:
        return web.json_response(self._engine.status())

    async def _post_prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        number = self._take_number(body if is_object(body) else {})
        if "prompt" not in body:
            return _refusal(_NO_PROMPT)
        prompt_id = body.get("prompt_id")
        if prompt_id is None:
            prompt_id = str(uuid.uuid4())
        elif not _is_canonical_uuid(prompt_id):
            return _refusal(_INVALID_PROMPT_ID)
        checked = validate(
            body["prompt"],
            self._engine.node_info,
            checks=file_checks(self._engine.folders),
            targets=body.get("partial_execution_targets"),
        )
        if checked.error:
            return _refusal(checked.error, checked.node_errors)
        faults = self._faults.take()
        client = {"client_id": body["client_id"]} if "client_id" in body else {}
        created = {"create_time": int(time.time() * 1000)}
        extra_data = {**body.get("extra_data", {}), **client, **created}
        prompt = QueuedPrompt(
            number, prompt_id, checked.graph, extra_data, checked.good_outputs, faults
        )
        return await self._accept(prompt, faults, checked.node_errors)

    async def _accept(
        self, prompt: QueuedPrompt, faults: PromptFaults, node_errors: Mapping[str, Any]
    ) -> web.Response:
        failing = faults.by_name.get("prompt_500")
        if failing is None or failing["queued"]:
            self._engine.prompts.put(prompt)
        if failing is not None:
            raise _internal_error()
        if "hang" in faults:
            await asyncio.Event().wait()
        answer = {"prompt_id": prompt.prompt_id, "number": prompt.number}
        return web.json_response({**answer, "node_errors": node_errors})

    def _take_number(self, body: Mapping[str, Any]) -> float:
        """The prompt's place in the queue: given, at the front, or after all others."""
        if "number" in body:
            return float(body["number"])
        number = -self._number if body.get("front") else self._number
        self._number += 1
        return number

    async def _queue(self, _request: web.Request) -> web.Response:
        return web.json_response(self._engine.prompts.queue())

    async def _post_queue(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body.get("clear"):
            self._engine.prompts.clear()
        for prompt_id in body.get("delete", ()):
            self._engine.prompts.delete(prompt_id)
        return web.Response()

    async def _histories(self, request: web.Request) -> web.Response:
        limit = request.query.get("max_items")
        offset = int(request.query.get("offset", -1))
        found = self._engine.prompts.histories(None if limit is None else int(limit), offset)
        return web.json_response(found)

    async def _history(self, request: web.Request) -> web.Response:
        return web.json_response(self._engine.prompts.history(request.match_info["prompt_id"]))

    async def _post_history(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body.get("clear"):
            self._engine.prompts.forget()
        for prompt_id in body.get("delete", ()):
            self._engine.prompts.forget(prompt_id)
        return web.Response()

    async def _interrupt(self, request: web.Request) -> web.Response:
        try:
            prompt_id = (await request.json()).get("prompt_id")
        except json.JSONDecodeError:
            prompt_id = None
        self._engine.interrupt(prompt_id or None)
        return web.Response()

    async def _free(self, request: web.Request) -> web.Response:
        body = await request.json()
        for flag in ("unload_models", "free_memory"):
            if body.get(flag):
                self._engine.prompts.set_flag(flag)
        return web.Response()

    async def _view(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        if "filename" not in query:
            return web.Response(status=404)
        name, annotated = self._engine.folders.annotated(query["filename"])
        folder = annotated or self._engine.folders.of_type(query.get("type", "output"))
        if not name or folder is None or name.startswith("/") or ".." in name:
            return web.Response(status=400)
        try:
            file = within(folder, query.get("subfolder", "")) / name.rpartition("/")[2]
        except OutsideFolderError:
            return web.Response(status=403)
        if not file.is_file():
            return web.Response(status=404)
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        disposition = f'filename="{file.name}"'
        headers = {"Content-Disposition": disposition, "Content-Type": kind}
        return web.FileResponse(file, headers=headers)

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        image = form.get("image")
        if not isinstance(image, web.FileField) or not image.filename:
            return web.Response(status=400)
        kind, subfolder = str(form.get("type", "input")), str(form.get("subfolder", ""))
        folder = self._engine.folders.of_type(kind)
        if folder is None:
            raise _internal_error()
        try:
            path = within(folder, f"{subfolder}/{image.filename}" if subfolder else image.filename)
        except OutsideFolderError:
            return web.Response(status=400)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = image.file.read()
        number, stem = 0, path.stem
        while form.get("overwrite") not in ("true", "1") and path.exists():
            if path.read_bytes() == content:
                break  # the very same picture is not kept twice
            number += 1
            path = path.with_name(f"{stem} ({number}){path.suffix}")
        path.write_bytes(content)
        return web.json_response({"name": path.name, "subfolder": subfolder, "type": kind})

    async def _sandbox_faults(self, request: web.Request) -> web.Response:
        if request.method == "DELETE":
            self._faults.clear()
        elif request.method == "POST":
            try:
                self._faults.arm(await request.json())
            except UnknownFaultError as error:
                return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"armed": self._faults.as_list()})


def _refusal(
    error: Mapping[str, Any], node_errors: Mapping[str, Any] | None = None
) -> web.Response:
    return web.json_response({"error": error, "node_errors": node_errors or {}}, status=400)


def _internal_error() -> web.HTTPInternalServerError:
    """What aiohttp answers when a handler fails."""
    text = "500 Internal Server Error\n\nServer got itself in trouble"
    return web.HTTPInternalServerError(text=text)


def _is_canonical_uuid(value: Any) -> bool:
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        return False
