"""Clips a minute from one worker whose jobs never run out, by how many it takes at a time.

`handler.py` serves a stand-in for RunPod with the SDK's production loop, and uploads to a storage
that takes its time. All jobs are in the queue at once, each with a seed of its own; measured from
the moment when the first is handed out to the arrival of the last result. For each concurrency a
worker is started anew, in alternating order over the rounds.

    python bench/throughput.py --engine sandbox|tiny|comfyui --concurrency 1 2 --json FILE

`sandbox` generates in as many seconds as `--generation` says; `tiny` is a ComfyUI with tiny random
weights on the CPU; `comfyui` is that of COMFYUI_DIR with the GPU and the weights of `--models`,
as `bench/gpu.py` starts it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpu_plan import Launch
from gpu_worker import Machine, running_worker
from production_loop import owned_engine

from ltx_worker import engines

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.delivery.storage import BUCKET, KEY_ID, SECRET, moto, wire
from tests.fakes.runpod_platform import RunPodPlatform, production_handler
from tests.fakes.runpod_queue import JobRecord

SMALL = {"prompt": "a cat in the rain", "resolution": "256x128", "num_frames": 9}
FULL = {"prompt": "a cat in the rain", "resolution": "1280x704", "num_frames": 121}
WARM_UP_JOBS = 2
# What the sandbox's eleven steps take at speed 1.
SANDBOX_S = 0.55
JOB_LIMIT_S = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--engine", choices=("sandbox", "tiny", "comfyui"), default="sandbox")
    add("--models", type=Path, help="models folder of the ComfyUI in COMFYUI_DIR")
    add("--variant", choices=("fp8", "fp16"), help="default: what the GPU decides")
    add("--job", type=json.loads, help="a job's input as JSON; its seed is set here")
    add("--jobs", type=int, default=12, help="jobs of each round")
    add("--rounds", type=int, default=2)
    add("--concurrency", type=int, nargs="+", default=[1, 2])
    add("--upload", type=float, default=1.0, help="seconds that an upload takes at least")
    add("--generation", type=float, default=2.0, help="seconds of the sandbox's generation")
    add("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    # moto's server tells of every request.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    figures = measure(arguments)
    print(json.dumps({k: v for k, v in figures.items() if k != "rounds"}, indent=2))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every round's figures, and their medians by concurrency."""
    job = (arguments.job or (FULL if arguments.engine == "comfyui" else SMALL)) | {
        "output": {"delivery": "url"}
    }
    rounds: list[dict[str, Any]] = []
    for number in range(arguments.rounds):
        order: Sequence[int] = arguments.concurrency[:: -1 if number % 2 else 1]
        for concurrency in order:
            with tempfile.TemporaryDirectory(prefix="ltx-bench-") as folder:
                records = run(arguments, concurrency, job, Path(folder))
            rounds.append({"concurrency": concurrency} | summary(records))
            print(json.dumps(rounds[-1]), file=sys.stderr)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "engine": arguments.engine,
        "job": job,
        "jobs": arguments.jobs,
        "upload_delay_s": arguments.upload,
        "by_concurrency": {str(n): medians(rounds, n) for n in arguments.concurrency},
        "rounds": rounds,
    }


def run(
    arguments: argparse.Namespace, concurrency: int, job: Mapping[str, Any], folder: Path
) -> list[JobRecord]:
    """The records of a round's jobs on one worker, which has served some before."""
    with moto() as storage, wire(storage, delay_s=arguments.upload) as slow:
        variables = {
            "LTX2_CONCURRENCY": str(concurrency),
            "R2_ENDPOINT_URL": slow.url,
            "R2_BUCKET": BUCKET,
            "R2_ACCESS_KEY_ID": KEY_ID,
            "R2_SECRET_ACCESS_KEY": SECRET,
        }
        with serving(arguments, variables, folder) as runpod:
            for seed in range(WARM_UP_JOBS):
                runpod.wait(runpod.submit(dict(job) | {"seed": seed}), JOB_LIMIT_S)
            jobs = [dict(job) | {"seed": 100 + number} for number in range(arguments.jobs)]
            return [
                runpod.wait(job_id, JOB_LIMIT_S) for job_id in [runpod.submit(one) for one in jobs]
            ]


@contextmanager
def serving(
    arguments: argparse.Namespace, variables: Mapping[str, str], folder: Path
) -> Generator[RunPodPlatform]:
    """A platform with a worker that takes its jobs and starts the engine itself."""
    if arguments.engine == "comfyui":
        machine = Machine(str(arguments.models), "ltx-2", arguments.variant)
        launch = Launch(environment=tuple(variables.items()))
        with running_worker(machine, launch, folder) as worker:
            yield worker.platform
        return
    files = {
        "LTX2_COMFY_PORT": str(engines.free_port()),
        "COMFY_INPUT_DIR": str(folder / "input"),
        "COMFY_OUTPUT_DIR": str(folder / "output"),
    }
    if arguments.engine == "tiny":
        engine = owned_engine("comfyui", folder)
    else:
        speed = arguments.generation / SANDBOX_S
        engine = {"LTX2_ENGINE": "sandbox", "LTX2_COMFY_ARGS": f"--speed {speed:.2f}"}
    with (
        RunPodPlatform() as runpod,
        production_handler(runpod, {**files, **engine, **variables}),
    ):
        yield runpod


def summary(records: Sequence[JobRecord]) -> dict[str, Any]:
    """What a round shows: the rate, and for how much of the time ComfyUI was at work."""
    timings: list[dict[str, Any]] = []
    ends: list[tuple[float, float]] = []
    for record in records:
        assert record.output is not None, record.error
        assert record.handed_out_at is not None
        assert record.finished_at is not None
        timings.append(record.output["timings"])
        ends.append((record.handed_out_at, record.finished_at))
    total_s = max(end for _, end in ends) - min(start for start, _ in ends)
    busy_s = sum(timing["comfy_s"] for timing in timings)
    return {
        "clips_per_minute": round(60 * len(records) / total_s, 2),
        "total_s": round(total_s, 2),
        "comfy_busy": round(busy_s / total_s, 3),
        "median_comfy_s": round(statistics.median(t["comfy_s"] for t in timings), 3),
        "median_queue_s": round(statistics.median(t["queue_s"] for t in timings), 3),
        "median_upload_s": round(statistics.median(t["upload_s"] for t in timings), 3),
        "median_job_s": round(statistics.median(end - start for start, end in ends), 3),
    }


def medians(rounds: Sequence[Mapping[str, Any]], concurrency: int) -> dict[str, float]:
    """The rounds of one concurrency in one row."""
    ours = [one for one in rounds if one["concurrency"] == concurrency]
    names = [name for name in ours[0] if name != "concurrency"]
    return {name: round(statistics.median(one[name] for one in ours), 3) for name in names}


if __name__ == "__main__":
    main()
