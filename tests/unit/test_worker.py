"""Importing, starting and observing the worker, without an engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ltx_worker.errors import ComfyUnavailable, WorkflowMismatch
from ltx_worker.settings import InvalidSettings, Settings, load_settings
from ltx_worker.stop import StopSignal
from ltx_worker.worker import Worker

IMPORT = """
import sys, time
started = time.process_time()
import psutil, pydantic_settings, structlog, urllib3, websocket
libraries = time.process_time() - started
import ltx_worker.worker
seconds = time.process_time() - started
print(seconds, libraries, *(name in sys.modules for name in ("torch", "runpod", "numpy")))
"""


def test_importing_the_worker_is_quick_and_light() -> None:
    """The pipeline loads in under half a second of a core, without torch and RunPod's SDK.

    It is counted in a core's seconds, because other tests run beside this one. How fast the machine
    is at the moment, its libraries tell: 0.22 s of the half second are theirs.
    """
    # The best of three: the first run may read every file from disk.
    runs = [
        subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    seconds, libraries = min(
        (float(run.stdout.split()[0]), float(run.stdout.split()[1])) for run in runs
    )
    assert seconds < max(0.5, libraries / 0.22 * 0.5)
    assert runs[0].stdout.split()[2:] == ["False", "False", "False"]


def test_a_worker_without_an_engine_does_not_start() -> None:
    """Nothing listening at the address is said so, after the time that the setting allows."""
    worker = Worker(Settings(comfy_url="http://127.0.0.1:9", comfy_start_timeout_s=0.2))
    with pytest.raises(ComfyUnavailable, match=r"did not answer within 0\.2 s"):
        worker.start()
    worker.close()


def test_a_worker_whose_workflow_is_broken_is_not_made(tmp_path: Path) -> None:
    """A workflow and bindings that disagree are found before anything is started."""
    settings = Settings()
    bindings = (settings.workflows_dir / "t2v_fast.toml").read_text()
    (tmp_path / "t2v_fast.toml").write_text(bindings)
    graph = (settings.workflows_dir / "t2v_fast.json").read_text()
    (tmp_path / "t2v_fast.json").write_text(graph.replace('"First pass noise"', '"N"'))
    with pytest.raises(WorkflowMismatch, match="binding seed"):
        Worker(Settings(workflows_dir=tmp_path))


def test_an_empty_workflow_folder_is_refused(tmp_path: Path) -> None:
    """A wrong folder is an error at start, not a worker that refuses every job."""
    with pytest.raises(WorkflowMismatch, match="no workflows"):
        Worker(Settings(workflows_dir=tmp_path))


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables carry the prefix, but for the address of ComfyUI; empty ones count as unset."""
    monkeypatch.setenv("LTX2_MAX_FRAMES", "121")
    monkeypatch.setenv("COMFY_URL", "http://comfy:8188")
    monkeypatch.setenv("LTX2_VARIANT", "")
    settings = Settings()
    assert (settings.max_frames, settings.comfy_url, settings.variant) == (
        121,
        "http://comfy:8188",
        None,
    )


@pytest.mark.parametrize(("name", "value"), [("MAX_FRAMES", "0"), ("VARIANT", "int4")])
def test_settings_out_of_range_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """A value that makes no sense stops the worker at start."""
    monkeypatch.setenv(f"LTX2_{name}", value)
    with pytest.raises(InvalidSettings, match=f"LTX2_{name}: Input should be"):
        load_settings()


def test_a_stop_signal_waits_no_longer_than_it_may() -> None:
    """A wait ends with the job's time, by the deadline's error."""
    stop = StopSignal(0.05)
    with pytest.raises(Exception, match=r"limit of 0\.05 s"):
        stop.sleep(60)
