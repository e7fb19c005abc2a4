"""A job is stopped, delivered twice, or its result cannot be handed over."""

from __future__ import annotations

import base64
import io
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from tests.faults.case import Case
from tests.faults.conftest import StartCase, real_comfyui
from tests.faults.deployment import wait_until

both = pytest.mark.parametrize("engine_name", ["sandbox", real_comfyui()])
DEADLINE_S = 4.0


@both
def test_cancel_mid_sampling(start: StartCase) -> None:
    """ComfyUI stops with the current step, and nothing is posted for the job."""
    case = start()
    job = case.submit_slow()
    case.platform.cancel(job)
    case.expect_stopped(job, "CANCELLED")
    case.recovers()


@both
def test_execution_timeout_of_runpod(start: StartCase) -> None:
    """The same when the platform's own time is up."""
    case = start()
    job = case.submit_slow(execution_timeout_s=3)
    case.platform.wait(job)
    case.expect_stopped(job, "TIMED_OUT")
    case.recovers()


def frozen(case: Case) -> AbstractContextManager[None]:
    return case.engine.frozen()


def down(case: Case) -> AbstractContextManager[None]:
    return case.remote.down()


@contextmanager
def occupied(case: Case) -> Generator[None]:
    """A prompt of somebody else's runs for longer than our job may take."""
    case.submit_foreign(delay_s=0.8)
    yield
    case.expect_foreign_success()


HINDRANCES: dict[str, Callable[[Case], AbstractContextManager[None]]] = {
    "on a hung engine": frozen,
    "while the engine is down": down,
    "behind a foreign prompt": occupied,
}


@both
def test_deadline_while_sampling(start: StartCase) -> None:
    """A job that samples is stopped with its current step."""
    case = start(LTX2_JOB_TIMEOUT_S=f"{DEADLINE_S:g}")
    job = case.submit_slow(delay_s=0.6)
    case.expect_deadline(job, DEADLINE_S)
    case.recovers()


def test_deadline_while_sampling_out_of_reach(start: StartCase) -> None:
    """A ComfyUI that could not be told to stop is told when it can be reached again."""
    case = start(LTX2_JOB_TIMEOUT_S=f"{DEADLINE_S:g}")
    job = case.submit_slow(delay_s=0.8)
    with case.proxy.refusing():
        case.expect_deadline(job, DEADLINE_S)
    case.recovers()


@pytest.mark.parametrize("where", HINDRANCES)
def test_deadline(start: StartCase, where: str) -> None:
    """Whatever a job waits for, it ends when its time is up."""
    case = start(LTX2_JOB_TIMEOUT_S=f"{DEADLINE_S:g}")
    with HINDRANCES[where](case):
        case.expect_deadline(case.submit(), DEADLINE_S)
    case.recovers()


@pytest.mark.parametrize("is_owned", [True, False], ids=["owned engine", "remote engine"])
def test_sigterm_mid_job(start: StartCase, is_owned: bool) -> None:
    """The job is answered so that another worker takes it; the engine is left idle, or ended."""
    case = start(owned=is_owned)
    job = case.submit_slow()
    pid = case.engine.pid
    seconds = case.deployment.signal(signal.SIGTERM)
    assert seconds < 3
    assert case.deployment.process.status == 0
    assert case.expect(job, "cancelled").error_object["retryable"]
    assert is_alive(pid) == (not is_owned)
    if not is_owned:
        wait_until(lambda: not case.engine.queued(), timeout_s=2)
    case.restart_worker(seconds)
    case.recovers()


@pytest.mark.parametrize("is_owned", [True, False], ids=["owned engine", "remote engine"])
def test_sigterm_when_idle(start: StartCase, is_owned: bool) -> None:
    """A worker that waits for a job ends at once."""
    case = start(owned=is_owned)
    case.expect(case.submit(), "video")
    pid = case.engine.pid
    seconds = case.deployment.signal(signal.SIGTERM)
    assert seconds < 3
    assert case.deployment.process.status == 0
    assert is_alive(pid) == (not is_owned)
    case.restart_worker(seconds)
    case.recovers()


@pytest.mark.parametrize("is_owned", [True, False], ids=["owned engine", "remote engine"])
def test_worker_killed_mid_job(start: StartCase, is_owned: bool) -> None:
    """The job is delivered again to the worker that is started next."""
    case = start(owned=is_owned)
    job = case.submit_slow()
    kill_and_redeliver(case, job)
    case.expect(job, "video")
    case.recovers()


@pytest.mark.parametrize("is_deleted", [False, True], ids=["clip there", "clip deleted"])
def test_worker_killed_and_the_engine_finished(start: StartCase, is_deleted: bool) -> None:
    """A clip that the engine has made already is used, one that is gone is made again."""
    case = start()
    job = case.submit_slow()
    os.kill(case.deployment.process.pid, signal.SIGKILL)
    wait_until(case.engine.history)
    (clip,) = case.engine.output_dir.rglob("*.mp4")
    if is_deleted:
        clip.unlink()
    kill_and_redeliver(case, job)
    case.expect(job, "video")
    case.recovers()


