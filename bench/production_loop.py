"""What `handler.py` costs in the loop that RunPod runs, against the least a handler can do.

Both handlers serve a stand-in for RunPod with the SDK's production loop, on one engine that ours
owns as in a container, with the same small text-to-video job and a new seed each time. Measured
from the moment when a job is handed out to the arrival of its result, less ComfyUI's own execution
time.

The SDK looks at the jobs that it took every 0.1 s. So that this wait does not drown the
difference, the two jobs of a pair are handed out at the same moment of that rhythm, and the pairs
are spread over it.

    python bench/production_loop.py --engine sandbox|comfyui --jobs N --json FILE
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from overhead import JOB, WARM_UP_JOBS, in_turn, small_graph

from ltx_worker import engines

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fakes.runpod_platform import (
    ROOT,
    RunPodPlatform,
    production_handler,
)

MINIMAL = ROOT / "tests" / "fakes" / "minimal_handler.py"
# How often the SDK looks at the jobs that it took, and how many times it has looked in vain before
# it gets the next one: by then its wait of a second before it asks is over.
SDK_RHYTHM_S = 0.1
IDLE_ROUNDS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engine", choices=("sandbox", "comfyui"), default="sandbox")
    parser.add_argument("--jobs", type=int, default=30, help="jobs of each kind")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ltx-bench-") as folder:
        figures = measure(arguments.engine, Path(folder), arguments.jobs)
    print(json.dumps({k: v for k, v in figures.items() if not isinstance(v, list)}, indent=2))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(name: str, folder: Path, jobs: int) -> dict[str, Any]:
    """Overheads in milliseconds, our handler and the minimal one in turn."""
    port = engines.free_port()
    owned = owned_engine(name, folder) | {
        "LTX2_COMFY_PORT": str(port),
        "COMFY_INPUT_DIR": str(folder / "input"),
        "COMFY_OUTPUT_DIR": str(folder / "output"),
    }
    graph = folder / "graph.json"
    graph.write_text(json.dumps(small_graph()))
    shared = {
        "COMFY_URL": f"http://127.0.0.1:{port}",
        "COMFY_OUTPUT_DIR": str(folder / "output"),
        "MINIMAL_GRAPH": str(graph),
    }
    with ExitStack() as stack:
        ours = stack.enter_context(endpoint(owned, ROOT / "handler.py"))
        minimal = stack.enter_context(endpoint(shared, MINIMAL))
        seeds = iter(range(1, 10_000))
        for _ in range(WARM_UP_JOBS):
            ours.overhead_ms(next(seeds), 0.5)
            minimal.overhead_ms(next(seeds), 0.5)
        pairs: list[tuple[float, float]] = []
        for i in range(jobs):
            # Not at its edges, where a little decides between no wait and a whole one.
            phase = 0.1 + 0.8 * i / jobs
            pair = in_turn(
                i % 2 == 0,
                lambda phase=phase: ours.overhead_ms(next(seeds), phase),
                lambda phase=phase: minimal.overhead_ms(next(seeds), phase),
            )
            pairs.append(pair)
    differences = [our_ms - their_ms for our_ms, their_ms in pairs]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "engine": name,
        "jobs": jobs,
        "handler_ms": round(statistics.median(our_ms for our_ms, _ in pairs), 2),
        "minimal_handler_ms": round(statistics.median(their_ms for _, their_ms in pairs), 2),
        "median_difference_ms": round(statistics.median(differences), 2),
        "differences_ms": [round(difference, 2) for difference in differences],
    }


def owned_engine(name: str, folder: Path) -> dict[str, str]:
    """The variables of a worker that starts the engine itself."""
    if name == "sandbox":
        return {"LTX2_ENGINE": "sandbox", "LTX2_COMFY_ARGS": "--speed 0"}
    # Only where it is asked for: its weights are made by torch.
    from tests.comfyui.tiny_engine import (  # noqa: PLC0415
        TINY_ENVIRONMENT,
        comfyui_dir,
        tiny_options,
    )

    options = [*engines.comfyui_options(folder), *tiny_options(folder)]
    return TINY_ENVIRONMENT | {
        "COMFYUI_DIR": str(comfyui_dir()),
        "LTX2_COMFY_ARGS": shlex.join(options),
    }


class Endpoint:
    """A handler in production and the platform that it works for."""

    def __init__(self, runpod: RunPodPlatform) -> None:
        self._runpod = runpod
        self._idle_since = time.monotonic()

    def overhead_ms(self, seed: int, phase: float) -> float:
        """Milliseconds of one job, less ComfyUI's, handed out at `phase` of the SDK's rhythm."""
        idle_s = time.monotonic() - self._idle_since
        rounds = max(IDLE_ROUNDS, math.ceil(idle_s / SDK_RHYTHM_S))
        time.sleep((rounds + phase) * SDK_RHYTHM_S - idle_s)
        record = self._runpod.wait(self._runpod.submit(JOB | {"seed": seed}))
        assert record.output is not None, record.error
        assert record.handed_out_at is not None
        assert record.finished_at is not None
        self._idle_since = record.finished_at
        comfy_s: float = record.output["timings"]["comfy_s"]
        return (record.finished_at - record.handed_out_at - comfy_s) * 1000


@contextmanager
def endpoint(environment: Mapping[str, str], handler: Path) -> Generator[Endpoint]:
    """`handler` in production on a platform of its own."""
    with RunPodPlatform() as runpod, production_handler(runpod, environment, handler):
        yield Endpoint(runpod)


if __name__ == "__main__":
    main()
