"""The worker on an engine that misbehaves: a result or a coded error, and a clean engine after."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from pathlib import Path

import pytest
import requests
from tests.conftest import SMALL, settings_for

from ltx_worker import engines
from ltx_worker.catalog import load_catalog
from ltx_worker.errors import JobError
from ltx_worker.worker import Worker
from ltx_worker.workflow.nodes import load_node_schema


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Generator[engines.Engine]:
    """A sandbox of this file's own: its faults must not reach other tests."""
    with engines.sandbox(tmp_path_factory.mktemp("faults"), ["--speed", "0"]) as running:
        yield running


@pytest.fixture
def worker(engine: engines.Engine) -> Generator[Worker]:
    worker = Worker(settings_for(engine))
    worker.start()
    yield worker
    requests.delete(f"{engine.url}/sandbox/faults", timeout=5)
    queue = requests.get(f"{engine.url}/queue", timeout=5).json()
    assert queue == {"queue_running": [], "queue_pending": []}
    assert requests.get(f"{engine.url}/history", timeout=5).json() == {}
    left = [p for d in (engine.input_dir, engine.output_dir) for p in d.rglob("*") if p.is_file()]
    assert left == []
    worker.close()


def arm(engine: engines.Engine, fault: str, **options: object) -> None:
    body = {"fault": fault, **options}
    requests.post(f"{engine.url}/sandbox/faults", json=body, timeout=5).raise_for_status()


@pytest.mark.parametrize(
    ("fault", "options"),
    [
        ("drop_socket", {"after_steps": 0}),
        ("drop_socket", {"after_steps": 5}),
        ("half_open", {}),
        ("lose_final", {}),
        ("prompt_500", {"queued": True}),
        ("prompt_500", {}),
    ],
)
def test_a_lost_message_loses_no_clip(
    engine: engines.Engine, worker: Worker, fault: str, options: dict[str, object]
) -> None:
    """A closed or silent socket, a lost last event, a lost answer: the history has the clip."""
    arm(engine, fault, **options)
    result = worker.run({"id": f"{fault}{options}", "input": SMALL | {"seed": 51}})
    assert result.metadata.num_frames == 9


@pytest.mark.parametrize(
    ("fault", "options", "code", "words"),
    [
        ("out_of_memory", {}, "out_of_memory", "node 'First pass' (SamplerCustomAdvanced)"),
        ("out_of_memory", {"node_class": "VAEDecodeTiled"}, "out_of_memory", "'Decode video'"),
        ("execution_error", {}, "comfy_failed", "RuntimeError: the sandbox was told to fail here"),
        ("stale_cache", {}, "comfy_failed", "does not exist"),
        ("prompt_500", {"count": 2}, "comfy_unavailable", "500"),
        (
            "execution_error",
            {"message": "No such file: '/models/private/canary/a.png'\ncanary"},
            "comfy_failed",
            "No such file: '…/a.png'",
        ),
    ],
)
def test_a_failure_has_its_code_and_the_next_job_runs(
    engine: engines.Engine,
    worker: Worker,
    fault: str,
    options: dict[str, object],
    code: str,
    words: str,
) -> None:
    """The error names the node and the reason, without folders of the machine."""
    arm(engine, fault, **options)
    with pytest.raises(JobError) as failure:
        worker.run({"id": f"{fault}{options}", "input": SMALL | {"seed": time.time_ns() % 10**9}})
    assert failure.value.code == code
    assert words in failure.value.message
    assert "canary" not in failure.value.to_json()
    assert worker.run({"id": "next", "input": SMALL}).metadata.num_frames == 9


def test_a_memory_error_says_what_to_lower(engine: engines.Engine, worker: Worker) -> None:
    """The hint names the values to ask for instead."""
    arm(engine, "out_of_memory")
    with pytest.raises(JobError) as failure:
        worker.run({"id": "memory", "input": SMALL | {"seed": 52}})
    assert "instead of 256x128" in (failure.value.hint or "")


def test_an_engine_that_dies_ends_the_job(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A ComfyUI that is gone in the middle of a job is an error within seconds, not a hang."""
    with engines.sandbox(tmp_path_factory.mktemp("crash"), ["--speed", "0"]) as engine:
        worker = Worker(settings_for(engine, comfy_unresponsive_s=2))
        worker.start()
        arm(engine, "crash")
        started = time.monotonic()
        with pytest.raises(JobError) as failure:
            worker.run({"id": "crash", "input": SMALL})
        assert failure.value.code == "comfy_unavailable"
        assert failure.value.retryable
        assert time.monotonic() - started < 5
        worker.close()


def test_a_family_that_is_not_installed_is_the_callers_to_change(tmp_path: Path) -> None:
    """A worker with one family serves that one by default and names it when asked for another."""
    with engines.sandbox(tmp_path, ["--speed", "0", "--families", "ltx-2.3"]) as engine:
        worker = Worker(settings_for(engine))
        worker.start()
        assert worker.run({"id": "default", "input": SMALL}).metadata.model == "ltx-2.3"
        with pytest.raises(
            JobError, match=r"ltx-2 is not installed .*installed: ltx-2\.3"
        ) as failure:
            worker.run({"id": "other", "input": SMALL | {"model": "ltx-2"}})
        assert failure.value.code == "invalid_request"
        worker.close()


def test_a_comfyui_without_the_node_pack_serves_what_core_nodes_can(tmp_path: Path) -> None:
    """The detailer's node is missing: the option is refused by name, the rest goes on."""
    catalog = load_catalog()
    core = {k: v for k, v in load_node_schema().items() if k != "LTXVLoopingSampler"}
    (tmp_path / "nodes.json").write_text(json.dumps(catalog.offer(core, catalog.names())))
    options = ["--speed", "0", "--node-info", str(tmp_path / "nodes.json")]
    with engines.sandbox(tmp_path, options) as engine:
        worker = Worker(settings_for(engine))
        worker.start()
        assert worker.run({"id": "plain", "input": SMALL}).metadata.num_frames == 9
        with pytest.raises(JobError, match="detailer is not taken by mode t2v"):
            worker.run({"id": "detailed", "input": SMALL | {"detailer": True}})
        worker.close()


def test_a_worker_without_models_starts_and_says_what_is_missing(tmp_path: Path) -> None:
    """Without any complete model every job is told the files, their sizes and their source."""
    with engines.sandbox(tmp_path, ["--speed", "0", "--variant", "fp16"]) as engine:
        worker = Worker(settings_for(engine, variant="fp8"))
        worker.start()
        with pytest.raises(JobError, match=r"distilled-fp8\.safetensors \(27\.1 GB") as failure:
            worker.run({"id": "none", "input": SMALL})
        assert failure.value.code == "model_missing"
        worker.close()


def test_the_same_clip_asked_for_twice_is_made_twice(worker: Worker) -> None:
    """ComfyUI's cache would repeat the name of a file that is gone; each job has its own."""
    first, second = (worker.run({"id": f"same {i}", "input": SMALL}) for i in range(2))
    assert first.outputs[0].sha256 == second.outputs[0].sha256
    assert first.video == second.video
