"""The smoke run on the sandbox: it records, passes, and fails for what is slow or missing."""

from __future__ import annotations

import argparse
import json
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from tests.conftest import SMALL
from tests.delivery.storage import BUCKET, KEY_ID, SECRET, Storage, moto

from ltx_worker import engines
from ltx_worker.job_client import JobFailed, LocalWorker
from ltx_worker.smoke import add_options, local_worker, run_command, smoke

# Few and small frames: a clip takes a fraction of a second.
JOB = {name: value for name, value in SMALL.items() if name != "seed"}


@pytest.fixture(scope="module")
def storage() -> Generator[Storage]:
    with moto() as running:
        yield running


@pytest.fixture(scope="module")
def uploading_url(engine: engines.Engine, storage: Storage) -> Generator[str]:
    """A worker with a bucket."""
    with engines.handler(engine.environment | bucket_variables(storage)) as url:
        yield url


def bucket_variables(storage: Storage) -> dict[str, str]:
    return {
        "R2_ENDPOINT_URL": storage.config.endpoint_url,
        "R2_BUCKET": BUCKET,
        "R2_ACCESS_KEY_ID": KEY_ID,
        "R2_SECRET_ACCESS_KEY": SECRET,
    }


@contextmanager
def other_bytes() -> Generator[str]:
    """A server that has the same twelve bytes at every address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"not the clip")

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def baselines(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "baselines.json"


def recorded(baselines: Path) -> dict[str, Any]:
    """The one entry that a run on the sandbox leaves."""
    (entry,) = json.loads(baselines.read_text())["sandbox"].values()
    return entry


def test_the_first_run_records_a_baseline_and_the_second_passes(
    handler_url: str, baselines: Path
) -> None:
    """What was recorded is what the next run is held against, stage by stage, and is kept."""
    first = smoke(LocalWorker(handler_url), baselines=baselines, job=JOB)
    assert first.baseline_s is None
    assert recorded(baselines)["runtime_s"] == first.runtime_s > 0
    assert first.job == "ltx-2 fp8, t2v fast, 256x128, 9 frames"
    second = smoke(LocalWorker(handler_url), baselines=baselines, job=JOB)
    assert second.problems == ()
    assert second.baseline_s == first.runtime_s
    assert second.baseline_stages.keys() == first.stages.keys() != set()
    assert recorded(baselines)["runtime_s"] == first.runtime_s


def test_a_slowed_engine_is_a_regression_and_its_stage_is_named(
    engine: engines.Engine, handler_url: str, baselines: Path
) -> None:
    """More than a fifth over the baseline: both times are told, and the baseline stays."""
    before = smoke(LocalWorker(handler_url), baselines=baselines, job=JOB)
    fault = {"fault": "slow", "count": 0, "delay_s": 0.15}
    requests.post(f"{engine.url}/sandbox/faults", json=fault, timeout=5).raise_for_status()
    try:
        after = smoke(LocalWorker(handler_url), baselines=baselines, job=JOB)
    finally:
        requests.delete(f"{engine.url}/sandbox/faults", timeout=5).raise_for_status()
    (problem,) = after.problems
    assert f"its baseline is {before.runtime_s:.1f} s" in problem
    assert "most of it in Diffusion, first pass" in problem
    assert recorded(baselines)["runtime_s"] == before.runtime_s


def test_a_new_baseline_is_recorded_when_asked(handler_url: str, baselines: Path) -> None:
    """--record replaces what was there, and nothing else in the file."""
    smoke(LocalWorker(handler_url), baselines=baselines, job=JOB)
    known = json.loads(baselines.read_text())
    (kind,) = known["sandbox"]
    known["sandbox"][kind]["runtime_s"] = 0.0001
    known["NVIDIA H200"] = {kind: {"runtime_s": 9.0, "stages": {}}}
    baselines.write_text(json.dumps(known))
    again = smoke(LocalWorker(handler_url), baselines=baselines, job=JOB, record=True)
    assert again.problems == ()
    assert recorded(baselines)["runtime_s"] == again.runtime_s
    assert json.loads(baselines.read_text())["NVIDIA H200"] == known["NVIDIA H200"]


def test_the_clip_in_the_bucket_is_read_whole(
    uploading_url: str, storage: Storage, baselines: Path
) -> None:
    """With a bucket, the last clip is fetched by its link and has the bytes that were told."""
    run = smoke(LocalWorker(uploading_url), baselines=baselines, with_bucket=True, job=JOB)
    assert run.problems == ()
    sizes = {entry["Size"] for entry in storage.client.list_objects_v2(Bucket=BUCKET)["Contents"]}
    assert run.object_bytes in sizes


def test_a_clip_that_is_not_where_its_link_leads_is_a_problem(
    engine: engines.Engine, storage: Storage, baselines: Path
) -> None:
    """A public address of another bucket: the upload succeeds, the link does not; no record."""
    elsewhere = {"R2_PUBLIC_URL": f"{storage.config.endpoint_url}/no-such-bucket"}
    variables = engine.environment | bucket_variables(storage) | elsewhere
    with engines.handler(variables) as url:
        run = smoke(LocalWorker(url), baselines=baselines, with_bucket=True, job=JOB)
    assert run.problems == ("the clip's link is answered with status 404",)
    assert run.object_bytes is None
    assert not baselines.exists()


def test_other_bytes_under_the_clips_link_are_a_problem(
    engine: engines.Engine, storage: Storage, baselines: Path
) -> None:
    """That something is there is not enough: it has to be the clip."""
    with other_bytes() as public_url:
        variables = bucket_variables(storage) | {"R2_PUBLIC_URL": public_url}
        with engines.handler(engine.environment | variables) as url:
            run = smoke(LocalWorker(url), baselines=baselines, with_bucket=True, job=JOB)
    (problem,) = run.problems
    assert problem.startswith("the bucket has 12 bytes that are not the clip's")


def test_the_command_prints_json_and_its_status_says_whether_all_is_well(
    handler_url: str, baselines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sample job itself, held against a figure that it cannot reach."""
    kind = "ltx-2 fp8, t2v fast, 1024x576, 121 frames"
    baselines.parent.mkdir()
    entry = {"runtime_s": 0.1, "stages": {}}
    baselines.write_text(json.dumps({"sandbox": {kind: entry}}))
    with pytest.raises(SystemExit) as ended:
        run_command(parsed(["--url", handler_url, "--baselines", str(baselines)]))
    assert ended.value.code == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["gpu"], told["job"], told["baseline_s"]) == ("sandbox", kind, 0.1)
    assert "its baseline is 0.1 s" in told["problems"][0]


