"""Start what serves a job on this machine: an engine, and the handler in front of it.

For the command line, the benchmarks and the tests; a container starts its own.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import requests

from ltx_worker.comfy.client import ComfyClient
from ltx_worker.comfy.process import ChildProcess, wait_until_ready
from ltx_worker.errors import ComfyUnavailable

_HANDLER = Path(__file__).parents[2] / "handler.py"
_SANDBOX_START_S = 30.0
_COMFYUI_START_S = 300.0
_HANDLER_START_S = 60.0
_POLL_S = 0.05


@dataclass(frozen=True)
class Engine:
    """A running engine: its address and the folders it shares with the worker."""

    url: str
    input_dir: Path
    output_dir: Path
    process: ChildProcess
    models_dirs: tuple[Path, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point a worker at this engine."""
        return {
            "COMFY_URL": self.url,
            "COMFY_INPUT_DIR": str(self.input_dir),
            "COMFY_OUTPUT_DIR": str(self.output_dir),
            "COMFY_MODELS_DIRS": json.dumps([str(path) for path in self.models_dirs]),
        }


@contextmanager
def sandbox(folder: Path, options: Sequence[str] = ()) -> Generator[Engine]:
    """The sandbox, with its files under `folder`."""
    command = [sys.executable, "-m", "ltx_worker.sandbox", *options]
    with _engine(command, folder, _SANDBOX_START_S) as engine:
        yield engine


@contextmanager
def comfyui(
    comfyui_dir: Path,
    folder: Path,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Generator[Engine]:
    """The ComfyUI in `comfyui_dir`, run by its own Python, with its files under `folder`."""
    command = [
        str(comfyui_python(comfyui_dir)),
        str(comfyui_dir / "main.py"),
        "--disable-auto-launch",
        "--disable-metadata",
        *("--user-directory", str(_made(folder / "user"))),
        *("--database-url", f"sqlite:///{folder / 'comfyui.db'}"),
        *([] if shutil.which("nvidia-smi") else ["--cpu"]),
        *options,
    ]
    variables = os.environ | dict(environment or {})
    with _engine(command, folder, _COMFYUI_START_S, variables) as engine:
        yield replace(engine, models_dirs=(comfyui_dir / "models",))


def comfyui_python(comfyui_dir: Path) -> Path:
    """A ComfyUI's interpreter: `COMFYUI_PYTHON`, else that of its virtual environment."""
    named = os.environ.get("COMFYUI_PYTHON")
    candidates = [Path(named)] if named else []
    candidates += [comfyui_dir / name / "bin" / "python" for name in (".venv", "venv")]
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        raise ComfyUnavailable(
            f"No Python for the ComfyUI in {comfyui_dir}: set COMFYUI_PYTHON, or make .venv there"
        )
    return found


@contextmanager
def _engine(
    command: Sequence[str],
    folder: Path,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
) -> Generator[Engine]:
    port = free_port()
    input_dir, output_dir = _made(folder / "input"), _made(folder / "output")
    full = [
        *command,
        *("--port", str(port)),
        *("--input-directory", str(input_dir)),
        *("--output-directory", str(output_dir)),
        *("--temp-directory", str(_made(folder / "temp"))),
    ]
    with ChildProcess(full, environment=environment) as process:
        engine = Engine(f"http://127.0.0.1:{port}", input_dir, output_dir, process)
        client = ComfyClient(engine.url)
        try:
            wait_until_ready(client, timeout_s, process)
        finally:
            client.close()
        yield engine


@contextmanager
def handler(environment: Mapping[str, str], port: int | None = None) -> Generator[str]:
    """`handler.py` as RunPod's local API server; yields its address."""
    port = port or free_port()
    command = [sys.executable, str(_HANDLER), "--rp_serve_api", "--rp_api_port", str(port)]
    variables = os.environ | {"RUNPOD_LOG_LEVEL": "INFO"} | dict(environment)
    with ChildProcess(command, environment=variables) as process:
        url = f"http://127.0.0.1:{port}"
        _wait_for_handler(url, process)
        yield url


def _wait_for_handler(url: str, process: ChildProcess) -> None:
    give_up = time.monotonic() + _HANDLER_START_S
    with requests.Session() as session:
        session.trust_env = False
        while True:
            try:
                session.get(f"{url}/openapi.json", timeout=_HANDLER_START_S)
            except requests.ConnectionError as error:
                if not process.is_alive:
                    raise ComfyUnavailable(f"The handler ended ({process.last_words})") from error
                if time.monotonic() > give_up:
                    raise ComfyUnavailable("The handler did not start in time") from error
                time.sleep(_POLL_S)
            else:
                return


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
