"""start.sh as the container's first process, on the sandbox: three modes, and every way to end."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from tests.conftest import SMALL
from tests.delivery.storage import BUCKET, KEY_ID, SECRET, Storage, moto
from tests.fakes.runpod_platform import RunPodPlatform

from ltx_worker.comfy.child import ChildProcess
from ltx_worker.engines import free_port

ROOT = Path(__file__).parents[2]
_START_S = 60.0
# RunPod and Docker kill what has not ended by itself after this.
_LEAVE_S = 10.0


@dataclass
class Container:
    """start.sh and what it has started."""

    process: ChildProcess
    folder: Path
    api: str
    comfy_port: int

    @property
    def text(self) -> str:
        return "\n".join(self.process.log_tail)

    @property
    def last_line(self) -> str:
        return self.text.strip().splitlines()[-1]

    def run_job(self) -> dict[str, Any]:
        """A job through RunPod's local API."""
        answer = requests.post(f"{self.api}/runsync", json={"input": SMALL}, timeout=60).json()
        assert answer["status"] == "COMPLETED", answer
        return answer["output"]

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def one_that_runs(self, words: str) -> psutil.Process:
        """The direct child with these words in its command line."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if words in " ".join(child.cmdline()))

    def wait_ready(self) -> None:
        """Wait until jobs are taken."""
        give_up = time.monotonic() + _START_S
        with requests.Session() as session:
            session.trust_env = False
            while True:
                assert self.process.is_alive, self.text
                with suppress(requests.ConnectionError):
                    session.get(f"{self.api}/openapi.json", timeout=10)
                    return
                assert time.monotonic() < give_up, self.text
                time.sleep(0.05)

    def wait_ended(self) -> int:
        """The exit status, once start.sh has ended by itself."""
        give_up = time.monotonic() + _START_S
        while self.process.is_alive:
            assert time.monotonic() < give_up, self.text
            time.sleep(0.02)
        assert self.process.status is not None
        return self.process.status

    def end(self) -> int:
        """Send SIGTERM to start.sh alone; what it has started must be gone in time, too."""
        everyone = [psutil.Process(self.process.pid), *self.descendants()]
        assert len(everyone) > 1
        started = time.monotonic()
        everyone[0].terminate()
        status = self.wait_ended()
        left_s = _LEAVE_S - (time.monotonic() - started)
        assert left_s > 0
        _, alive = psutil.wait_procs(everyone[1:], timeout=left_s)
        assert not alive
        return status


def environment_of(folder: Path, **variables: str) -> dict[str, str]:
    """A container's: nothing of this machine but a PATH."""
    values = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "TMPDIR": str(folder),
        "HOME": str(folder),
        "LTX2_ENGINE": "sandbox",
        "COMFY_INPUT_DIR": str(folder / "input"),
        "COMFY_OUTPUT_DIR": str(folder / "output"),
        "R2_SYNC_LOG": str(folder / "r2_sync.log"),
        "RUNPOD_LOG_LEVEL": "INFO",
    }
    return values | variables


