"""A Hugging Face Hub on loopback: answers as the real one does, and misbehaves when told to.

The Hub is 127.0.0.1; its storage, which it redirects to, is localhost: another host to a client.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "c" * 40
# Signed addresses are secrets: this must not appear in any output.
SIGNATURE = "signature-canary"
_BLOCK = 65_536


def safetensors_file(name: str, size: int = 200_000) -> bytes:
    """A whole safetensors file of one tensor; another one for every name."""
    tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"t": tensor}).encode()
    return len(header).to_bytes(8, "little") + header + random.Random(name).randbytes(size)


@dataclass
class Request:
    method: str
    path: str
    start: int
    token: str | None


@dataclass
class FakeHub:
    """What is served and how. Files not in `files` are made up from their name.

    `gated` repositories want `token`; `absent` files are not there; `cut_after` closes the first
    `cuts` transfers after so many bytes; `stop_after` holds every transfer there until `go_on`;
    `busy` answers so often with 503 first; `wrong_sha256` and `short_by` make the Hub lie.
    """

    port: int
    files: dict[str, bytes] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str | None = None
    absent: set[str] = field(default_factory=set)
    cut_after: int | None = None
    cuts: int = 0
    stop_after: int | None = None
    held: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    busy: int = 0
    wrong_sha256: bool = False
    short_by: int = 0
    tells_size: bool = True
    requests: list[Request] = field(default_factory=list)
    sent_bytes: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def transfers(self) -> list[Request]:
        return [r for r in self.requests if r.method == "GET" and not r.path.startswith("/api")]

    def content(self, path: str) -> bytes:
        name = path.rpartition("/")[2]
        return self.files.setdefault(name, safetensors_file(name))


@contextmanager
def fake_hub() -> Generator[FakeHub]:
    class Handler(_Handler):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Handler.hub = hub = FakeHub(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def handle(self) -> None:
        with suppress(ConnectionError):  # of clients that were killed
            super().handle()

    def _answer(self) -> None:
        hub, path = self.hub, urlsplit(self.path).path
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        end = int(found[2]) + 1 if found and found[2] else None
        hub.requests.append(Request(self.command, path, start, self.headers.get("Authorization")))
        if hub.busy > 0:
            hub.busy -= 1
            self._status(503)
        elif resolve := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self._resolve(resolve[1], resolve[2])
        elif path.startswith("/storage/") and self.command == "HEAD":
            self._status(403)  # as an address that is signed for GET
        elif (
            path.startswith(("/storage/", "/plain/")) and path.rpartition("/")[2] not in hub.absent
        ):
            self._send(hub.content(path), start, end, ranged=found is not None)
        else:
            self._status(404)

    def _resolve(self, repository: str, path: str) -> None:
        hub = self.hub
        name = path.rpartition("/")[2]
        if repository in hub.gated and self.headers.get("Authorization") != f"Bearer {hub.token}":
            status = 403 if self.headers.get("Authorization") else 401
            self._status(status, {"X-Error-Code": "GatedRepo"})
            return
        if name in hub.absent:
            self._status(404, {"X-Error-Code": "EntryNotFound"})
            return
        data = hub.content(path)
        sha256 = "0" * 64 if hub.wrong_sha256 else hashlib.sha256(data).hexdigest()
        storage = f"http://localhost:{hub.port}/storage/{repository}/{name}?Signature={SIGNATURE}"
        headers = {"Location": storage, "X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{sha256}"'}
        if hub.tells_size:
            headers["X-Linked-Size"] = str(len(data))
        self._status(302, headers)

    def _send(self, data: bytes, start: int, end: int | None, *, ranged: bool) -> None:
        hub = self.hub
        whole = data[: len(data) - hub.short_by]
        part = whole[start:end]
        self.send_response(206 if ranged else 200)
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(whole)}")
        self.send_header("Accept-Ranges", "bytes")
        if hub.tells_size or self.command == "GET":
            self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.command == "GET":
            self._transfer(part)

    def _transfer(self, part: bytes) -> None:
        hub = self.hub
        limit = len(part)
        if hub.cut_after is not None and hub.cuts > 0 and limit > hub.cut_after:
            hub.cuts -= 1
            limit = hub.cut_after
            self.close_connection = True
        for at in range(0, limit, _BLOCK):
            block = part[at : min(at + _BLOCK, limit)]
            if hub.stop_after is not None and at >= hub.stop_after:
                hub.held.set()
                hub.go_on.wait(30)
            self.wfile.write(block)
            self.wfile.flush()
            hub.sent_bytes += len(block)

    def _status(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()
