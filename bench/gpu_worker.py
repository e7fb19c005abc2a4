"""A worker as in a container, on a stand-in for RunPod, with the bench's nodes in its ComfyUI."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from gpu_plan import Launch

from ltx_worker import engines
from ltx_worker.comfy.child import ChildProcess
from ltx_worker.comfy.launch import comfyui_python

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.comfyui.tiny_engine import TINY_ENVIRONMENT, TINY_MODELS, comfyui_dir, tiny_options
from tests.fakes.runpod_platform import ROOT, RunPodPlatform
from tests.fakes.runpod_queue import JobRecord

# A clip of noise may have tens of megabytes: no result is refused here.
BODY_BYTES = 400_000_000
TINY = "tiny"
_READY_S = 580.0
_JOB_S = 580.0
_POLL_S = 0.02
_FOLDERS = ("checkpoints", "loras", "text_encoders", "latent_upscale_models")
_HOLD = (
    "import torch, sys, time\n"
    "held = torch.empty(int(sys.argv[1]), dtype=torch.uint8, device='cuda')\n"
    "print('held', flush=True)\n"
    "time.sleep(100_000)\n"
)
_SMALLER_SMI = """#!{python}
import subprocess, sys
done = subprocess.run([{smi!r}, *sys.argv[1:]], capture_output=True, text=True)
wanted = [word for word in sys.argv[1:] if word.startswith("--query-gpu=")]
fields = wanted[0].partition("=")[2].split(",") if wanted else []
for line in done.stdout.splitlines():
    values = line.split(", ")
    if "memory.total" in fields and len(values) == len(fields):
        at = fields.index("memory.total")
        values[at] = str(int(values[at].split()[0]) - {held_mib})
    print(", ".join(values))
sys.exit(done.returncode)
"""


@dataclass(frozen=True)
class Machine:
    """What every worker of one run has in common. `reserved_gb` of the GPU are held by another."""

    models: str
    family: str
    variant: str | None
    reserved_gb: float = 0.0
    is_synchronised: bool = False
    log: Path | None = None

    @property
    def models_dir(self) -> Path:
        return TINY_MODELS if self.models == TINY else Path(self.models).resolve()


@dataclass
class Running:
    """A worker that takes jobs. Moments are those of `time.monotonic`."""

    platform: RunPodPlatform
    process: ChildProcess
    folder: Path
    url: str
    started_at: float
    ready_at: float
    _node_lines: int = field(default=0)

    def job(self, job_input: Mapping[str, Any]) -> JobRecord:
        """One job to its end; raises RuntimeError when it failed."""
        job_id = self.platform.submit(dict(job_input))
        give_up = time.monotonic() + _JOB_S
        while not (record := self.platform.record(job_id)).is_over:
            if not self.process.is_alive or time.monotonic() > give_up:
                raise RuntimeError(f"The worker gives no result ({self.process.last_words})")
            time.sleep(_POLL_S)
        if record.output is None:
            raise RuntimeError(f"The job has no result: {record.state}, {record.error}")
        return record

    def node_times(self) -> list[dict[str, Any]]:
        """What ran since the last call: node, class, title, seconds."""
        path = self.folder / "node_times.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        new = lines[self._node_lines :]
        self._node_lines = len(lines)
        return [json.loads(line) for line in new]

    def call(self, path: str = "", body: Any = None) -> dict[str, Any]:
        """One of the bench's own routes in ComfyUI; raises RuntimeError when it refuses."""
        with requests.Session() as session:
            session.trust_env = False
            url = f"{self.url}/ltx_bench{path}"
            answer = session.get(url) if body is None else session.post(url, json=body)
        if not answer.ok:
            raise RuntimeError(f"{path}: {answer.text}")
        return answer.json()


@contextmanager
def running_worker(machine: Machine, launch: Launch, folder: Path) -> Generator[Running]:
    """A worker from its process's start to its end; raises RuntimeError when it does not start."""
    port = engines.free_port()
    variables = environment(machine, launch, folder, port)
    log = machine.log or folder / "worker.log"
    with log.open("a") as lines, RunPodPlatform(max_body_bytes=BODY_BYTES) as platform:
        full = _without_runpod(os.environ) | platform.environment | variables
        worker = full["RUNPOD_POD_ID"]
        platform.welcome(worker)
        started_at = time.monotonic()
        command = [sys.executable, str(ROOT / "handler.py")]
        with ChildProcess(command, environment=full, on_line=_writer(lines)) as process:
            try:
                ready_at = _wait_until_ready(platform, worker, process, started_at)
                url = f"http://127.0.0.1:{port}"
                yield Running(platform, process, folder, url, started_at, ready_at)
            finally:
                platform.dismiss(worker)
                process.stop(terminate_s=20.0)


