"""The worker's own time for a warm job: `Worker.run` less ComfyUI's execution time.

Interleaved with a bare client that does the least possible for the same job: open the socket,
queue a ready graph, wait for the last frame, read the history and the file. Both run the same
small text-to-video job with a new seed each time, so that ComfyUI computes every time.

    python bench/overhead.py --engine sandbox|comfyui --jobs N --json FILE
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import requests
import websocket

from ltx_worker import engines
from ltx_worker.logs import configure_logging
from ltx_worker.settings import Settings
from ltx_worker.worker import Worker
from ltx_worker.workflow.template import Choices, load_template

sys.path.insert(0, str(Path(__file__).parents[1]))

JOB = {"prompt": "a cat in the rain", "resolution": "256x128", "num_frames": 9}
WARM_UP_JOBS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engine", choices=("sandbox", "comfyui"), default="sandbox")
    parser.add_argument("--jobs", type=int, default=30, help="jobs of each kind")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    configure_logging("WARNING", "auto")
    with (
        tempfile.TemporaryDirectory(prefix="ltx-bench-") as folder,
        start_engine(arguments.engine, Path(folder)) as engine,
    ):
        figures = measure(engine, arguments.engine, arguments.jobs)
    print(json.dumps({k: v for k, v in figures.items() if not isinstance(v, list)}, indent=2))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def start_engine(name: str, folder: Path) -> AbstractContextManager[engines.Engine]:
    """The sandbox, or a real ComfyUI with tiny weights."""
    if name == "sandbox":
        return engines.sandbox(folder, ["--speed", "0"])
    from tests.comfyui.tiny_engine import tiny_comfyui  # noqa: PLC0415 - only where it is asked for

    return tiny_comfyui(folder)


def measure(engine: engines.Engine, name: str, jobs: int) -> dict[str, Any]:
    """Overheads in milliseconds, worker and bare client in turn."""
    worker = Worker(
        Settings(
            comfy_url=engine.url,
            comfy_input_dir=engine.input_dir,
            comfy_output_dir=engine.output_dir,
        )
    )
    worker.start()
    bare = BareClient(engine)
    try:
        seeds = iter(range(1, 10_000))
        for _ in range(WARM_UP_JOBS):
            overhead_of_worker(worker, next(seeds))
            bare.overhead_ms(next(seeds))
        pairs = [
            in_turn(
                i % 2 == 0,
                lambda: overhead_of_worker(worker, next(seeds)),
                lambda: bare.overhead_ms(next(seeds)),
            )
            for i in range(jobs)
        ]
    finally:
        worker.close()
    differences = [ours - theirs for ours, theirs in pairs]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "engine": name,
        "jobs": jobs,
        "worker_ms": round(statistics.median(ours for ours, _ in pairs), 2),
        "bare_client_ms": round(statistics.median(theirs for _, theirs in pairs), 2),
        "median_difference_ms": round(statistics.median(differences), 2),
        "differences_ms": [round(difference, 2) for difference in differences],
    }


def in_turn(
    worker_first: bool, worker: Callable[[], float], bare: Callable[[], float]
) -> tuple[float, float]:
    """One job each, in alternating order: neither profits from following the other."""
    if worker_first:
        ours = worker()
        return ours, bare()
    theirs = bare()
    return worker(), theirs


def overhead_of_worker(worker: Worker, seed: int) -> float:
    """Milliseconds of one job through the worker, less ComfyUI's."""
    started = time.perf_counter()
    result = worker.run({"id": str(uuid.uuid4()), "input": JOB | {"seed": seed}})
    total_s = time.perf_counter() - started
    assert result.timings.comfy_s is not None
    return (total_s - result.timings.comfy_s) * 1000


class BareClient:
    """The least that gets a clip out of ComfyUI."""

    def __init__(self, engine: engines.Engine) -> None:
        self._engine = engine
        self._session = requests.Session()
        self._session.trust_env = False
        self._graph = small_graph()

    def overhead_ms(self, seed: int) -> float:
        """Milliseconds of one job, less ComfyUI's."""
        graph = self._graph
        for node in graph.values():
            if node["class_type"] == "RandomNoise":
                node["inputs"]["noise_seed"] = seed
            elif node["class_type"] == "SaveVideo":
                node["inputs"]["filename_prefix"] = f"bare/{seed}"
        started = time.perf_counter()
        client_id, prompt_id = uuid.uuid4().hex, str(uuid.uuid4())
        address = self._engine.url.removeprefix("http://")
        socket = websocket.create_connection(f"ws://{address}/ws?clientId={client_id}")
        body = {"prompt": graph, "prompt_id": prompt_id, "client_id": client_id}
        self._session.post(f"{self._engine.url}/prompt", json=body, timeout=60).raise_for_status()
        while True:
            frame = socket.recv()
            if isinstance(frame, str):
                message = json.loads(frame)
                if message["type"] == "executing" and message["data"]["node"] is None:
                    break
        socket.close()
        history = self._session.get(f"{self._engine.url}/history/{prompt_id}", timeout=60).json()
        self._read_clip(history[prompt_id]["outputs"])
        total_s = time.perf_counter() - started
        stamps = [m[1]["timestamp"] for m in history[prompt_id]["status"]["messages"]]
        return (total_s - (max(stamps) - min(stamps)) / 1000) * 1000

    def _read_clip(self, outputs: dict[str, Any]) -> None:
        (file,) = next(iter(outputs.values()))["images"]
        path = self._engine.output_dir / file["subfolder"] / file["filename"]
        assert path.read_bytes()
        path.unlink()


def small_graph() -> dict[str, Any]:
    """The graph of the job, ready to queue but for seed and file name."""
    template = load_template(Settings().workflows_dir / "t2v_fast.toml")
    values = {
        "prompt": JOB["prompt"],
        "first_pass_width": 128,
        "first_pass_height": 64,
        "num_frames": JOB["num_frames"],
        "audio_frames": JOB["num_frames"],
        "output_fps": 24.0,
    }
    return template.render(values, Choices(options=frozenset({"generate_audio"})))


if __name__ == "__main__":
    main()
