"""Two jobs at a time on an engine that misbehaves: what ends one does not end the other."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from tests.conftest import SMALL, settings_for

from ltx_worker import engines
from ltx_worker.errors import JobError
from ltx_worker.progress import WAITING, JobProgress
from ltx_worker.settings import Settings
from ltx_worker.stop import StopSignal
from ltx_worker.worker import Worker

LONG = SMALL | {"resolution": "512x320", "num_frames": 49, "quality": "pro"}
IN_TIME_S = 30.0


class Pair:
    """Two jobs of one worker: the first samples when the second has come and waits."""

    def __init__(self, worker: Worker, **stops: StopSignal) -> None:
        self._worker = worker
        self._stops = stops
        self.reports: dict[str, list[JobProgress]] = {"first": [], "second": []}
        self.results: dict[str, Any] = {}
        self.errors: dict[str, JobError] = {}
        self._threads = {
            name: threading.Thread(target=self._run, args=(name, seed), daemon=True)
            for seed, name in enumerate(self.reports, 1)
        }
        self._threads["first"].start()
        wait_for(lambda: any(one["step"] for one in self.reports["first"]))
        self._threads["second"].start()
        wait_for(lambda: self._last("second") == WAITING)

    def _run(self, name: str, seed: int) -> None:
        job = {"id": name, "input": LONG | {"seed": seed}}
        stop = self._stops.get(name) or StopSignal(IN_TIME_S)
        try:
            self.results[name] = self._worker.run(job, stop, self.reports[name].append)
        except JobError as error:
            self.errors[name] = error

    def _last(self, name: str) -> str:
        return self.reports[name][-1]["name"] if self.reports[name] else ""

    def end(self) -> Pair:
        """Wait until both are over."""
        for thread in self._threads.values():
            thread.join(IN_TIME_S)
            assert not thread.is_alive()
        return self


def wait_for(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + IN_TIME_S
    while not condition():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.005)


def arm(engine: engines.Engine, fault: str, **options: object) -> None:
    body = {"fault": fault, **options}
    requests.post(f"{engine.url}/sandbox/faults", json=body, timeout=5).raise_for_status()


@pytest.fixture
def engine(tmp_path: Path, clean_environment: None) -> Generator[engines.Engine]:
    """A sandbox of one test's own, on which a step takes a while."""
    with engines.sandbox(tmp_path, ["--speed", "1"]) as running:
        yield running


@pytest.fixture
def worker(engine: engines.Engine) -> Generator[Worker]:
    worker = Worker(settings_for(engine))
    worker.start()
    yield worker
    worker.close()
    folders = (engine.input_dir, engine.output_dir)
    assert [path for folder in folders for path in folder.rglob("*") if path.is_file()] == []


def test_memory_runs_out_for_one_of_two(engine: engines.Engine, worker: Worker) -> None:
    """The one that waits runs after the memory was given back."""
    arm(engine, "out_of_memory", node_class="VAEDecodeTiled")
    pair = Pair(worker).end()
    assert pair.errors["first"].code == "out_of_memory"
    assert pair.results["second"].metadata.seed == 2


def test_a_broken_gpu_ends_both_before_the_second_is_sent(
    engine: engines.Engine, worker: Worker
) -> None:
    """No prompt goes to a GPU that is known to be broken; both ask for another worker."""
    arm(engine, "cuda_fault", node_class="VAEDecodeTiled")
    pair = Pair(worker).end()
    codes = {name: error.code for name, error in pair.errors.items()}
    assert codes == {"first": "comfy_failed", "second": "comfy_unavailable"}
    assert all(error.replace_worker and error.retryable for error in pair.errors.values())
    assert {report["name"] for report in pair.reports["second"]} == {WAITING}
    assert requests.get(f"{engine.url}/history", timeout=5).json() == {}


def test_a_prompt_that_does_not_stop_is_waited_for_by_the_job_behind_it(
    engine: engines.Engine, worker: Worker
) -> None:
    """It ends with its deadline; what it still writes then is removed after it has stopped."""
    arm(engine, "slow", delay_s=3.0)
    started = time.monotonic()
    pair = Pair(worker, first=StopSignal(3.5)).end()
    assert pair.errors["first"].code == "deadline_exceeded"
    assert pair.results["second"].metadata.seed == 2
    assert pair.results["second"].timings.queue_s < time.monotonic() - started
    assert requests.get(f"{engine.url}/queue", timeout=5).json()["queue_running"] == []


def test_an_engine_that_dies_ends_one_job_and_runs_the_next(
    tmp_path: Path, clean_environment: None
) -> None:
    """The one that had it fails as retryable; the one that waits runs on the next engine."""
    settings = Settings(
        engine="sandbox",
        comfy_port=engines.free_port(),
        comfy_args="--speed 1",
        comfy_input_dir=tmp_path / "input",
        comfy_output_dir=tmp_path / "output",
    )
    worker = Worker(settings)
    worker.start()
    try:
        pair = Pair(worker)
        os.kill(engine_pid(settings.comfy_port), signal.SIGKILL)
        pair.end()
    finally:
        worker.close()
    assert pair.errors["first"].code == "comfy_failed"
    assert pair.errors["first"].retryable
    assert not pair.errors["first"].replace_worker
    assert pair.results["second"].metadata.seed == 2


def engine_pid(port: int) -> int:
    """The process that listens on a port."""
    found = [
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    ]
    assert found[0] is not None
    return found[0]