def environment(machine: Machine, launch: Launch, folder: Path, port: int) -> dict[str, str]:
    """The worker's variables; its files and ComfyUI's own lie under `folder`."""
    options = [*engines.comfyui_options(folder), *_comfyui_options(machine, launch, folder)]
    variables = {
        "COMFYUI_DIR": str(comfyui_dir()),
        "COMFYUI_PYTHON": str(comfyui_python(comfyui_dir())),
        "COMFY_MODELS_DIRS": json.dumps([str(machine.models_dir)]),
        "COMFY_INPUT_DIR": str(folder / "input"),
        "COMFY_OUTPUT_DIR": str(folder / "output"),
        "LTX2_COMFY_PORT": str(port),
        "LTX2_COMFY_ARGS": shlex.join([*options, *shlex.split(launch.comfy_args)]),
        "LTX2_MAX_RESPONSE_BYTES": str(BODY_BYTES),
        "LTX_BENCH_CONTENT": launch.content,
        "LTX_BENCH_NODE_TIMES": str(folder / "node_times.jsonl"),
        "LTX_BENCH_SYNC": "1" if machine.is_synchronised else "0",
        "LTX_BENCH_PROFILE": str(folder / "profile.txt"),
    }
    if machine.variant:
        variables["LTX2_VARIANT"] = machine.variant
    if machine.models == TINY:
        variables |= TINY_ENVIRONMENT
    if machine.reserved_gb:
        variables["PATH"] = f"{_smaller_gpu(machine, folder)}:{os.environ['PATH']}"
    return variables | dict(launch.environment)


def _comfyui_options(machine: Machine, launch: Launch, folder: Path) -> list[str]:
    """Its model folders and node packages, which the image finds in its own configuration."""
    packs = {ROOT / "bench" / "custom_nodes": "ltx_bench"}
    if launch.node_pack:
        packs[ROOT / "docker" / "custom_nodes"] = "ltx_worker_nodes"
    tiny: list[str] = []
    if machine.models == TINY:
        tiny_options(folder)
        packs[ROOT / "tests" / "comfyui" / "custom_nodes"] = "ltx_tiny_gemma"
        tiny = ["--use-pytorch-cross-attention"]
    rows = "".join(f"  {name}: {name}\n" for name in _FOLDERS)
    models = f"models:\n  base_path: {machine.models_dir}\n  is_default: true\n{rows}"
    nodes = "".join(f"{name}:\n  custom_nodes: {path}\n" for path, name in packs.items())
    paths = folder / "bench_model_paths.yaml"
    paths.write_text(models + nodes)
    frontend = folder / "frontend"
    frontend.mkdir(exist_ok=True)
    return [
        *("--extra-model-paths-config", str(paths)),
        *("--front-end-root", str(frontend)),
        "--disable-api-nodes",
        *tiny,
        "--disable-all-custom-nodes",
        *("--whitelist-custom-nodes", *packs.values(), "ComfyUI-LTXVideo"),
    ]


def _smaller_gpu(machine: Machine, folder: Path) -> Path:
    """A folder with an nvidia-smi that takes what is held off the GPU's memory."""
    real = shutil.which("nvidia-smi")
    assert real is not None, "--reserve needs a GPU"
    place = folder / "bin"
    place.mkdir(exist_ok=True)
    script = place / "nvidia-smi"
    held_mib = int(machine.reserved_gb * 1e9 / 2**20)
    script.write_text(_SMALLER_SMI.format(python=sys.executable, smi=real, held_mib=held_mib))
    script.chmod(0o755)
    return place


@contextmanager
def held_memory(reserved_gb: float) -> Generator[None]:
    """So much of the GPU's memory held by another process.

    ComfyUI's --reserve-vram is not used beside it: it would take the same memory off twice.
    """
    if not reserved_gb:
        yield
        return
    held = threading.Event()
    command = [str(comfyui_python(comfyui_dir())), "-c", _HOLD, str(int(reserved_gb * 1e9))]
    with ChildProcess(command, on_line=lambda line: held.set() if line == "held" else None) as one:
        give_up = time.monotonic() + 60
        while not held.wait(0.1):
            if not one.is_alive or time.monotonic() > give_up:
                raise RuntimeError(f"{reserved_gb:g} GB cannot be held ({one.last_words})")
        yield


class MemoryWatch:
    """The most memory of the GPU in use since `reset`, in MiB, as nvidia-smi sees it."""

    _INTERVAL_MS = "250"

    def __init__(self, held_gb: float) -> None:
        self._held_mib = round(held_gb * 1e9 / 2**20)
        self._peak = 0
        self._process: ChildProcess | None = None
        if smi := shutil.which("nvidia-smi"):
            query = ("--query-gpu=memory.used", "--format=csv,noheader,nounits")
            command = (smi, *query, f"--loop-ms={self._INTERVAL_MS}")
            self._process = ChildProcess(command, on_line=self._take)

    def reset(self) -> None:
        self._peak = 0

    @property
    def peak_mib(self) -> int | None:
        return self._peak - self._held_mib if self._peak else None

    def close(self) -> None:
        if self._process is not None:
            self._process.stop()

    def _take(self, line: str) -> None:
        if line.strip().isdecimal():
            self._peak = max(self._peak, int(line))


def _wait_until_ready(
    platform: RunPodPlatform, worker: str, process: ChildProcess, started_at: float
) -> float:
    while platform.takes(worker) == 0:
        if not process.is_alive or time.monotonic() > started_at + _READY_S:
            tail = "\n".join(process.log_tail[-40:])
            raise RuntimeError(f"The worker takes no jobs ({process.last_words})\n{tail}")
        time.sleep(_POLL_S)
    return time.monotonic()


def _without_runpod(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if not name.startswith("RUNPOD_")}


def _writer(lines: Any) -> Any:
    def write(line: str) -> None:
        if not lines.closed:
            lines.write(line + "\n")
            lines.flush()

    return write
