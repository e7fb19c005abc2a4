"""`handler.py` that cannot start says why in one line and ends with status 1."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ltx_worker import engines
from ltx_worker.comfy.child import ChildProcess
from ltx_worker.comfy.launch import EngineFolders, Launch
from ltx_worker.engines import free_port
from ltx_worker.errors import ComfyUnavailable
from ltx_worker.settings import Settings

ROOT = Path(__file__).parents[2]


def start_handler(**environment: str) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("LTX2_", "COMFY"))}
    return subprocess.run(
        [sys.executable, "handler.py", "--rp_serve_api"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=variables | environment,
    )


@pytest.fixture
def ambiguous_workflows(tmp_path: Path) -> Path:
    """A workflow folder in which one binding matches two nodes."""
    source = Settings().workflows_dir / "i2v_pro"
    graph = source.with_suffix(".json").read_text()
    (tmp_path / "i2v_pro.toml").write_text(source.with_suffix(".toml").read_text())
    (tmp_path / "i2v_pro.json").write_text(
        graph.replace('"Second pass noise"', '"First pass noise"')
    )
    return tmp_path


def last_line(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode == 1
    assert "Traceback" not in run.stdout + run.stderr
    return run.stderr.strip().splitlines()[-1]


def test_an_engine_that_is_not_there_is_named() -> None:
    """The address and the time waited are in the line."""
    line = last_line(
        start_handler(COMFY_URL="http://127.0.0.1:9", LTX2_COMFY_START_TIMEOUT_S="0.2")
    )
    assert "comfy_unavailable" in line
    assert "http://127.0.0.1:9" in line


def test_an_engine_that_cannot_be_kept_up_ends_the_worker(tmp_path: Path) -> None:
    """A container without ComfyUI would only lose jobs: it ends, and its last line says why."""
    port = free_port()
    environment = {
        "LTX2_ENGINE": "sandbox",
        "LTX2_COMFY_PORT": str(port),
        "COMFY_INPUT_DIR": str(tmp_path / "input"),
        "COMFY_OUTPUT_DIR": str(tmp_path / "output"),
    }
    record = Launch((), port, EngineFolders()).record_path
    command = [sys.executable, str(ROOT / "handler.py"), "--rp_serve_api"]
    options = ["--rp_api_port", str(free_port())]
    with ChildProcess([*command, *options], environment=os.environ | environment) as worker:
        killed: set[int] = set()
        give_up = time.monotonic() + 50
        while worker.is_alive:
            assert time.monotonic() < give_up, worker.log_tail
            if any("startup complete" in line for line in worker.log_tail):
                pid = json.loads(record.read_text())["engine"][0]
                if pid not in killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
            time.sleep(0.05)
        assert worker.status == 1
        assert "ComfyUI cannot be started again, it was killed" in worker.log_tail[-1]


def test_a_binding_that_matches_two_nodes_is_named(ambiguous_workflows: Path) -> None:
    """Both nodes are named, before any engine is asked."""
    line = last_line(start_handler(LTX2_WORKFLOWS_DIR=str(ambiguous_workflows)))
    assert "workflow_mismatch" in line
    assert "Workflow i2v_pro: binding seed" in line
    assert "2 nodes" in line


def test_a_setting_that_makes_no_sense_is_named() -> None:
    """The variable is named as the user wrote it."""
    assert "LTX2_MAX_FRAMES" in last_line(start_handler(LTX2_MAX_FRAMES="many"))


def test_an_engine_that_dies_at_start_is_told_by_its_last_words(tmp_path: Path) -> None:
    """A child that ends is not waited for; what it said last is in the error."""
    with (
        pytest.raises(ComfyUnavailable, match=r"ended at start \(status 2, .*no-such-option"),
        engines.sandbox(tmp_path, ["--no-such-option"]),
    ):
        pass
