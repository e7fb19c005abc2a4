"""The worker's own engine: started, watched, started again, ended in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from tests.conftest import SMALL

from ltx_worker.comfy.diagnosis import Fault, death_of, fault_of
from ltx_worker.comfy.launch import launch_of
from ltx_worker.comfy.orphan import record
from ltx_worker.errors import ComfyFailed, ComfyUnavailable, JobError
from ltx_worker.settings import Settings
from ltx_worker.stop import StopSignal, in_daemon_thread
from ltx_worker.worker import Worker

MakeSettings = Callable[..., Settings]


@pytest.fixture
def owned(make_settings: MakeSettings) -> Generator[tuple[Worker, Settings]]:
    """A started worker that owns a sandbox."""
    settings = make_settings()
    worker = Worker(settings)
    worker.start()
    yield worker, settings
    worker.close()


def engine_process(settings: Settings) -> psutil.Process:
    """The process of the worker's own engine."""
    record = json.loads(launch_of(settings).record_path.read_text())
    return psutil.Process(record["engine"][0])


def arm(settings: Settings, fault: str, **options: object) -> None:
    url = f"http://127.0.0.1:{settings.comfy_port}/sandbox/faults"
    requests.post(url, json={"fault": fault, **options}, timeout=5).raise_for_status()


def failure_of(worker: Worker, job_id: str, **fields: Any) -> JobError:
    with pytest.raises(JobError) as failure:
        worker.run({"id": job_id, "input": SMALL | fields})
    return failure.value


def test_a_worker_that_owns_its_engine_serves_and_leaves_nothing(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    """The engine is there while the worker is, and gone with it."""
    settings = make_settings()
    worker = Worker(settings)
    worker.start()
    process = engine_process(settings)
    assert worker.run({"id": "one", "input": SMALL}).metadata.engine == "sandbox"
    worker.close()
    assert not process.is_running()
    assert not launch_of(settings).record_path.exists()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_engine_killed_in_a_job_ends_the_job_at_once_and_serves_the_next(
    owned: tuple[Worker, Settings],
) -> None:
    """SIGKILL is told as what it mostly is; the next job waits for the new engine."""
    worker, settings = owned
    arm(settings, "slow", delay_s=0.5)
    first = engine_process(settings)
    running = in_daemon_thread(lambda: failure_of(worker, "killed"))
    wait_for_queue(settings)
    killed = time.monotonic()
    first.send_signal(signal.SIGKILL)
    error = running.result(timeout=10)
    assert time.monotonic() - killed < 1
    assert (error.code, error.retryable, error.replace_worker) == ("comfy_failed", True, False)
    assert "killed, as the system does when the machine's memory runs out" in error.message
    assert worker.run({"id": "next", "input": SMALL}).metadata.num_frames == 9
    assert engine_process(settings).pid != first.pid


def wait_for_queue(settings: Settings) -> None:
    url = f"http://127.0.0.1:{settings.comfy_port}/queue"
    give_up = time.monotonic() + 10
    while not requests.get(url, timeout=5).json()["queue_running"]:
        assert time.monotonic() < give_up, "no prompt came"
        time.sleep(0.02)


def test_an_engine_that_keeps_dying_is_given_up_and_the_worker_asks_to_be_replaced(
    owned: tuple[Worker, Settings],
) -> None:
    """Every job ends with its cause; at last the worker says that it waits to be replaced."""
    worker, settings = owned
    codes: list[str] = []
    asked = False
    for attempt in range(6):
        if not asked:
            arm_when_up(worker, settings)
        error = failure_of(worker, f"dies {attempt}", seed=attempt)
        codes.append(error.code)
        asked = error.replace_worker
    assert codes[:4] == ["comfy_failed"] * 4
    assert codes[4:] == ["comfy_unavailable"] * 2
    assert asked


def arm_when_up(worker: Worker, settings: Settings) -> None:
    """Have the next prompt end the engine, once that is up again."""
    give_up = time.monotonic() + 20
    while True:
        try:
            return arm(settings, "crash")
        except requests.ConnectionError:
            if time.monotonic() > give_up or failed_for_good(worker):
                return None
            time.sleep(0.05)


def failed_for_good(worker: Worker) -> bool:
    try:
        worker._server.wait_ready(StopSignal(0.01))
    except ComfyUnavailable:
        return True
    except JobError:
        return False
    return False


def test_an_engine_that_never_answers_is_replaced(make_settings: MakeSettings) -> None:
    """A job on a hung engine ends after the time that the setting allows, and the next one runs."""
    settings = make_settings(comfy_unresponsive_s=1.5)
    worker = Worker(settings)
    worker.start()
    arm(settings, "hang", everything=True)
    started = time.monotonic()
    error = failure_of(worker, "hung")
    assert error.code == "comfy_unavailable"
    assert error.retryable
    assert 1.5 <= time.monotonic() - started < 8
    assert worker.run({"id": "next", "input": SMALL}).metadata.num_frames == 9
    worker.close()


def test_a_deadline_is_kept_on_an_engine_that_never_answers(make_settings: MakeSettings) -> None:
    """However long an answer is owed, the job ends within two seconds of its deadline."""
    worker = Worker(settings := make_settings())
    worker.start()
    arm(settings, "hang", everything=True)
    started = time.monotonic()
    with pytest.raises(JobError) as failure:
        worker.run({"id": "late", "input": SMALL}, StopSignal(1))
    assert failure.value.code == "deadline_exceeded"
    assert time.monotonic() - started < 3
    worker.close()


ORPHANING = """
import os, signal, sys
from ltx_worker.settings import Settings
from ltx_worker.worker import Worker
worker = Worker(Settings())
worker.start()
print("ready", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def orphaning_environment(settings: Settings) -> dict[str, str]:
    return os.environ | {
        "LTX2_ENGINE": "sandbox",
        "LTX2_COMFY_PORT": str(settings.comfy_port),
        "COMFY_INPUT_DIR": str(settings.comfy_input_dir),
        "COMFY_OUTPUT_DIR": str(settings.comfy_output_dir),
    }


def test_an_engine_whose_worker_was_killed_is_ended_by_the_next(
    make_settings: MakeSettings,
) -> None:
    """The orphan would hold the port and the memory of the GPU."""
    settings = make_settings()
    environment = orphaning_environment(settings)
    subprocess.run([sys.executable, "-c", ORPHANING], env=environment, timeout=30, check=False)
    orphan = engine_process(settings)
    assert orphan.is_running()
    worker = Worker(settings)
    worker.start()
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
    assert worker.run({"id": "after", "input": SMALL}).metadata.num_frames == 9
    worker.close()


def test_an_engine_that_ended_at_once_is_not_written_down(tmp_path: Path) -> None:
    """Why it ended is told by what waits for it; a later worker has nothing to end."""
    engine = subprocess.Popen([sys.executable, "-c", ""])
    engine.wait()
    record(tmp_path / "engine.json", engine.pid)
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_told_at_start(make_settings: MakeSettings) -> None:
    """The engine's last words are turned into the reason."""
    settings = make_settings()
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(settings.comfy_port), "--bind", "127.0.0.1"],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_port(settings.comfy_port)
        worker = Worker(settings)
        with pytest.raises(ComfyUnavailable, match="its port is in use by another program"):
            worker.start()
    finally:
        server.kill()
        server.wait()