def kill_and_redeliver(case: Case, job: str) -> None:
    if case.deployment.process.is_alive:
        case.deployment.signal(signal.SIGKILL)
    case.deployment.stop()
    case.platform.redeliver(job)
    case.deployment.start()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_delivered_again_while_it_runs(start: StartCase) -> None:
    """Each delivery has the clip."""
    case = start()
    job = case.submit_slow(delay_s=0.3)
    case.platform.redeliver(job)
    case.expect(job, "video", results=2)
    wait_until(lambda: len(case.platform.results(job)) == 2)
    first, second = (result["output"]["video"] for result in case.platform.results(job))
    assert first == second
    case.recovers()


def test_delivered_again_after_its_end(start: StartCase) -> None:
    """The clip is made again: the first one's files are gone."""
    case = start()
    job = case.submit()
    case.expect(job, "video")
    case.platform.redeliver(job)
    case.expect(job, "video", results=2)
    case.recovers()


def test_same_request_twice(start: StartCase) -> None:
    """Nothing of the first one's cached files is missed."""
    case = start()
    for _ in range(2):
        case.expect(case.submit(seed=7), "video")
    case.recovers()


def test_result_over_the_limit(start: StartCase) -> None:
    """The caller is told the size and the ways out."""
    case = start(LTX2_MAX_RESPONSE_BYTES="300000")
    job = case.submit(resolution="1024x1024", num_frames=49)
    error = case.expect(job, "output_too_large").error_object
    assert error["hint"]
    case.recovers()


def test_late_progress(start: StartCase) -> None:
    """The result waits until the progress before it has arrived."""
    case = start()
    case.platform.progress_delay_s = 3
    # Its steps are over before the first progress has arrived.
    record = case.expect(case.queue_slow(delay_s=0.1), "video")
    assert record.progress
    case.platform.progress_delay_s = 0
    case.recovers()


class _Refusing(BaseHTTPRequestHandler):
    """Storage that takes nothing."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def refusing_storage() -> Generator[dict[str, str]]:
    """The settings of a bucket that answers 403 to every upload."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {
            "R2_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "R2_BUCKET": "clips",
            "R2_ACCESS_KEY_ID": "id",
            "R2_SECRET_ACCESS_KEY": "secret",
        }
        server.shutdown()


def test_storage_refuses_the_upload(start: StartCase, refusing_storage: dict[str, str]) -> None:
    """The clip cannot be handed over as asked; those that go inside the answer can."""
    case = start(**refusing_storage, LTX2_KEEP_FAILED_S="0")
    job = case.submit(output={"delivery": "url"})
    case.expect(job, "delivery_failed")
    case.recovers()


def noise() -> str:
    """A picture that does not get small, as base64."""
    buffer = io.BytesIO()
    Image.effect_noise((256, 256), 80).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def output_dir(case: Case) -> Path:
    return case.engine.output_dir


def input_dir(case: Case) -> Path:
    return case.engine.input_dir


def temporary_dir(case: Case) -> Path:
    return case.deployment.temporary_dir


FOLDERS = {
    "output folder": (output_dir, {}, "comfy_failed"),
    "input folder": (input_dir, {"image": noise()}, "internal"),
    "temporary folder": (temporary_dir, {"output": {"last_frame": True}}, "internal"),
}


@pytest.mark.parametrize("where", FOLDERS)
def test_disk_full(start: StartCase, where: str) -> None:
    """The job says so; when there is room again, the next one succeeds."""
    folder_of, fields, code = FOLDERS[where]
    case = start()
    with tiny_disk(folder_of(case)):
        error = case.expect(case.submit(**fields), code).error_object
        assert "disk is full" in error["message"] or "No space left" in error["message"]
        case.leaves_nothing()
    case.recovers()


@contextmanager
def tiny_disk(folder: Path) -> Generator[None]:
    """A file system of 4 kB in the place of `folder`."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.timeout(900)
def test_many_jobs_in_a_row(start: StartCase) -> None:
    """Each has its clip, and the worker's memory does not grow."""
    case = start()
    process = psutil.Process(case.deployment.process.pid)
    count = int(os.environ.get("FAULTS_JOBS", "200"))
    warm_bytes = 0
    for number in range(1, count + 1):
        case.expect(case.submit(), "video")
        if number == min(20, count // 2):
            warm_bytes = process.memory_info().rss
    growth_mb = (process.memory_info().rss - warm_bytes) / 1e6
    case.row.note = f"{count} jobs; the worker's memory grew by {growth_mb:.1f} MB"
    assert growth_mb < 5
    case.recovers()
