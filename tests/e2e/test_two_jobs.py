"""`LTX2_CONCURRENCY=2` in the SDK's production loop: what overlaps, whose log, how it ends."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import requests
from tests.conftest import SMALL
from tests.delivery.storage import BUCKET, KEY_ID, SECRET, Wire, moto, wire
from tests.fakes.runpod_platform import RunPodPlatform, production_handler

from ltx_worker import engines
from ltx_worker.comfy.child import ChildProcess
from ltx_worker.progress import WAITING

LONG = SMALL | {"resolution": "512x320", "num_frames": 49, "quality": "pro"}
LINKED = {"output": {"delivery": "url"}}


@contextmanager
def worker_of_two(
    folder: Path, speed: float, **variables: str
) -> Generator[tuple[engines.Engine, RunPodPlatform, ChildProcess]]:
    """A handler that takes two jobs at a time, and its platform and engine."""
    settings = {"LTX2_CONCURRENCY": "2", "LTX2_LOG_FORMAT": "json", **variables}
    with (
        engines.sandbox(folder, ["--speed", str(speed)]) as engine,
        RunPodPlatform() as platform,
        production_handler(platform, engine.environment | settings) as process,
    ):
        yield engine, platform, process


def bucket_at(slow: Wire) -> dict[str, str]:
    """The variables of a bucket behind a slow way."""
    return {
        "R2_ENDPOINT_URL": slow.url,
        "R2_BUCKET": BUCKET,
        "R2_ACCESS_KEY_ID": KEY_ID,
        "R2_SECRET_ACCESS_KEY": SECRET,
    }


def wait_for(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.01)


def samples(platform: RunPodPlatform, job_id: str) -> bool:
    """Whether a job's progress has told of a sampling step."""
    return any(progress["step"] for _, progress in platform.record(job_id).progress)


def waits(platform: RunPodPlatform, job_id: str) -> bool:
    """Whether a job's progress has told that another comes first."""
    return any(progress["name"] == WAITING for _, progress in platform.record(job_id).progress)


def test_an_upload_overlaps_the_next_generation_and_logs_stay_apart(tmp_path: Path) -> None:
    """The second job samples before the first one's upload may end; each line has its own job."""
    hold = threading.Event()
    with moto() as storage, wire(storage, hold=hold) as slow:
        variables = bucket_at(slow)
        with worker_of_two(tmp_path, 2, **variables) as (_, platform, process):
            first = platform.submit(SMALL | LINKED | {"seed": 11}, job_id="first")
            second = platform.submit(LONG | LINKED | {"seed": 22}, job_id="second")
            assert slow.held.wait(30)
            wait_for(lambda: samples(platform, second))
            assert not platform.record(first).is_over
            hold.set()
            records = [platform.wait(job_id) for job_id in (first, second)]
            log = process.log_tail
        outputs = [record.output or {} for record in records]
        assert [output["metadata"]["seed"] for output in outputs] == [11, 22]
        assert [output["metadata"]["num_frames"] for output in outputs] == [9, 49]
        names = [urlsplit(output["video_url"]).path.rpartition("/")[2] for output in outputs]
        assert names == ["first.mp4", "second.mp4"]
        assert [record.posts_after_result for record in records] == [0, 0]
    events = [json.loads(line) for line in log if line.startswith("{")]
    for record in records:
        own = [event for event in events if event.get("job") == record.id]
        kinds = [event["event"] for event in own]
        assert (kinds[0], kinds[-1]) == ("job.started", "job.done")
        assert kinds.count("job.started") == kinds.count("job.done") == 1
        stages = [event["stage"] for event in own if event["event"] == "job.stage"]
        assert stages == [*own[-1]["stages"], "Delivery"]


def test_a_worker_of_two_leaves_in_order(tmp_path: Path) -> None:
    """Both jobs are answered as retryable, the one that waits too, and the engine is idle."""
    with worker_of_two(tmp_path, 4) as (engine, platform, process):
        jobs = [platform.submit(LONG | {"seed": seed}) for seed in (1, 2)]
        wait_for(lambda: samples(platform, jobs[0]))
        wait_for(lambda: waits(platform, jobs[1]))
        told = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        records = [platform.wait(job_id) for job_id in jobs]
        wait_for(lambda: not process.is_alive)
        assert time.monotonic() - told < 8
        for record in records:
            assert record.error_object["code"] == "cancelled"
            assert record.error_object["retryable"]
        left = [path for path in engine.output_dir.rglob("*") if path.is_file()]
        assert left == []


def test_a_cancelled_job_of_two_frees_its_place(tmp_path: Path) -> None:
    """RunPod stops the one that waits; the other ends well, and a third one comes in."""
    with worker_of_two(tmp_path, 2) as (_, platform, _process):
        first, second = (platform.submit(LONG | {"seed": seed}) for seed in (1, 2))
        wait_for(lambda: waits(platform, second))
        platform.cancel(second)
        wait_for(lambda: platform.record(second).stopped_at)
        third = platform.submit(SMALL | {"seed": 3})
        records = [platform.wait(job_id) for job_id in (first, second, third)]
    assert [record.state for record in records] == ["COMPLETED", "CANCELLED", "COMPLETED"]
    assert records[1].late is None


def test_the_answer_that_has_the_worker_replaced_comes_after_the_others(tmp_path: Path) -> None:
    """A broken GPU ends one job while another's clip is uploaded: that one is not lost."""
    hold = threading.Event()
    with moto() as storage, wire(storage, hold=hold) as slow:
        variables = bucket_at(slow)
        with worker_of_two(tmp_path, 1, **variables) as (engine, platform, process):
            first = platform.submit(SMALL | LINKED | {"seed": 1})
            assert slow.held.wait(30)
            fault = {"fault": "cuda_fault"}
            engine_url = f"{engine.url}/sandbox/faults"
            requests.post(engine_url, json=fault, timeout=5).raise_for_status()
            second = platform.submit(SMALL | {"seed": 2})
            wait_for(lambda: any("job.failed" in line for line in process.log_tail))
            assert not platform.record(second).is_over
            hold.set()
            records = [platform.wait(job_id) for job_id in (first, second)]
    assert [record.state for record in records] == ["COMPLETED", "FAILED"]
    assert records[1].stop_pod
    assert (records[0].finished_at or 0) < (records[1].finished_at or 0)
