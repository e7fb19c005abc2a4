"""The stand-in for RunPod: what the SDK's production loop meets there."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import requests
from tests.fakes.runpod_platform import (
    RUNSYNC_BYTES,
    HandlerEnded,
    RunPodPlatform,
    production_handler,
)

# One handler with every behaviour; a job's input says which.
HANDLER = """
import asyncio, os
import runpod
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules.rp_http import send_result

async def echo(job):
    return {"echo": job["input"], "s3Config": job.get("s3Config"), "pid": os.getpid()}

async def sleep(job):
    await send({"status": "IN_PROGRESS", "output": "asleep"}, job)
    try:
        await asyncio.sleep(job["input"]["sleep_s"])
    except asyncio.CancelledError:
        if job["input"].get("is_stubborn"):
            await send({"output": {"done": "anyway"}}, job)
        raise
    return {"done": job["input"]["sleep_s"]}

async def large(job):
    return {"video": "v" * job["input"]["bytes"]}

async def fail(job):
    raise ValueError("no")

async def refuse(job):
    return {"error": '{"code": "invalid_request"}'}

async def replace(job):
    return {"error": "the GPU is gone", "refresh_worker": True}

async def tell(job):
    for percent in (10, 60):
        await send({"status": "IN_PROGRESS", "output": {"percent": percent}}, job)
    asyncio.get_running_loop().call_later(0.3, lambda: asyncio.ensure_future(
        send({"status": "IN_PROGRESS", "output": {"percent": 99}}, job)))
    return {"done": True}

async def send(body, job):
    async with AsyncClientSession() as session:
        await send_result(session, body, job)

async def handle(job):
    return await globals()[job["input"]["do"]](job)

if "BROKEN" in os.environ:
    def disk():
        raise RuntimeError("no disk")
    runpod.serverless.register_fitness_check(disk)

runpod.serverless.start({
    "handler": handle,
    "concurrency_modifier": lambda _: int(os.environ.get("CONCURRENCY", "1")),
})
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("handler") / "any_handler.py"
    path.write_text(HANDLER)
    return path


@pytest.fixture(scope="module")
def platform(script: Path) -> Generator[RunPodPlatform]:
    """A platform with a worker of nine jobs at a time, so that no test waits for another."""
    with RunPodPlatform() as platform, production_handler(platform, {"CONCURRENCY": "9"}, script):
        yield platform


def wait_until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.01)


def test_a_job_is_handed_out_and_its_result_recorded(platform: RunPodPlatform) -> None:
    """The handler gets id, input and s3Config; its result ends the job, with moments in order."""
    before = time.monotonic()
    job_input = {"do": "echo", "text": "schön"}
    bucket = {"bucketName": "clips"}
    job_id = platform.submit(job_input, job_id="echo", s3_config=bucket)
    record = platform.wait("echo")
    assert job_id == "echo"
    assert record.state == "COMPLETED"
    assert record.output is not None
    assert record.output["echo"] == job_input
    assert record.output["s3Config"] == bucket
    assert record.handed_out_at is not None
    assert record.finished_at is not None
    assert before < record.handed_out_at < record.finished_at < time.monotonic()
    assert (record.error, record.deliveries, record.posts_after_result) == (None, 1, 0)


def test_a_result_over_the_limit_leaves_the_job_completed_without_output(
    platform: RunPodPlatform,
) -> None:
    """RunPod refuses the body; the caller sees a success with nothing in it."""
    record = platform.wait(platform.submit({"do": "large", "bytes": 11_000_000}))
    assert (record.state, record.output, record.error) == ("COMPLETED", None, None)
    assert record.refused_bytes is not None
    assert 11_000_000 < record.refused_bytes < 11_000_100


def test_a_large_result_is_taken_where_the_limit_allows_it(script: Path) -> None:
    """The limit of /runsync is 20 MB, for a job's input as well as for its result."""
    with RunPodPlatform(max_body_bytes=RUNSYNC_BYTES) as platform:
        with production_handler(platform, {}, script):
            job_input = {"do": "large", "bytes": 19_000_000, "padding": "p" * 15_000_000}
            record = platform.wait(platform.submit(job_input))
        assert record.output is not None
        assert len(record.output["video"]) == 19_000_000
        assert record.refused_bytes is None


