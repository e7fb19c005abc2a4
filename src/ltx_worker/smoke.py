"""`ltx smoke`: a sample job on a running worker, its runtime held against its GPU's baseline.

Looks from outside, as a caller does: the answer says how long the job took, and a clip that is to
be in the bucket is fetched by its link and compared with what the answer says of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests

from ltx_worker import engines
from ltx_worker.delivery.bucket_config import bucket_config
from ltx_worker.job_client import LocalWorker, RunPodEndpoint
from ltx_worker.progress import JobProgress
from ltx_worker.result import GenerateResult
from ltx_worker.settings import load_settings

BASELINES = Path(__file__).parents[2] / "bench" / "baselines.json"
DEFAULT_URL = "http://127.0.0.1:8000"
# A clip that fits every GPU that serves. Each job has a seed of its own, so that no result comes
# from a cache.
JOB: Mapping[str, Any] = {
    "prompt": "A lighthouse on a cliff at dusk, waves breaking below, gulls calling",
    "mode": "t2v",
    "quality": "fast",
    "resolution": "540p",
    "num_frames": 121,
}
# The first job loads the models and is not timed; of the others the fastest counts.
_TIMED_JOBS = 2
# A regression is more than a fifth, and more than what a short job varies by on its own.
_MOST_RATIO = 1.2
_SLACK_S = 0.5
_TIMEOUT_S = 60.0
_PROBE_S = 2.0
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Smoke:
    """What a smoke run found, in seconds; `problems` is empty when all is well.

    `baseline_s` is None when this run was recorded as the baseline. `object_bytes` is the size of
    the object that was found whole in the bucket, None when none was asked for.
    """

    gpu: str
    job: str
    engine: str
    worker_version: str
    runtime_s: float
    baseline_s: float | None
    stages: Mapping[str, float]
    baseline_stages: Mapping[str, float]
    object_bytes: int | None
    problems: tuple[str, ...]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `ltx smoke`."""
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--url", help="a worker's address; default the one of this machine")
    target.add_argument(
        "--endpoint", metavar="ID", help="a RunPod serverless endpoint; needs RUNPOD_API_KEY"
    )
    parser.add_argument("--gpu", metavar="NAME", help="its GPU; default what its result names")
    parser.add_argument(
        "--baselines", type=Path, default=BASELINES, help="where the figures are kept"
    )
    parser.add_argument("--record", action="store_true", help="make this run the baseline")
    parser.add_argument(
        "--r2", action="store_true", help="look into the bucket; default where one is set here"
    )


def run_command(arguments: argparse.Namespace) -> None:
    """`ltx smoke`: print what was found as JSON; exits with status 1 when something is wrong."""
    with_bucket = arguments.r2 or bucket_config(load_settings()) is not None
    with _worker_of(arguments) as worker:
        found = smoke(
            worker,
            baselines=arguments.baselines,
            gpu=arguments.gpu,
            with_bucket=with_bucket,
            record=arguments.record,
        )
    sys.stdout.write(json.dumps(asdict(found), indent=2) + "\n")
    if found.problems:
        sys.exit(1)


def _worker_of(
    arguments: argparse.Namespace,
) -> AbstractContextManager[LocalWorker | RunPodEndpoint]:
    if arguments.endpoint is None:
        return local_worker(arguments.url)
    key = os.environ.get("RUNPOD_API_KEY")
    if not key:
        raise OSError("--endpoint needs the environment variable RUNPOD_API_KEY")
    return nullcontext(RunPodEndpoint(arguments.endpoint, key))


@contextmanager
def local_worker(url: str | None) -> Generator[LocalWorker]:
    """The worker at `url`; without one, the worker of this machine, started if none answers.

    Raises `ComfyUnavailable` with the last words of a worker that does not start.
    """
    if url is not None or _answers(DEFAULT_URL):
        yield LocalWorker(url or DEFAULT_URL)
        return
    with engines.handler({}) as started:
        yield LocalWorker(started)


