"""RunPod's side of a serverless endpoint, on loopback: the SDK's production loop runs against it.

It hands out jobs, takes progress and results, signals stops and keeps a record of each job, as
RunPod does, and reaches a worker only through the environment variables of RunPod's SDK.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.fakes.runpod_queue import JobQueue

from ltx_worker.comfy.child import ChildProcess

ROOT = Path(__file__).parents[2]
# What RunPod takes in either direction.
RUN_BYTES = 10_000_000
RUNSYNC_BYTES = 20_000_000
_START_S = 60.0
_LOOK_S = 0.05


class HandlerEnded(RuntimeError):
    """A handler's process ended, or did not ask for a job in time."""


class RunPodPlatform(JobQueue):
    """An endpoint with its queue. Use as a context manager."""

    def __init__(self, *, max_body_bytes: int = RUN_BYTES, hold_s: float = 20.0) -> None:
        """`max_body_bytes` limits inputs and results; an empty poll is held for `hold_s`."""
        super().__init__(max_body_bytes, hold_s)
        self._server = _Server(self)

    def __enter__(self) -> RunPodPlatform:
        threading.Thread(target=self._server.serve_forever, daemon=True, name="runpod").start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make a handler this endpoint's worker."""
        base = f"http://127.0.0.1:{self._server.server_port}/v2/endpoint"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID?gpu=none",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_AI_API_KEY": "a-key-of-the-tests",
            "RUNPOD_ENDPOINT_ID": "endpoint",
            "RUNPOD_POD_ID": "worker-1",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
            "RUNPOD_LOG_LEVEL": "INFO",
        }


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, platform: RunPodPlatform) -> None:
        super().__init__(("127.0.0.1", 0), _Routes)
        self.platform = platform

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A worker may be gone when its poll is answered."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Routes(BaseHTTPRequestHandler):
    """HTTP to the platform's calls; paths are /v2/endpoint/{what}/{worker}[/{job id}]."""

    protocol_version = "HTTP/1.1"
    # An answer leaves in one piece and at once: measurements are taken through this server.
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        _, _, _, what, worker = url.path.split("/")
        platform = self.server.platform
        if what in ("job-take", "job-take-batch"):
            is_busy = query["job_in_progress"] == "1"
            job = platform.take(worker, is_busy, self._is_connected)
            self._answer(204 if job is None else 200, [job] if what == "job-take-batch" else job)
        elif what == "job-stop":
            job_ids = platform.stops(worker)
            self._answer(200 if job_ids else 204, {"jobsToStop": job_ids})
        else:
            platform.ping(worker, query)
            self._answer(200, {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        job_id = urlsplit(self.path).path.rpartition("/")[2]
        self._answer(200 if self.server.platform.post(job_id, body) else 400, {})

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests' output clean."""

    def _answer(self, status: int, body: Any) -> None:
        content = b"" if status == 204 else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _is_connected(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        return not readable or self.connection.recv(1, socket.MSG_PEEK) != b""


@contextmanager
def production_handler(
    platform: RunPodPlatform,
    environment: Mapping[str, str],
    handler: Path = ROOT / "handler.py",
) -> Generator[ChildProcess]:
    """`handler` as a worker of `platform`, from its first poll for a job to SIGTERM.

    `environment` adds to this process's variables and to the platform's. Raises `HandlerEnded`.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")}
    variables = own | platform.environment | dict(environment)
    worker = variables["RUNPOD_POD_ID"]
    platform.welcome(worker)
    takes = platform.takes(worker)
    forks: list[int] = []
    with ChildProcess([sys.executable, str(handler)], environment=variables) as process:
        try:
            give_up = time.monotonic() + _START_S
            while platform.takes(worker) == takes:
                if not process.is_alive or time.monotonic() > give_up:
                    raise HandlerEnded(f"The handler takes no jobs ({process.last_words})")
                time.sleep(_LOOK_S)
            forks = [pid for pid in _children(process.pid) if _runs(pid, handler)]
            yield process
        finally:
            platform.dismiss(worker)
            # The SDK's heartbeat would outlive a handler that is killed.
            for pid in forks:
                if _runs(pid, handler):
                    os.kill(pid, signal.SIGKILL)
            process.stop()


def _children(pid: int) -> list[int]:
    """The children of a process, where the system can tell."""
    with suppress(OSError):
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _runs(pid: int, script: Path) -> bool:
    with suppress(OSError):
        return str(script).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False
