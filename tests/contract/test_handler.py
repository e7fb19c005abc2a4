"""RunPod's adapter: cancellation, progress, and errors that carry no traceback."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests
from handler import Adapter
from tests.conftest import SMALL, settings_for

from ltx_worker import engines
from ltx_worker.worker import Worker

# Long enough to be caught in the act on both engines.
LONG = SMALL | {"resolution": "512x320", "num_frames": 49, "quality": "pro"}


def queue_of(engine: engines.Engine) -> list[Any]:
    queue = requests.get(f"{engine.url}/queue", timeout=30).json()
    return queue["queue_running"] + queue["queue_pending"]


def wait_for(condition: Any, timeout_s: float = 30) -> None:
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def adapter(slow_engine: engines.Engine) -> Any:
    worker = Worker(settings_for(slow_engine))
    worker.start()
    yield Adapter(worker, 10_000_000)
    worker.close()


def test_a_cancelled_job_stops_the_engine_and_the_next_one_runs(
    adapter: Adapter, slow_engine: engines.Engine
) -> None:
    """RunPod's cancel reaches the engine, which is idle when the task has ended."""

    async def scenario() -> dict[str, Any]:
        task = asyncio.create_task(adapter.handle({"id": "cancelled", "input": LONG}))
        await asyncio.to_thread(wait_for, lambda: queue_of(slow_engine))
        await asyncio.sleep(0.2)
        task.cancel()
        started = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - started < 10
        assert queue_of(slow_engine) == []
        return await adapter.handle({"id": "next", "input": SMALL})

    answer = asyncio.run(scenario())
    assert answer["metadata"]["num_frames"] == 9
    left = [p for p in slow_engine.output_dir.rglob("*") if p.is_file()]
    assert left == []


def test_the_same_job_delivered_twice_computes_once(
    adapter: Adapter, slow_engine: engines.Engine
) -> None:
    """A job that is delivered again while it runs never has two prompts in the queue."""
    longest = 0

    async def scenario() -> None:
        nonlocal longest
        job = {"id": "twice", "input": LONG | {"quality": "fast", "seed": 77}}
        first = asyncio.create_task(adapter.handle(job))
        await asyncio.to_thread(wait_for, lambda: queue_of(slow_engine))
        second = asyncio.create_task(adapter.handle(job))
        while not first.done():
            longest = max(longest, len(await asyncio.to_thread(queue_of, slow_engine)))
            await asyncio.sleep(0.02)
        second.cancel()
        await asyncio.wait([second])
        assert (await first)["metadata"]["seed"] == 77

    asyncio.run(scenario())
    assert longest == 1


def test_an_error_is_json_text_without_a_traceback(adapter: Adapter) -> None:
    """RunPod gets a string; it holds the contract's error object and nothing of the code."""
    answer = asyncio.run(adapter.handle({"id": "bad", "input": {"prompt": ""}}))
    error = json.loads(answer["error"])
    assert set(error) == {"code", "message", "details", "stage", "retryable", "hint"}
    assert "Traceback" not in answer["error"]
    assert list(answer) == ["error"]


def test_progress_reaches_the_caller_in_order_and_before_the_result(
    slow_engine: engines.Engine, tmp_path: Path
) -> None:
    """The SDK's progress posts count up, at most one a second, and stop with the result."""
    posts: list[tuple[float, dict[str, Any]]] = []

    class Sink(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            posts.append((time.monotonic(), body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sink = f"http://127.0.0.1:{server.server_port}/$ID?gpu="
    environment = slow_engine.environment | {"RUNPOD_WEBHOOK_POST_OUTPUT": sink}
    with engines.handler(environment) as url:
        job = {"input": LONG | {"seed": 3}}
        answer = requests.post(f"{url}/runsync", json=job, timeout=120).json()
        answered = time.monotonic()
    server.shutdown()
    server.server_close()

    assert answer["status"] == "COMPLETED"
    assert posts
    assert all(moment <= answered for moment, _ in posts)
    assert {body["status"] for _, body in posts} == {"IN_PROGRESS"}
    updates = [body["output"] for _, body in posts]
    percents = [update["percent"] for update in updates]
    assert percents == sorted(percents)
    assert all(later - earlier >= 0.9 for (earlier, _), (later, _) in pairwise(posts))
    assert all(1 <= update["stage"] <= update["stages"] for update in updates)
