"""The worker's start: told once, warm where asked for, and never lost to its own warm-up."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from tests.conftest import SMALL, picture

from ltx_worker.boot import Boot
from ltx_worker.comfy.child import ChildProcess
from ltx_worker.engines import free_port
from ltx_worker.errors import WorkflowMismatch
from ltx_worker.result import BootTimings, GenerateResult, WarmUpTimings
from ltx_worker.settings import Settings
from ltx_worker.worker import Worker

ROOT = Path(__file__).parents[2]
MakeSettings = Callable[..., Settings]


@pytest.fixture
def make_settings(make_settings: MakeSettings) -> MakeSettings:
    """The same with short clips: a warm-up makes one of the largest size."""
    return functools.partial(make_settings, max_frames=9)


def ask(settings: Settings, path: str) -> Any:
    return requests.get(f"http://127.0.0.1:{settings.comfy_port}{path}", timeout=5).json()


def run(worker: Worker, job_id: str, **fields: Any) -> GenerateResult:
    result = worker.run({"id": job_id, "input": SMALL | fields})
    assert isinstance(result, GenerateResult)
    return result


def boot_of(worker: Worker) -> BootTimings:
    """What the first result tells of the start."""
    boot = run(worker, "first").timings.boot
    assert boot is not None
    return boot


def warm_up_of(worker: Worker) -> WarmUpTimings:
    warm_up = boot_of(worker).warm_up
    assert warm_up is not None
    return warm_up


def started_with(settings: Settings, fault: str, **options: object) -> Worker:
    """A worker whose engine has the fault armed when the warm-up comes."""
    boot = Boot(settings)
    boot.nodes()
    url = f"http://127.0.0.1:{settings.comfy_port}/sandbox/faults"
    requests.post(url, json={"fault": fault, **options}, timeout=5).raise_for_status()
    worker = Worker(settings, boot=boot)
    worker.start()
    return worker


def test_the_first_result_alone_tells_how_the_start_went(make_settings: MakeSettings) -> None:
    """Its parts are no longer than the whole, and ComfyUI was started before it answered."""
    worker = Worker(make_settings())
    worker.start()
    boot = boot_of(worker)
    assert 0 < boot.engine_from_s < boot.engine_from_s + boot.engine_s <= boot.ready_s
    assert boot.load_s + boot.wait_s + boot.check_s <= boot.ready_s
    assert boot.warm_up is None
    assert run(worker, "second", seed=2).timings.boot is None
    worker.close()


def test_a_raw_workflow_may_be_the_first_to_tell(make_settings: MakeSettings) -> None:
    """Whatever the first job is, its result has the report, and the next one has not."""
    worker = Worker(make_settings())
    worker.start()
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "p"}},
    }
    images = [{"name": "a.png", "image": picture(64, 64)}]
    first = worker.run({"id": "raw", "input": {"workflow": graph, "images": images}})
    assert first.timings.boot is not None
    assert run(worker, "second").timings.boot is None
    worker.close()


def test_a_job_that_fails_leaves_the_report_to_the_first_result(
    make_settings: MakeSettings,
) -> None:
    """It is told by the first answer that can carry it."""
    worker = Worker(make_settings())
    worker.start()
    with pytest.raises(Exception, match="num_frames"):
        run(worker, "refused", num_frames=99)
    assert boot_of(worker).ready_s > 0
    worker.close()


def test_a_warm_up_leaves_nothing_behind(make_settings: MakeSettings, tmp_path: Path) -> None:
    """No prompt in the history or the queue, no file, and its stages have been timed."""
    settings = make_settings(warm_up="true")
    worker = Worker(settings)
    worker.start()
    assert ask(settings, "/history") == {}
    assert ask(settings, "/queue") == {"queue_running": [], "queue_pending": []}
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    warm_up = warm_up_of(worker)
    assert warm_up.problem is None
    assert {"Loading models", "Diffusion, second pass", "Encoding"} <= warm_up.stages.keys()
    worker.close()


def test_a_warm_up_takes_one_step_of_each_pass(make_settings: MakeSettings) -> None:
    """Steps are what a clip's time grows with: at 0.3 s each, two of them and not eleven."""
    worker = started_with(make_settings(warm_up="true"), "slow", delay_s=0.3)
    stages = warm_up_of(worker).stages
    assert 0.2 < stages["Diffusion, first pass"] < 0.6
    assert 0.2 < stages["Diffusion, second pass"] < 0.6
    worker.close()


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("out_of_memory", "out_of_memory"),
        ("execution_error", "comfy_failed"),
        ("crash", "comfy_failed"),
    ],
)
def test_a_warm_up_that_fails_costs_no_job(
    make_settings: MakeSettings, fault: str, code: str
) -> None:
    """The worker starts with an engine that answers, and the report has the error's code."""
    settings = make_settings(warm_up="true")
    worker = started_with(settings, fault)
    assert worker.system_stats()["system"]
    assert warm_up_of(worker).problem == code
    worker.close()


