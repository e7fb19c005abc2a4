"""ComfyUI, or the way to it, fails while a job runs."""

from __future__ import annotations

import os
import signal
import time

import pytest
from tests.conftest import picture
from tests.faults.conftest import StartCase, real_comfyui
from tests.faults.deployment import wait_until

both = pytest.mark.parametrize("engine_name", ["sandbox", real_comfyui()])
# How torch, CUDA, Python and ComfyUI say that memory ran out.
MEMORY_ERRORS = {
    "torch": ("torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.50 GiB."),
    "allocation on device": ("torch.OutOfMemoryError", "Allocation on device"),
    "accelerator": ("torch.AcceleratorError", "CUDA error: out of memory\nCUDA kernel errors"),
    "runtime": ("RuntimeError", "CUDA error: out of memory"),
    "cublas": ("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    "machine": ("RuntimeError", "[enforce fail at alloc_cpu.cpp:126] DefaultCPUAllocator: can't"),
    "python": ("MemoryError", ""),
}


@both
def test_socket_closed_mid_job(start: StartCase) -> None:
    """What comes after the close is asked for, and the clip is found."""
    case = start()
    job = case.submit_slow()
    assert case.proxy.cut_sockets() == 1
    case.expect(job, "video")
    case.recovers()


@both
def test_socket_half_open(start: StartCase) -> None:
    """A socket that stays open and silent holds nothing up."""
    case = start()
    job = case.submit_slow()
    assert case.proxy.silence_sockets() == 1
    case.expect(job, "video")
    case.recovers()


@both
def test_connections_refused_for_5_s(start: StartCase) -> None:
    """The job goes on when ComfyUI can be reached again."""
    case = start()
    job = case.submit_slow()
    with case.proxy.refusing():
        time.sleep(5)
    case.expect(job, "video")
    case.recovers()


@both
def test_final_event_lost(start: StartCase) -> None:
    """The history says that the prompt is over."""
    case = start()
    case.proxy.loses_final_events = True
    case.expect(case.submit(), "video", within_s=10)
    case.proxy.loses_final_events = False
    case.recovers()


@pytest.mark.parametrize("is_queued", [False, True], ids=["not queued", "queued"])
def test_prompt_answered_with_500_once(start: StartCase, is_queued: bool) -> None:
    """Whether the prompt was queued is looked up before it is sent again."""
    case = start()
    case.engine.arm("prompt_500", queued=is_queued)
    case.expect(case.submit(), "video", within_s=10)
    case.recovers()


@both
def test_engine_killed_mid_job_and_restarted(start: StartCase) -> None:
    """The job ends at once; the next one waits for the engine that was started again."""
    case = start(owned=True)
    job = case.submit_slow()
    killed, pid = time.monotonic(), case.engine.pid
    os.kill(pid, signal.SIGKILL)
    record = case.expect(job, "comfy_failed")
    assert record.error_object["retryable"]
    assert (record.finished_at or 0) - killed < 2
    case.recovers()
    assert case.engine.pid != pid


@both
def test_engine_not_up_for_10_s(start: StartCase) -> None:
    """A job that arrives before ComfyUI waits for it."""
    case = start()
    with case.remote.down():
        job = case.submit()
        time.sleep(case.wait_handed_out(job) + 10 - time.monotonic())
    case.expect(job, "video")
    assert (case.row.seconds or 0) > 10
    case.recovers()


@pytest.mark.parametrize("is_owned", [True, False], ids=["owned", "remote"])
def test_engine_hung_mid_job(start: StartCase, is_owned: bool) -> None:
    """It takes connections and never answers; the worker's own is replaced."""
    case = start(owned=is_owned, LTX2_COMFY_UNRESPONSIVE_S="2")
    job = case.submit_slow()
    with case.engine.frozen():
        record = case.expect(job, "comfy_unavailable", within_s=15)
        assert record.error_object["retryable"]
    case.recovers()


@pytest.mark.parametrize("is_owned", [True, False], ids=["owned", "remote"])
def test_engine_hung_before_the_job(start: StartCase, is_owned: bool) -> None:
    """The same where it hangs already when the job arrives."""
    case = start(owned=is_owned, LTX2_COMFY_UNRESPONSIVE_S="2")
    with case.engine.frozen():
        case.expect(case.submit(), "comfy_unavailable", within_s=10)
    case.recovers()


@both
def test_validation_error(start: StartCase) -> None:
    """ComfyUI refuses the graph and says why."""
    case = start()
    size = {"width": 10_000_000, "height": 16, "upscale_method": "bilinear", "crop": "disabled"}
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "ImageScale", "inputs": {"image": ["1", 0], **size}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
    }
    images = [{"name": "a.png", "image": picture(16, 16)}]
    job = case.submit(job_input={"workflow": graph, "images": images})
    assert "width" in case.expect(job, "comfy_rejected").error_object["message"]
    case.recovers()


@both
def test_execution_error(start: StartCase) -> None:
    """The node that failed is named."""
    case = start()
    message = "The size of tensor a must match the size of tensor b"
    case.engine.arm("execution_error", exception_type="RuntimeError", message=message)
    error = case.expect(case.submit(), "comfy_failed").error_object
    assert (
        f"node 'First pass' (SamplerCustomAdvanced) failed: RuntimeError: {message}"
        == (error["message"])
    )
    case.recovers()


@both
@pytest.mark.parametrize("spelling", MEMORY_ERRORS)
def test_out_of_memory(start: StartCase, spelling: str) -> None:
    """Every spelling is one code, with what to ask for instead."""
    case = start()
    kind, message = MEMORY_ERRORS[spelling]
    case.engine.arm("execution_error", exception_type=kind, message=message)
    error = case.expect(case.submit(), "out_of_memory").error_object
    assert error["hint"]
    case.recovers()


def test_gpu_fault(start: StartCase) -> None:
    """After a CUDA fault no answer of the worker can be trusted."""
    case = start(owned=True)
    case.engine.arm("cuda_fault")
    job = case.submit()
    case.expect(job, "comfy_failed")
    case.asks_to_be_replaced(job)


def test_engine_reports_a_clip_that_is_not_there(start: StartCase) -> None:
    """No success without a clip."""
    case = start()
    case.engine.arm("stale_cache")
    case.expect(case.submit(), "comfy_failed")
    case.recovers()


@both
def test_foreign_prompt_in_the_queue(start: StartCase) -> None:
    """Another client's prompt runs first; ours gets its own clip, theirs its own end."""
    case = start()
    case.submit_foreign(delay_s=0.2)
    case.expect(case.submit(), "video")
    case.expect_foreign_success()
    case.recovers()


@both
def test_cancel_behind_a_foreign_prompt(start: StartCase) -> None:
    """Our prompt leaves the queue; theirs goes on."""
    case = start()
    case.submit_foreign(delay_s=0.4)
    job = case.submit()
    wait_until(lambda: case.engine.queue("pending"))
    case.platform.cancel(job)
    case.expect_stopped(job, "CANCELLED")
    assert case.engine.queue("running")
    case.expect_foreign_success()
    case.recovers()