def wait_for_port(port: int) -> None:
    give_up = time.monotonic() + 10
    while True:
        try:
            requests.get(f"http://127.0.0.1:{port}", timeout=1)
        except requests.ConnectionError:
            assert time.monotonic() < give_up, "the server did not start"
            time.sleep(0.02)
        else:
            return


def test_no_engine_at_all_is_told_before_anything_starts(clean_environment: None) -> None:
    """Whoever sets nothing is told what there is to set."""
    with pytest.raises(ComfyUnavailable, match=r"COMFYUI_DIR .* COMFY_URL .* LTX2_ENGINE=sandbox"):
        Worker(Settings())


@pytest.mark.parametrize(
    ("status", "log", "cause"),
    [
        (-9, [], "killed, as the system does"),
        (-11, ["Fatal Python error: Segmentation fault"], "crashed (SIGSEGV)"),
        (1, ["ModuleNotFoundError: No module named 'kornia'"], "No module named 'kornia'"),
        (1, ["OSError: [Errno 28] No space left on device"], "the disk is full"),
        (1, ["torch.AcceleratorError: CUDA error: an illegal memory access"], "CUDA fault"),
        (1, ["RuntimeError: The NVIDIA driver version is insufficient"], "no usable GPU"),
        (-9, ["torch.OutOfMemoryError: CUDA out of memory."], "the GPU's memory ran out"),
        (3, ["bye"], "it ended with status 3"),
    ],
)
def test_a_death_is_told_by_its_cause(status: int, log: list[str], cause: str) -> None:
    """What the log shows goes before what the exit status says."""
    assert cause in death_of(status, log).cause


@pytest.mark.parametrize(
    ("kind", "message", "fault"),
    [
        ("torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate", Fault.GPU_MEMORY),
        ("torch.AcceleratorError", "CUDA error: out of memory\nCUDA kernel", Fault.GPU_MEMORY),
        ("RuntimeError", "CUDA error: out of memory", Fault.GPU_MEMORY),
        ("MemoryError", "\n", Fault.SYSTEM_MEMORY),
        ("RuntimeError", "[enforce fail] DefaultCPUAllocator: can't allocate", Fault.SYSTEM_MEMORY),
        ("RuntimeError", "CUDA error: an illegal memory access was", Fault.GPU_FAULT),
        ("torch.AcceleratorError", "CUDA error: device-side assert triggered", Fault.GPU_FAULT),
        ("RuntimeError", "The size of tensor a must match", Fault.OTHER),
    ],
)
def test_a_node_s_failure_is_told_by_its_kind(kind: str, message: str, fault: Fault) -> None:
    """Every spelling of a lack of memory, and what ends a CUDA context, are told apart."""
    assert fault_of({"exception_type": kind, "exception_message": message}) == fault


def test_a_fault_of_the_gpu_latches_the_worker(owned: tuple[Worker, Settings]) -> None:
    """After a CUDA fault every answer of this worker could be wrong: it asks to be replaced."""
    worker, settings = owned
    arm(settings, "cuda_fault")
    first, second = failure_of(worker, "faults"), failure_of(worker, "after")
    assert (first.code, first.retryable, first.replace_worker) == ("comfy_failed", True, True)
    assert (second.code, second.replace_worker) == ("comfy_unavailable", True)


def test_an_unknown_incarnation_is_a_failed_job(owned: tuple[Worker, Settings]) -> None:
    """A job of an engine that was started again is not looked for in the new one."""
    with pytest.raises(ComfyFailed, match="ended while the job ran"):
        owned[0]._server.check(0)