def test_an_input_over_the_limit_is_not_queued(platform: RunPodPlatform) -> None:
    """RunPod refuses the request of a caller before there is a job."""
    with pytest.raises(ValueError, match="over the endpoint's limit"):
        platform.submit({"do": "echo", "padding": "p" * 10_000_000})


def test_an_error_that_is_returned_fails_the_job(platform: RunPodPlatform) -> None:
    """The handler's `error` is kept as the text it was and can be read as an object."""
    record = platform.wait(platform.submit({"do": "refuse"}))
    assert (record.state, record.output) == ("FAILED", None)
    assert record.error == '{"code": "invalid_request"}'
    assert record.error_object == {"code": "invalid_request"}
    assert not record.stop_pod


def test_an_error_that_is_raised_fails_the_job(platform: RunPodPlatform) -> None:
    """The SDK makes JSON of the exception."""
    record = platform.wait(platform.submit({"do": "fail"}))
    assert record.state == "FAILED"
    assert record.error_object["error_message"] == "no"
    assert record.error_object["worker_id"] == "worker-1"


def test_a_worker_can_ask_to_be_replaced(platform: RunPodPlatform) -> None:
    """`refresh_worker` in a handler's answer arrives as `stopPod`."""
    record = platform.wait(platform.submit({"do": "replace"}))
    assert (record.state, record.error, record.stop_pod) == ("FAILED", "the GPU is gone", True)


def test_progress_is_recorded_and_what_comes_after_the_result_is_counted(
    platform: RunPodPlatform,
) -> None:
    """Posts before the result are kept with their moments; the one after it stands out."""
    job_id = platform.submit({"do": "tell"})
    record = platform.wait(job_id)
    assert record.finished_at is not None
    assert [output for _, output in record.progress] == [{"percent": 10}, {"percent": 60}]
    assert all(moment < record.finished_at for moment, _ in record.progress)
    wait_until(lambda: platform.record(job_id).posts_after_result == 1)
    assert platform.record(job_id).state == "COMPLETED"


def test_a_cancelled_job_is_stopped_in_the_worker(platform: RunPodPlatform) -> None:
    """The stop channel ends the job's task, which then posts nothing."""
    job_id = platform.submit({"do": "sleep", "sleep_s": 60})
    # The SDK forgets a stop that it gets before the job has started, up to 0.1 s after taking it.
    wait_until(lambda: platform.record(job_id).progress)
    wait_until(lambda: job_id in platform.pings[-1].job_ids)
    platform.cancel(job_id)
    wait_until(lambda: platform.record(job_id).stopped_at)
    wait_until(lambda: job_id not in platform.pings[-1].job_ids)
    record = platform.record(job_id)
    assert (record.state, record.output, record.late) == ("CANCELLED", None, None)
    platform.cancel(job_id)
    assert platform.record(job_id) == record


def test_a_result_after_the_cancel_is_recorded_as_late(platform: RunPodPlatform) -> None:
    """The job stays cancelled, whatever its worker says."""
    job_id = platform.submit({"do": "sleep", "sleep_s": 60, "is_stubborn": True})
    wait_until(lambda: platform.record(job_id).progress)
    platform.cancel(job_id)
    wait_until(lambda: platform.record(job_id).late)
    record = platform.record(job_id)
    assert (record.state, record.output) == ("CANCELLED", None)
    assert record.late == {"output": {"done": "anyway"}}


def test_a_job_over_its_execution_timeout_is_stopped(platform: RunPodPlatform) -> None:
    """The time runs from the moment when the worker gets the job."""
    job_id = platform.submit({"do": "sleep", "sleep_s": 60}, execution_timeout_s=0.4)
    record = platform.wait(job_id)
    assert record.state == "TIMED_OUT"
    assert record.handed_out_at is not None
    assert record.finished_at is not None
    assert 0.4 <= record.finished_at - record.handed_out_at < 2
    wait_until(lambda: platform.record(job_id).stopped_at)


def test_a_job_that_ends_in_time_does_not_time_out(platform: RunPodPlatform) -> None:
    """The clock stops with the result."""
    job_id = platform.submit({"do": "echo"}, execution_timeout_s=0.5)
    assert platform.wait(job_id).state == "COMPLETED"
    time.sleep(0.6)
    record = platform.record(job_id)
    assert (record.state, record.stopped_at) == ("COMPLETED", None)