@contextmanager
def container(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> Generator[Container]:
    """start.sh with these arguments; whatever is left of it at the end is killed."""
    port, comfy_port = free_port(), free_port()
    options = ["--rp_api_port", str(port)] if arguments[:1] in (("local",), ("pod",)) else []
    variables = environment_of(folder, LTX2_COMFY_PORT=str(comfy_port)) | dict(environment or {})
    command = [str(ROOT / "start.sh"), *arguments, *options]
    with ChildProcess(command, environment=variables) as process:
        running = Container(process, folder, f"http://127.0.0.1:{port}", comfy_port)
        everyone: list[psutil.Process] = []
        try:
            yield running
        finally:
            with suppress(psutil.NoSuchProcess):
                everyone = running.descendants()
            process.kill()
            for left in everyone:
                with suppress(psutil.NoSuchProcess):
                    left.kill()


def start(
    folder: Path, *arguments: str, script: Path = ROOT / "start.sh", **variables: str
) -> subprocess.CompletedProcess[str]:
    """start.sh, when it is to end by itself."""
    return subprocess.run(
        [str(script), *arguments],
        env=environment_of(folder, **variables),
        capture_output=True,
        text=True,
        timeout=_START_S,
        check=False,
    )


def last_line(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode != 0
    assert "Traceback" not in run.stdout + run.stderr
    return run.stderr.strip().splitlines()[-1]


@pytest.fixture
def storage() -> Generator[Storage]:
    with moto() as running:
        yield running


def secrets_of(storage: Storage) -> dict[str, str]:
    """The bucket as RunPod's secrets have it."""
    return {
        "RUNPOD_SECRET_r2_endpoint_url": storage.config.endpoint_url,
        "RUNPOD_SECRET_r2_bucket": BUCKET,
        "RUNPOD_SECRET_r2_access_key_id": KEY_ID,
        "RUNPOD_SECRET_R2_SECRET_ACCESS_KEY": SECRET,
    }


def test_a_local_container_serves_jobs_and_leaves_within_ten_seconds(tmp_path: Path) -> None:
    """The handler takes the place of start.sh. ComfyUI listens on loopback and sees no secret.

    A secret of RunPod's fills in what is not set, and nothing else.
    """
    variables = {"HF_TOKEN": "my-own", "RUNPOD_SECRET_hf_token": "the-secret"}
    with container(tmp_path, "local", environment=variables) as running:
        running.wait_ready()
        assert running.run_job()["metadata"]["engine"] == "sandbox"
        handler = psutil.Process(running.process.pid)
        assert handler.environ()["HF_TOKEN"] == "my-own"
        assert all("HF_TOKEN" not in engine.environ() for engine in handler.children())
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", running.comfy_port), timeout=5)
        assert running.end() == 0


def test_where_runpod_has_an_endpoint_its_jobs_are_taken(tmp_path: Path) -> None:
    """Nothing else has to be said; SIGTERM ends it also amid RunPod's poll."""
    with (
        RunPodPlatform() as platform,
        container(tmp_path, environment=platform.environment) as running,
    ):
        platform.wait_for_worker()
        record = platform.wait(platform.submit(SMALL))
        assert record.state == "COMPLETED"
        assert running.end() == 0


def test_a_pod_has_a_page_jobs_and_a_sync(tmp_path: Path, storage: Storage) -> None:
    """Credentials come from RunPod's secrets; what is made on the page reaches the bucket."""
    secrets = {"RUNPOD_SECRET_hf_token": "a-token", "RUNPOD_SECRET_other": "not-asked-for"}
    variables = secrets_of(storage) | secrets | {"RUNPOD_POD_ID": "pod"}
    with container(tmp_path, "pod", environment=variables) as running:
        running.wait_ready()
        assert running.run_job()["metadata"]["engine"] == "sandbox"
        socket.create_connection(("127.0.0.2", running.comfy_port), timeout=5).close()
        assert running.one_that_runs("handler.py").environ()["HF_TOKEN"] == "a-token"
        made = tmp_path / "output" / "ltx2" / "picture.txt"
        made.parent.mkdir(exist_ok=True)
        made.write_text("made on the page")
        give_up = time.monotonic() + 20
        while not any(key.endswith("picture.txt") for key in keys(storage)):
            assert time.monotonic() < give_up, running.text
            time.sleep(0.1)
        assert "picture.txt" in (tmp_path / "r2_sync.log").read_text()
        assert running.end() == 0


def keys(storage: Storage) -> list[str]:
    listed = storage.client.list_objects_v2(Bucket=BUCKET)
    return [row["Key"] for row in listed.get("Contents", [])]


@pytest.mark.parametrize(
    ("words", "name"), [("ltx_worker.sync", "The sync"), ("handler.py", "The handler")]
)
def test_a_pod_ends_when_one_of_its_processes_does(tmp_path: Path, words: str, name: str) -> None:
    """The last line says which one and how; the other one is ended in order."""
    with container(tmp_path, "pod") as running:
        running.wait_ready()
        others = running.descendants()
        killed = running.one_that_runs(words)
        # What it has started would be killed with the container.
        own = killed.children(recursive=True)
        killed.kill()
        assert running.wait_ended() == 1
        assert running.last_line.startswith(f"start.sh: {name}")
        assert "ended with status 137" in running.last_line
        _, alive = psutil.wait_procs([p for p in others if p not in own], timeout=_LEAVE_S)
        for process in own:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        assert not alive


def test_a_comfyui_that_does_not_start_ends_the_pod(tmp_path: Path) -> None:
    """The handler says what ComfyUI said last, then start.sh what ended."""
    with container(tmp_path, "pod", environment={"LTX2_COMFY_ARGS": "--no-such-option"}) as running:
        assert running.wait_ended() == 1
        assert "comfy_unavailable" in running.text
        assert "no-such-option" in running.text
        assert "The handler, which owns ComfyUI, ended with status 1" in running.last_line


def test_an_unknown_mode_is_named(tmp_path: Path) -> None:
    """So are the modes that there are."""
    line = last_line(start(tmp_path, "server"))
    assert line == "start.sh: there is no mode server; use serverless, pod or local"


def test_a_variant_that_is_none_is_named(tmp_path: Path) -> None:
    """By the handler on the sandbox, before any download where there are weights."""
    assert "LTX2_VARIANT" in last_line(start(tmp_path, "local", LTX2_VARIANT="fp12"))
    downloading = start(tmp_path, "local", LTX2_ENGINE="comfyui", LTX2_VARIANT="fp12")
    assert "LTX2_VARIANT" in last_line(downloading)
    assert downloading.returncode == 2


def test_enable_ltx2_is_true_or_false(tmp_path: Path) -> None:
    """Anything else is not taken for either."""
    line = last_line(start(tmp_path, "local", LTX2_ENGINE="comfyui", ENABLE_LTX2="maybe"))
    assert line == "start.sh: ENABLE_LTX2 is maybe; set it to true or false"


def test_without_a_gpu_the_way_out_is_said(tmp_path: Path) -> None:
    """The choice of the weights needs nvidia-smi, or LTX2_VARIANT."""
    run = start(tmp_path, "local", LTX2_ENGINE="comfyui", COMFYUI_DIR=str(tmp_path))
    assert run.returncode == 3
    assert "LTX2_ENGINE=sandbox" in last_line(run)


def test_a_gated_model_needs_a_token(tmp_path: Path) -> None:
    """Nothing is downloaded and nothing is started without it."""
    app = tmp_path / "app"
    shutil.copytree(ROOT / "src", app / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("start.sh", "download_models.sh"):
        shutil.copy(ROOT / name, app / name)
    catalog = app / "src" / "ltx_worker" / "catalog.toml"
    row = 'role = "text_encoder"\n'
    catalog.write_text(catalog.read_text().replace(row, f"{row}gated = true\n"))
    run = start(
        tmp_path,
        "local",
        script=app / "start.sh",
        LTX2_ENGINE="comfyui",
        LTX2_VARIANT="fp8",
        COMFYUI_DIR=str(tmp_path / "comfyui"),
    )
    assert "HF_TOKEN is required for LTX-2" in last_line(run)
    assert run.returncode == 4


def test_false_fetches_no_weights(tmp_path: Path) -> None:
    """ComfyUI is started as it is."""
    run = start(
        tmp_path,
        "local",
        LTX2_ENGINE="comfyui",
        ENABLE_LTX2="false",
        COMFYUI_DIR=str(tmp_path / "comfyui"),
    )
    assert "No Python for the ComfyUI" in last_line(run)


def test_baked_weights_decide_the_variant_and_are_used_in_place(tmp_path: Path) -> None:
    """No GPU, tool or network is asked; ComfyUI's interpreter sees where the models are."""
    comfyui, seen = tmp_path / "comfyui", tmp_path / "seen.json"
    models = comfyui / "models"
    for file in base_files("fp8"):
        path = models / file["folder"] / Path(file["path"]).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((2).to_bytes(8, "little") + b"{}")
    (models / "ltx2_variant.txt").write_text("fp8\n")
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport json, os, pathlib\n"
        f"pathlib.Path({str(seen)!r}).write_text(json.dumps(dict(os.environ)))\n"
        "raise SystemExit('that was all')\n"
    )
    python.chmod(0o755)
    run = start(
        tmp_path,
        "local",
        LTX2_ENGINE="comfyui",
        COMFYUI_DIR=str(comfyui),
        COMFYUI_PYTHON=str(python),
    )
    assert "that was all" in last_line(run)
    assert "starting download" not in run.stdout
    assert run.stdout.count("file already exists") == len(base_files("fp8"))
    environment = json.loads(seen.read_text())
    assert environment["LTX2_VARIANT"] == "fp8"
    assert str(models) in json.loads(environment["COMFY_MODELS_DIRS"])


def base_files(variant: str) -> list[dict[str, Any]]:
    """What LTX-2's quality fast takes, out of the catalogue's rows."""
    data = catalog()
    return [
        row
        for row in data["files"]
        if row["role"] in data["groups"]["base"]
        and row["family"] in ("ltx-2", "any")
        and row.get("variant", variant) == variant
    ]


def catalog() -> dict[str, Any]:
    return tomllib.loads((ROOT / "src" / "ltx_worker" / "catalog.toml").read_text())


def test_comfyui_looks_for_every_kind_of_model_on_both_volumes() -> None:
    """Each folder of the catalogue is in extra_model_paths.yaml, below start.sh's own folders."""
    blocks: dict[str, dict[str, str]] = {}
    for line in (ROOT / "docker" / "extra_model_paths.yaml").read_text().splitlines():
        name, _, value = line.partition(":")
        if line.startswith("  "):
            blocks[list(blocks)[-1]][name.strip()] = value.strip()
        elif not line.startswith("#"):
            blocks[name] = {}
    folders = {row["folder"] for row in catalog()["files"]}
    start_script = (ROOT / "start.sh").read_text()
    assert blocks.pop("worker") == {"base_path": "/app/docker", "custom_nodes": "custom_nodes"}
    assert len(blocks) == 2
    for block in blocks.values():
        assert block.pop("base_path") in start_script
        assert folders <= block.keys()
        assert all(name == folder for name, folder in block.items())


def test_scripts_can_be_executed() -> None:
    """The image's entry point is start.sh itself."""
    for name in ("start.sh", "download_models.sh", "docker/scripts/fetch_source.sh"):
        assert os.access(ROOT / name, os.X_OK), name
