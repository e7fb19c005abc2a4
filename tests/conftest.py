"""Engines, workers and handlers for the tests: real processes on loopback, one a session."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import requests
from PIL import Image
from tests.comfyui.tiny_engine import tiny_comfyui

from ltx_worker import engines
from ltx_worker.comfy.execution import Executor
from ltx_worker.comfy.launch import EngineFolders
from ltx_worker.comfy.server import RemoteComfy
from ltx_worker.settings import Settings
from ltx_worker.worker import Worker

# The sizes are those of the wire: small, so that a clip takes a fraction of a second.
SMALL = {"prompt": "a cat in the rain", "resolution": "256x128", "num_frames": 9, "seed": 1}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine",
        choices=("sandbox", "comfyui"),
        default="sandbox",
        help="what the contract suite runs on; comfyui needs COMFYUI_DIR",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Tests of `tests/comfyui` ask questions that only a real ComfyUI can answer."""
    is_sandbox = config.getoption("--engine") == "sandbox"
    return True if is_sandbox and collection_path.name == "comfyui" else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts that tests recorded."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(scope="session")
def clean_environment() -> Generator[None]:
    """Settings of the developer's shell do not reach the tests."""
    kept = {k: v for k, v in os.environ.items() if k.startswith(("LTX2_", "COMFY_", "RUNPOD_"))}
    for name in kept:
        del os.environ[name]
    yield
    os.environ.update(kept)


@pytest.fixture
def make_settings(tmp_path: Path, clean_environment: None) -> Callable[..., Settings]:
    """Settings of a worker that owns a sandbox with its files under the test's folder."""

    def make(**values: Any) -> Settings:
        given = {
            "engine": "sandbox",
            "comfy_port": engines.free_port(),
            "comfy_args": "--speed 0",
            "comfy_input_dir": tmp_path / "input",
            "comfy_output_dir": tmp_path / "output",
        }
        return Settings(**(given | values))

    return make


@pytest.fixture(scope="session")
def engine_name(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("--engine")


@pytest.fixture(scope="session")
def engine(
    engine_name: str, tmp_path_factory: pytest.TempPathFactory, clean_environment: None
) -> Generator[engines.Engine]:
    """The engine that the contract suite runs on."""
    folder = tmp_path_factory.mktemp("engine")
    with start_engine(engine_name, folder) as running:
        yield running


@pytest.fixture(scope="module")
def slow_engine(
    engine_name: str, tmp_path_factory: pytest.TempPathFactory, clean_environment: None
) -> Generator[engines.Engine]:
    """An engine of a file's own on which a step takes a while; on a ComfyUI every step does."""
    folder = tmp_path_factory.mktemp("slow")
    starting = (
        engines.sandbox(folder, ["--speed", "1"])
        if engine_name == "sandbox"
        else start_engine(engine_name, folder)
    )
    with starting as running:
        yield running


def start_engine(name: str, folder: Path) -> AbstractContextManager[engines.Engine]:
    """An engine by name, with its files under `folder`."""
    if name == "comfyui":
        return tiny_comfyui(folder)
    return engines.sandbox(folder, ["--speed", "0"])


@pytest.fixture(scope="session")
def worker(engine: engines.Engine) -> Generator[Worker]:
    """A started worker in this process."""
    worker = Worker(settings_for(engine))
    worker.start()
    yield worker
    worker.close()


def settings_for(engine: engines.Engine, **values: Any) -> Settings:
    """Settings that point at `engine`."""
    return Settings(
        comfy_url=engine.url,
        comfy_input_dir=engine.input_dir,
        comfy_output_dir=engine.output_dir,
        comfy_models_dirs=engine.folders.models_dirs,
        **values,
    )


def executor_at(url: str) -> Executor:
    """What runs a graph on the engine at `url`."""
    return Executor(RemoteComfy(url, EngineFolders(), 5, 60))


@pytest.fixture(scope="session")
def handler_url(engine: engines.Engine) -> Generator[str]:
    """`handler.py` serving the SDK's local API in its own process."""
    with engines.handler(engine.environment) as url:
        yield url


RunJob = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="session")
def run_job(handler_url: str) -> RunJob:
    """Send one job's input through RunPod's SDK; returns RunPod's answer."""

    def run(job_input: dict[str, Any]) -> dict[str, Any]:
        response = requests.post(f"{handler_url}/runsync", json={"input": job_input}, timeout=120)
        response.raise_for_status()
        return response.json()

    return run


def clip_of(answer: dict[str, Any]) -> bytes:
    """The clip in RunPod's answer to a job that succeeded."""
    assert answer["status"] == "COMPLETED", answer
    return base64.b64decode(answer["output"]["video"], validate=True)


def frames_of(clip: bytes) -> np.ndarray:
    """Every frame of a clip, as uint8 of shape (frames, height, width, 3)."""
    with av.open(io.BytesIO(clip)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def sound_of(clip: bytes) -> tuple[np.ndarray, int]:
    """The sound of a clip as float samples of shape (channels, samples), and its rate in Hz."""
    with av.open(io.BytesIO(clip)) as container:
        stream = container.streams.audio[0]
        blocks = [frame.to_ndarray() for frame in container.decode(stream)]
        return np.concatenate(blocks, axis=1), stream.sample_rate


def picture(width: int, height: int, color: tuple[int, int, int] = (200, 60, 30)) -> str:
    """A PNG with a coloured gradient, as base64."""
    ramp = np.linspace(0.2, 1.0, width)[None, :, None] * np.array(color)[None, None, :]
    pixels = np.broadcast_to(ramp, (height, width, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
