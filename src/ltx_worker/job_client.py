"""A caller of the worker: send a job, watch its progress, take its result.

Speaks to RunPod's serverless API (`/run`, then `/status`) and to a handler that serves the SDK's
local API (`/runsync`), whose progress the SDK posts to the address it is given.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests

from ltx_worker.progress import JobProgress

_API = "https://api.runpod.ai/v2"
_POLL_S = 1.0
_TIMEOUT_S = 30.0
_RUNSYNC_TIMEOUT_S = 3600.0
_DONE = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")

OnProgress = Callable[[JobProgress], None]


class JobFailed(Exception):
    """The job ended in an error; `error` is the contract's error object, if there is one."""

    def __init__(self, message: str, error: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.error = error


@dataclass(frozen=True)
class LocalWorker:
    """A handler started with `--rp_serve_api` at `url`."""

    url: str

    def run(self, job_input: Mapping[str, Any], on_progress: OnProgress) -> dict[str, Any]:
        """The job's output; raises `JobFailed`. Progress arrives apart, see `progress_sink`."""
        del on_progress
        answer = _post(f"{self.url}/runsync", job_input, timeout_s=_RUNSYNC_TIMEOUT_S)
        return _output(answer)


@dataclass(frozen=True)
class RunPodEndpoint:
    """A serverless endpoint, by its id and an API key."""

    endpoint_id: str
    api_key: str

    def run(self, job_input: Mapping[str, Any], on_progress: OnProgress) -> dict[str, Any]:
        """The job's output; raises `JobFailed`."""
        base = f"{_API}/{self.endpoint_id}"
        headers = {"Authorization": f"Bearer {self.api_key}"}
        job_id = _post(f"{base}/run", job_input, headers)["id"]
        while True:
            response = requests.get(f"{base}/status/{job_id}", headers=headers, timeout=_TIMEOUT_S)
            response.raise_for_status()
            answer = response.json()
            if answer["status"] in _DONE:
                return _output(answer)
            if isinstance(answer.get("output"), dict):
                on_progress(answer["output"])
            time.sleep(_POLL_S)


def _post(
    url: str,
    job_input: Mapping[str, Any],
    headers: Mapping[str, str] | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> dict[str, Any]:
    response = requests.post(url, json={"input": job_input}, headers=headers, timeout=timeout_s)
    response.raise_for_status()
    return response.json()


def _output(answer: Mapping[str, Any]) -> dict[str, Any]:
    if answer["status"] == "COMPLETED" and isinstance(answer.get("output"), dict):
        return answer["output"]
    text = str(answer.get("error") or f"the job ended as {answer['status']} without an output")
    try:
        error = json.loads(text)
        return_message = error["message"]
    except (ValueError, KeyError, TypeError):
        raise JobFailed(text) from None
    raise JobFailed(return_message, error)


@contextmanager
def progress_sink(on_progress: OnProgress) -> Generator[str]:
    """A server on loopback for the SDK's progress posts; yields the address to give to it."""

    class Sink(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            on_progress(json.loads(body)["output"])

        def log_message(self, format: str, *args: Any) -> None:
            """Keep quiet: a terminal shows the bar."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/$ID?gpu="
    finally:
        server.shutdown()
        server.server_close()


def save_video(output: Mapping[str, Any], path: Path) -> None:
    """Write the clip of a job's output to `path`, from the answer or from its link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if output["video_url"] is None:
        path.write_bytes(base64.b64decode(output["video"]))
        return
    response = requests.get(output["video_url"], timeout=_TIMEOUT_S)
    response.raise_for_status()
    path.write_bytes(response.content)
