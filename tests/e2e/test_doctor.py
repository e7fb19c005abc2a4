"""What a worker looks at before its first job, and `ltx doctor` shows to people."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer
from tests.fakes.runpod_platform import HandlerEnded, RunPodPlatform, production_handler

from ltx_worker.catalog import load_catalog
from ltx_worker.doctor import examine
from ltx_worker.engines import free_port
from ltx_worker.fitness import Finding
from ltx_worker.settings import Settings
from ltx_worker.workflow.nodes import load_node_schema

Examine = Callable[..., dict[str, Finding]]
LTX = Path(sys.executable).with_name("ltx")


@pytest.fixture
def sandbox_variables(tmp_path: Path) -> dict[str, str]:
    """The variables of a worker that owns a sandbox."""
    return {
        "LTX2_ENGINE": "sandbox",
        "LTX2_COMFY_PORT": str(free_port()),
        "COMFY_INPUT_DIR": str(tmp_path / "input"),
        "COMFY_OUTPUT_DIR": str(tmp_path / "output"),
    }


@pytest.fixture
def findings(tmp_path: Path, clean_environment: None) -> Examine:
    """Examine a worker that owns a sandbox; its findings by name, the worst of each."""

    def run(*, with_upload: bool = False, **values: Any) -> dict[str, Finding]:
        owned = {
            "engine": "sandbox",
            "comfy_port": free_port(),
            "comfy_input_dir": tmp_path / "input",
            "comfy_output_dir": tmp_path / "output",
        }
        found = examine(Settings(**(owned | values)), with_upload=with_upload)
        order = ("ok", "warning", "failure")
        found.sort(key=lambda finding: order.index(finding.state))
        return {finding.name: finding for finding in found}

    return run


def truncated_model(folder: Path) -> Path:
    """A folder of models, in which a checkpoint has lost its end."""
    (folder / "checkpoints").mkdir(parents=True)
    name = load_catalog().files[0].name
    header = json.dumps({"w": {"dtype": "F32", "shape": [250], "data_offsets": [0, 1000]}})
    content = len(header).to_bytes(8, "little") + header.encode() + bytes(400)
    (folder / "checkpoints" / name).write_bytes(content)
    return folder


def test_a_whole_worker_has_nothing_to_warn_of_but_gpu_and_bucket(findings: Examine) -> None:
    """Engine, nodes, models, folders and settings are looked at."""
    found = findings()
    assert {name for name, finding in found.items() if finding.state == "ok"} == {
        *("settings", "engine", "nodes", "models", "input", "output")
    }
    assert found["gpu"].state == found["delivery"].state == "warning"


def test_a_misspelt_setting_is_named_with_the_one_it_means(
    findings: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else would notice it: the default would simply be used."""
    monkeypatch.setenv("LTX2_MAXFRAMES", "9")
    found = findings()["settings"]
    assert (found.state, found.text) == ("warning", "LTX2_MAXFRAMES is not a setting")
    assert found.advice == "Did you mean LTX2_MAX_FRAMES?"


def test_a_model_file_that_is_cut_off_is_a_failure(findings: Examine, tmp_path: Path) -> None:
    """It would fail every job, after minutes of loading."""
    found = findings(comfy_models_dirs=(truncated_model(tmp_path / "models"),))["models"]
    assert found.state == "failure"
    assert "is cut off: 600 bytes are missing" in found.text


def test_missing_nodes_cost_what_needs_them(findings: Examine, tmp_path: Path) -> None:
    """What is not offered is listed by workflow."""
    catalog = load_catalog()
    core = {k: v for k, v in load_node_schema().items() if k != "LTXVLoopingSampler"}
    (tmp_path / "nodes.json").write_text(json.dumps(catalog.offer(core, catalog.names())))
    found = findings(comfy_args=f"--node-info {tmp_path / 'nodes.json'}")["nodes"]
    assert found.state == "warning"
    assert "t2v_fast: detailer" in found.text


def test_an_engine_that_does_not_start_is_the_only_finding(findings: Examine) -> None:
    """Its last words are in it."""
    found = findings(comfy_args="--no-such-option")
    assert list(found) == ["engine"]
    assert found["engine"].state == "failure"
    assert "no-such-option" in found["engine"].text


def test_an_upload_is_really_made_where_asked_for(findings: Examine) -> None:
    """Without a bucket, with one that is not there, and with one that is."""
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    keys = {"r2_endpoint_url": url, "r2_access_key_id": "k", "r2_secret_access_key": "s"}
    try:
        none = findings(with_upload=True)["upload"]
        missing = findings(with_upload=True, r2_bucket="not-there", **keys)["upload"]
        make_bucket(url)
        there = findings(with_upload=True, r2_bucket="clips", **keys)["upload"]
    finally:
        server.stop()
    assert (none.state, none.text) == ("failure", "no bucket is set")
    assert (missing.state, missing.text[-25:]) == ("failure", "the bucket does not exist")
    assert there.state == "ok"
    assert "read back whole" in there.text


def make_bucket(url: str) -> None:
    import boto3

    keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s"}
    boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys).create_bucket(
        Bucket="clips"
    )


def test_the_command_prints_a_table_and_its_status_tells_failures(
    sandbox_variables: dict[str, str], tmp_path: Path
) -> None:
    """A failure is status 1; everything else is 0."""
    healthy = os.environ | sandbox_variables
    broken = healthy | {"COMFY_MODELS_DIRS": json.dumps([str(truncated_model(tmp_path / "m"))])}
    runs = [
        subprocess.run(
            [LTX, "doctor"], env=env, capture_output=True, text=True, timeout=60, check=False
        )
        for env in (healthy, broken)
    ]
    assert [run.returncode for run in runs] == [0, 1]
    assert "every node of 17 workflows is there" in runs[0].stdout
    assert "failure" in runs[1].stdout
    assert "Traceback" not in runs[1].stdout + runs[1].stderr


def test_a_worker_that_could_only_lose_jobs_takes_none_and_tells_the_platform(
    sandbox_variables: dict[str, str], tmp_path: Path
) -> None:
    """The failed check reaches RunPod with its reason, no job is taken, no engine is left."""
    models = json.dumps([str(truncated_model(tmp_path / "models"))])
    environment = sandbox_variables | {"COMFY_MODELS_DIRS": models}
    with RunPodPlatform() as platform:
        with (
            pytest.raises(HandlerEnded),
            production_handler(platform, environment),
        ):
            pass
        assert platform.unhealthy is not None
        assert "is cut off" in platform.unhealthy
    port = sandbox_variables["LTX2_COMFY_PORT"]
    listening = subprocess.run(
        ["grep", "-c", f":{int(port):04X} .* 0A ", "/proc/net/tcp"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert listening.stdout.strip() == "0"