def smoke(
    worker: LocalWorker | RunPodEndpoint,
    *,
    baselines: Path = BASELINES,
    gpu: str | None = None,
    with_bucket: bool = False,
    record: bool = False,
    job: Mapping[str, Any] = JOB,
) -> Smoke:
    """Run `job` on the worker, and compare with the baseline of its GPU or record one.

    `gpu` is what to file the figures under, by default the GPU that the result names; `with_bucket`
    has the clip delivered to the bucket; `record` replaces the baseline. Raises `JobFailed`, and
    `OSError` where the baselines cannot be read.
    """
    known = _read(baselines)
    if with_bucket:
        job = {**job, "output": {"delivery": "url"}}
    seed = secrets.randbelow(1 << 32)
    _run(worker, job, seed)
    results = [_run(worker, job, seed + index) for index in range(1, _TIMED_JOBS + 1)]
    fastest = min(results, key=_runtime_s)
    size, problems = _checked_object(results[-1]) if with_bucket else (None, [])
    name, kind = gpu or _gpu_of(fastest), _kind_of(fastest)
    baseline = None if record else known.get(name, {}).get(kind)
    if baseline:
        problems += _regression(fastest, baseline)
    elif not problems:
        known.setdefault(name, {})[kind] = _entry(fastest)
        _write(baselines, known)
    return _found(name, fastest, baseline, size, problems)


def _found(
    gpu: str,
    result: GenerateResult,
    baseline: Mapping[str, Any] | None,
    object_bytes: int | None,
    problems: list[str],
) -> Smoke:
    return Smoke(
        gpu=gpu,
        job=_kind_of(result),
        engine=result.metadata.engine,
        worker_version=result.metadata.worker_version,
        runtime_s=_runtime_s(result),
        baseline_s=baseline["runtime_s"] if baseline else None,
        stages=result.timings.stages,
        baseline_stages=baseline["stages"] if baseline else {},
        object_bytes=object_bytes,
        problems=tuple(problems),
    )


def _answers(url: str) -> bool:
    try:
        requests.get(f"{url}/openapi.json", timeout=_PROBE_S).raise_for_status()
    except requests.RequestException:
        return False
    return True


def _run(worker: LocalWorker | RunPodEndpoint, job: Mapping[str, Any], seed: int) -> GenerateResult:
    return GenerateResult.model_validate(worker.run({**job, "seed": seed}, _ignore))


def _ignore(_progress: JobProgress) -> None:
    """Nobody watches."""


def _runtime_s(result: GenerateResult) -> float:
    """The worker's time for a job, without the way to the bucket."""
    return round(result.timings.total_s - result.timings.upload_s, 3)


def _gpu_of(result: GenerateResult) -> str:
    if result.metadata.engine == "sandbox":
        return "sandbox"
    return result.metadata.gpu or "CPU"


def _kind_of(result: GenerateResult) -> str:
    made = result.metadata
    size = f"{made.width}x{made.height}, {made.num_frames} frames"
    return f"{made.model} {made.variant}, {made.mode} {made.quality}, {size}"


def _regression(result: GenerateResult, baseline: Mapping[str, Any]) -> list[str]:
    took, before = _runtime_s(result), float(baseline["runtime_s"])
    if took <= max(before * _MOST_RATIO, before + _SLACK_S):
        return []
    grown = {
        name: seconds - baseline["stages"].get(name, 0.0)
        for name, seconds in result.timings.stages.items()
    }
    stage = max(grown, key=lambda name: grown[name], default=None)
    most = f", most of it in {stage}" if stage else ""
    return [f"the job took {took:.1f} s; its baseline is {before:.1f} s{most}"]


def _entry(result: GenerateResult) -> dict[str, Any]:
    return {
        "runtime_s": _runtime_s(result),
        "stages": result.timings.stages,
        "worker_version": result.metadata.worker_version,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _checked_object(result: GenerateResult) -> tuple[int | None, list[str]]:
    """The size of the clip in the bucket, or what is wrong with it.

    It is fetched, since a presigned link is good for nothing but GET, and its bytes are the proof.
    """
    clip = result.outputs[0]
    if result.video_url is None:
        return None, ["the clip came in the answer and not through the bucket"]
    digest, size = hashlib.sha256(), 0
    try:
        with requests.get(result.video_url, timeout=_TIMEOUT_S, stream=True) as response:
            if not response.ok:
                return None, [f"the clip's link is answered with status {response.status_code}"]
            for chunk in response.iter_content(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except requests.RequestException as error:
        return None, [f"the clip's link does not work ({type(error).__name__})"]
    if digest.hexdigest() != clip.sha256:
        return None, [f"the bucket has {size} bytes that are not the clip's {clip.bytes}"]
    return size, []


def _read(baselines: Path) -> dict[str, dict[str, Any]]:
    """Baselines by GPU, then by kind of job."""
    if not baselines.exists():
        return {}
    try:
        return json.loads(baselines.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(f"{baselines} is not JSON: {error}") from error


def _write(baselines: Path, known: Mapping[str, Any]) -> None:
    baselines.parent.mkdir(parents=True, exist_ok=True)
    part = baselines.with_suffix(".part")
    part.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(baselines)