def parsed(options: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args(options)


def test_an_endpoint_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is named."""
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    with pytest.raises(OSError, match="RUNPOD_API_KEY"):
        run_command(parsed(["--endpoint", "abc", "--gpu", "NVIDIA L40S"]))


def test_a_worker_without_a_bucket_says_so(handler_url: str, baselines: Path) -> None:
    """The bucket was asked for and the worker has none: its own error, and no record."""
    with pytest.raises(JobFailed, match="delivery"):
        smoke(LocalWorker(handler_url), baselines=baselines, with_bucket=True, job=JOB)
    assert not baselines.exists()


def test_baselines_that_are_not_json_are_named(handler_url: str, baselines: Path) -> None:
    """A broken file is told, and not written over."""
    baselines.parent.mkdir()
    baselines.write_text("{")
    with pytest.raises(OSError, match=r"baselines\.json is not JSON"):
        smoke(LocalWorker(handler_url), baselines=baselines, job=JOB)
    assert baselines.read_text() == "{"


def test_a_worker_is_started_where_none_answers(
    engine: engines.Engine, baselines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an address, a worker of this machine's environment is started and ended again."""
    for name, value in engine.environment.items():
        monkeypatch.setenv(name, value)
    assert "RUNPOD_WEBHOOK_GET_JOB" not in os.environ
    with local_worker(None) as worker:
        assert smoke(worker, baselines=baselines, job=JOB).problems == ()
    with pytest.raises(requests.ConnectionError):
        requests.get(worker.url, timeout=5)