def test_a_gpu_that_fails_in_the_warm_up_gets_a_new_comfyui(make_settings: MakeSettings) -> None:
    """What broke the process's CUDA context is gone with it: the first job is served."""
    worker = started_with(make_settings(warm_up="true"), "cuda_fault")
    assert worker.system_stats()["system"]
    assert warm_up_of(worker).problem == "comfy_failed"
    worker.close()


def test_a_warm_up_that_takes_too_long_is_given_up(make_settings: MakeSettings) -> None:
    """After the time that the setting allows the worker starts without."""
    settings = make_settings(warm_up="true", warm_up_timeout_s=0.5)
    worker = started_with(settings, "slow", delay_s=2)
    warm_up = warm_up_of(worker)
    assert warm_up.problem == "deadline_exceeded"
    assert 0.5 <= warm_up.seconds < 3
    worker.close()


def test_a_worker_without_models_starts_without_a_warm_up(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    """There is nothing to load: the report says so, and no job is tried."""
    nodes = tmp_path / "nodes.json"
    settings = make_settings()
    worker = Worker(settings)
    worker.start()
    info = requests.get(f"http://127.0.0.1:{settings.comfy_port}/object_info", timeout=5).text
    worker.close()
    nodes.write_text(info.replace(".safetensors", ".elsewhere"))
    settings = make_settings(warm_up="true", comfy_args=f"--speed 0 --node-info {nodes}")
    boot = Boot(settings)
    worker = Worker(settings, boot=boot)
    worker.start()
    warm_up = boot.finish().warm_up
    assert warm_up is not None
    assert warm_up.problem == "model_missing"
    worker.close()


def test_a_workflow_that_is_broken_ends_the_engine_that_was_begun(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    """The error is the same as without an engine, and none is left."""
    (tmp_path / "workflows").mkdir()
    settings = make_settings(workflows_dir=tmp_path / "workflows")
    boot = Boot(settings)
    boot.begin()
    with pytest.raises(WorkflowMismatch, match="no workflows"):
        Worker(settings, boot=boot)
    boot.close()
    with pytest.raises(requests.ConnectionError):
        ask(settings, "/queue")


def test_a_worker_that_is_told_to_end_in_its_warm_up_ends_at_once(tmp_path: Path) -> None:
    """SIGTERM does not wait for the clip that nobody gets; its engine goes with it."""
    port = free_port()
    environment = {
        "LTX2_ENGINE": "sandbox",
        "LTX2_COMFY_PORT": str(port),
        "LTX2_COMFY_ARGS": "--speed 500",
        "LTX2_WARM_UP": "true",
        "COMFY_INPUT_DIR": str(tmp_path / "input"),
        "COMFY_OUTPUT_DIR": str(tmp_path / "output"),
    }
    command = [sys.executable, str(ROOT / "handler.py"), "--rp_serve_api"]
    options = ["--rp_api_port", str(free_port())]
    with ChildProcess([*command, *options], environment=os.environ | environment) as worker:
        wait_until_busy(port, worker)
        told = time.monotonic()
        os.kill(worker.pid, signal.SIGTERM)
        while worker.is_alive:
            assert time.monotonic() - told < 8, worker.log_tail
            time.sleep(0.02)
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{port}/queue", timeout=5)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def wait_until_busy(port: int, worker: ChildProcess) -> None:
    """Wait until the engine at `port` runs a prompt."""
    give_up = time.monotonic() + 60
    while True:
        assert worker.is_alive, worker.log_tail
        assert time.monotonic() < give_up, worker.log_tail
        try:
            if requests.get(f"http://127.0.0.1:{port}/queue", timeout=5).json()["queue_running"]:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.02)
