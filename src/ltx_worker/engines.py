"""Start what serves a job on this machine: an engine, and the handler in front of it.

For the command line, the benchmarks and the tests; a container starts its own.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from ltx_worker.comfy.child import ChildProcess
from ltx_worker.comfy.client import ComfyClient
from ltx_worker.comfy.launch import (
    EngineFolders,
    Launch,
    comfyui_command,
    process_environment,
    sandbox_command,
    serving_options,
)
from ltx_worker.comfy.server import wait_until_ready
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
    folders: EngineFolders
    process: ChildProcess

    @property
    def input_dir(self) -> Path:
        """Where its inputs lie."""
        assert self.folders.input_dir is not None
        return self.folders.input_dir

    @property
    def output_dir(self) -> Path:
        """Where its outputs lie."""
        assert self.folders.output_dir is not None
        return self.folders.output_dir

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point a worker at this engine."""
        return {
            "COMFY_URL": self.url,
            "COMFY_INPUT_DIR": str(self.input_dir),
            "COMFY_OUTPUT_DIR": str(self.output_dir),
            "COMFY_MODELS_DIRS": json.dumps([str(path) for path in self.folders.models_dirs]),
        }


@contextmanager
def sandbox(
    folder: Path, options: Sequence[str] = (), port: int | None = None
) -> Generator[Engine]:
    """The sandbox, with its files under `folder`."""
    launch = _launch([*sandbox_command(), *options], _folders(folder), port)
    with _running(launch, _SANDBOX_START_S) as engine:
        yield engine


@contextmanager
def comfyui(
    comfyui_dir: Path,
    folder: Path,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    port: int | None = None,
) -> Generator[Engine]:
    """A ComfyUI of this machine, with its files under `folder`."""
    command = [*comfyui_command(comfyui_dir), *comfyui_options(folder), *options]
    folders = _folders(folder, (comfyui_dir / "models",))
    with _running(_launch(command, folders, port, environment), _COMFYUI_START_S) as engine:
        yield engine


def comfyui_options(folder: Path) -> Sequence[str]:
    """What keeps a ComfyUI's own files under `folder`, so that it can run beside another."""
    user = folder / "user"
    user.mkdir(parents=True, exist_ok=True)
    return ("--user-directory", str(user), "--database-url", f"sqlite:///{folder / 'comfyui.db'}")


def _folders(folder: Path, models_dirs: tuple[Path, ...] = ()) -> EngineFolders:
    return EngineFolders(folder / "input", folder / "output", folder / "temp", models_dirs)


def _launch(
    command: Sequence[str],
    folders: EngineFolders,
    port: int | None,
    environment: Mapping[str, str] | None = None,
) -> Launch:
    port = port or free_port()
    full = (*command, *serving_options(port, folders))
    return Launch(full, port, folders, environment or {})


@contextmanager
def _running(launch: Launch, timeout_s: float) -> Generator[Engine]:
    with ChildProcess(launch.command, environment=process_environment(launch)) as process:

        def check() -> None:
            if not process.is_alive:
                raise ComfyUnavailable(f"ComfyUI ended at start ({process.last_words})")

        client = ComfyClient(launch.url)
        try:
            wait_until_ready(client, timeout_s, check=check)
        finally:
            client.close()
        yield Engine(launch.url, launch.folders, process)


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
