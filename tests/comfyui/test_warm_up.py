"""After the warm-up a real ComfyUI keeps the loaders: the first job reads no weights."""

from __future__ import annotations

import json
import shlex
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import requests
from tests.comfyui.tiny_engine import TINY_ENVIRONMENT, TINY_MODELS, comfyui_dir, tiny_options
from tests.conftest import SMALL, executor_at

from ltx_worker.comfy.events import Cached, Event
from ltx_worker.engines import comfyui_options, free_port
from ltx_worker.result import GenerateResult
from ltx_worker.settings import Settings
from ltx_worker.stop import StopSignal
from ltx_worker.worker import Worker
from ltx_worker.workflow.values import Placed

LOADERS = {
    "CheckpointLoaderSimple",
    "LTXVAudioVAELoader",
    "LTXAVTextEncoderLoader",
    "LatentUpscaleModelLoader",
}


# Each way to keep results that gpu.toml may choose.
@pytest.fixture(scope="module", params=["--cache-classic", "--cache-lru 64", "--cache-ram 1 2"])
def settings(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Settings]:
    """A worker's own ComfyUI with the tiny weights, warmed up at its start."""
    folder = tmp_path_factory.mktemp("warm")
    options = [*tiny_options(folder), *comfyui_options(folder), *request.param.split()]
    with pytest.MonkeyPatch.context() as environment:
        for name, value in TINY_ENVIRONMENT.items():
            environment.setenv(name, value)
        yield Settings(
            comfyui_dir=comfyui_dir(),
            comfy_port=free_port(),
            comfy_args=shlex.join(options),
            comfy_input_dir=folder / "input",
            comfy_output_dir=folder / "output",
            comfy_models_dirs=(TINY_MODELS,),
            max_frames=25,
            warm_up="true",
        )


@pytest.fixture(scope="module")
def worker(settings: Settings) -> Generator[Worker]:
    """The worker, warm."""
    worker = Worker(settings)
    worker.start()
    yield worker
    worker.close()


def ask(settings: Settings, path: str) -> Any:
    return requests.get(f"http://127.0.0.1:{settings.comfy_port}{path}", timeout=30).json()


def cached_classes(worker: Worker, settings: Settings, **fields: Any) -> set[str]:
    """The classes of the nodes that ComfyUI does not run again for a job."""
    request = worker.repertoire.parse(SMALL | fields, default_seed=1)
    prefix = f"ltx2/{uuid.uuid4().hex}"
    _, graph = worker.repertoire.render(request, Placed(), prefix, (TINY_MODELS,))
    events: list[Event] = []
    executor = executor_at(f"http://127.0.0.1:{settings.comfy_port}")
    executor.execute(graph, str(uuid.uuid4()), StopSignal(120), events.append)
    (cached,) = [event for event in events if isinstance(event, Cached)]
    return {graph[node_id]["class_type"] for node_id in cached.node_ids}


def test_the_first_job_after_the_warm_up_runs_no_loader(worker: Worker, settings: Settings) -> None:
    """Another prompt, size, length and seed: all loaders are there, and only they are shared."""
    assert ask(settings, "/history") == {}
    assert list(Path(str(settings.comfy_output_dir)).rglob("*.mp4")) == []
    cached = cached_classes(worker, settings, prompt="a dog on a hill", seed=5)
    assert cached >= LOADERS
    assert not cached & {"CLIPTextEncode", "SamplerCustomAdvanced", "VAEDecodeTiled", "SaveVideo"}


def test_the_first_result_tells_of_the_warm_up_and_shows_nothing_of_it(
    worker: Worker, settings: Settings
) -> None:
    """The clip is the caller's own; the loaders took their time in the warm-up alone."""
    result = worker.run({"id": "first", "input": SMALL})
    assert isinstance(result, GenerateResult)
    assert (result.metadata.width, result.metadata.num_frames, result.metadata.seed) == (256, 9, 1)
    boot = result.timings.boot
    assert boot is not None
    assert boot.warm_up is not None
    assert boot.warm_up.problem is None
    assert boot.warm_up.stages["Loading models"] > 0.05
    assert result.timings.stages["Loading models"] < 0.02
    assert boot.page_cache is not None
    assert boot.page_cache.read_bytes + boot.page_cache.resident_bytes > 0
    assert "lighthouse" not in json.dumps(result.model_dump(mode="json", exclude={"video"}))