def test_a_job_is_delivered_again_while_it_runs(platform: RunPodPlatform) -> None:
    """The first result counts; the second is a post after it."""
    job_id = platform.submit({"do": "sleep", "sleep_s": 1})
    wait_until(lambda: platform.record(job_id).state == "IN_PROGRESS")
    platform.redeliver(job_id)
    wait_until(lambda: platform.record(job_id).deliveries == 2)
    assert not platform.record(job_id).is_over
    assert platform.wait(job_id).output == {"done": 1}
    wait_until(lambda: platform.record(job_id).posts_after_result == 1)


def test_a_job_that_is_over_is_run_again(platform: RunPodPlatform) -> None:
    """A caller's retry starts the record of the job afresh."""
    job_id = platform.submit({"do": "fail"})
    first = platform.wait(job_id)
    platform.redeliver(job_id)
    second = platform.wait(job_id)
    assert (second.state, second.deliveries, second.posts_after_result) == ("FAILED", 2, 0)
    assert first.finished_at is not None
    assert second.finished_at is not None
    assert second.finished_at > first.finished_at


def test_a_job_cancelled_in_the_queue_is_never_handed_out() -> None:
    """Without a worker a job waits; one cancelled meanwhile is not what the next worker gets."""
    with RunPodPlatform(hold_s=0.05) as platform:
        with pytest.raises(TimeoutError, match="No worker asked"):
            platform.wait_for_worker(0.05)
        cancelled, kept = platform.submit({"do": "echo"}), platform.submit({"do": "echo"})
        with pytest.raises(TimeoutError, match="The job is IN_QUEUE"):
            platform.wait(cancelled, 0.05)
        platform.cancel(cancelled)
        url = platform.environment["RUNPOD_WEBHOOK_GET_JOB"].replace("$ID", "worker-1")
        answers = [requests.get(f"{url}&job_in_progress=0", timeout=5) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 204]
        assert answers[0].json() == {"id": kept, "input": {"do": "echo"}}
        record = platform.record(cancelled)
        assert (record.state, record.deliveries, record.stopped_at) == ("CANCELLED", 0, None)


def test_a_worker_killed_in_its_poll_takes_no_job_and_the_next_one_does(script: Path) -> None:
    """A job goes to a worker that lives; a worker of one job at a time asks when it is done."""
    with RunPodPlatform(hold_s=0.5) as platform:
        with production_handler(platform, {}, script) as process:
            wait_until(lambda: platform.takes("worker-1") > 1)
            os.kill(process.pid, signal.SIGKILL)
            wait_until(lambda: not process.is_alive)
            first = platform.submit({"do": "echo"})
        second = platform.submit({"do": "echo"})
        with production_handler(platform, {}, script) as process:
            records = [platform.wait(first), platform.wait(second)]
        assert [r.output and r.output["pid"] for r in records] == [process.pid] * 2
        assert [r.deliveries for r in records] == [1, 1]
        assert records[0].finished_at is not None
        assert records[1].handed_out_at is not None
        assert records[0].finished_at < records[1].handed_out_at
        assert platform.takes_while_busy == 0


def test_pings_name_the_jobs_that_a_worker_has(platform: RunPodPlatform) -> None:
    """A heartbeat a second says who sends it and what it works on."""
    job_id = platform.submit({"do": "sleep", "sleep_s": 1.2})
    platform.wait(job_id)
    ping = next(ping for ping in platform.pings if job_id in ping.job_ids)
    assert ping.worker == "worker-1"


def test_a_worker_of_more_jobs_asks_while_it_is_busy(platform: RunPodPlatform) -> None:
    """Such polls are counted: a worker that shall run one job at a time must have none."""
    job_id = platform.submit({"do": "sleep", "sleep_s": 0.5})
    wait_until(lambda: platform.record(job_id).state == "IN_PROGRESS")
    platform.wait(platform.submit({"do": "echo"}))
    assert platform.takes_while_busy > 0


def test_a_failed_fitness_check_is_reported(script: Path) -> None:
    """The worker ends before it takes a job, and RunPod knows why."""
    with RunPodPlatform() as platform:
        with (
            pytest.raises(HandlerEnded, match=r"status 1, .*Worker is unhealthy"),
            production_handler(platform, {"BROKEN": "1"}, script),
        ):
            pass
        assert platform.unhealthy == "disk: RuntimeError: no disk"
        assert platform.pings == []
