"""A worker in production: RunPod's side, `handler.py`, and the engine that it works on."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from tests.comfyui.tiny_engine import (
    TINY_ENVIRONMENT,
    TINY_MODELS,
    comfyui_dir,
    tiny_comfyui,
    tiny_options,
)
from tests.fakes.runpod_platform import RunPodPlatform, production_handler
from tests.faults.proxy import Proxy

from ltx_worker import engines
from ltx_worker.engines import free_port

_LOOK_S = 0.02
_ASK_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Post:
    """What a worker posted for a job, and when that was taken."""

    moment: float
    message: dict[str, Any]

    @property
    def is_progress(self) -> bool:
        """Whether it is no result."""
        return self.message.get("status") == "IN_PROGRESS"


class Platform(RunPodPlatform):
    """A platform that keeps every post, and may be slow to take progress."""

    def __init__(self) -> None:
        super().__init__()
        self.progress_delay_s = 0.0
        self.posts: defaultdict[str, list[Post]] = defaultdict(list)

    def post(self, job_id: str, body: bytes) -> bool:
        """Take a worker's progress or result."""
        message = json.loads(body)
        if message.get("status") == "IN_PROGRESS":
            time.sleep(self.progress_delay_s)
        is_taken = super().post(job_id, body)
        self.posts[job_id].append(Post(time.monotonic(), message))
        return is_taken

    def results(self, job_id: str) -> list[dict[str, Any]]:
        """Every result of a job, in order."""
        return [post.message for post in self.posts[job_id] if not post.is_progress]


class Engine:
    """An engine under test, asked and armed at its own address, past any proxy."""

    def __init__(self, name: str, folder: Path, port: int) -> None:
        self.name = name
        self.folder = folder
        self.port = port
        self.input_dir, self.output_dir = folder / "input", folder / "output"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that give a worker this engine."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """The process that runs now."""
        raise NotImplementedError

    def arm(self, fault: str, **options: object) -> None:
        """Have the engine misbehave."""
        self._request("POST", "/sandbox/faults", {"fault": fault, **options})

    def disarm(self) -> None:
        """Have it behave again."""
        self._request("DELETE", "/sandbox/faults")

    def queue(self, state: str) -> list[str]:
        """The ids of the prompts that are "running" or "pending"."""
        return [row[1] for row in self._request("GET", "/queue")[f"queue_{state}"]]

    def queued(self) -> list[str]:
        """The ids of both."""
        return [*self.queue("running"), *self.queue("pending")]

    def history(self) -> dict[str, Any]:
        """All that it has run and not forgotten."""
        return self._request("GET", "/history")

    def submit(self, prompt_id: str, graph: Mapping[str, Any]) -> None:
        """Queue a graph as another client."""
        self._request("POST", "/prompt", {"prompt": graph, "prompt_id": prompt_id})

    def forget(self, prompt_id: str) -> None:
        """Take a prompt out of the history."""
        self._request("POST", "/history", {"delete": [prompt_id]})

    @contextmanager
    def frozen(self) -> Generator[None]:
        """It takes connections and answers nothing; it need not be there any more afterwards."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _request(self, method: str, path: str, body: object = None) -> Any:
        url = f"http://127.0.0.1:{self.port}{path}"
        with requests.Session() as session:
            session.trust_env = False
            response = session.request(method, url, json=body, timeout=_ASK_TIMEOUT_S)
        response.raise_for_status()
        return response.json() if response.content else None


class RemoteEngine(Engine):
    """One that runs by itself, behind a proxy: `COMFY_URL`."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name, folder, free_port())
        self._running = ExitStack()
        self.start()
        self.proxy = Proxy(self.port)

    @property
    def environment(self) -> dict[str, str]:
        return self._engine.environment | {"COMFY_URL": self.proxy.url}

    @property
    def pid(self) -> int:
        return self._engine.process.pid

    def start(self) -> None:
        """Start it on its port, also again."""
        starting = (
            tiny_comfyui(self.folder, self.port)
            if self.name == "comfyui"
            else engines.sandbox(self.folder, ["--speed", "0"], self.port)
        )
        self._engine = self._running.enter_context(starting)

    @contextmanager
    def down(self) -> Generator[None]:
        """It has ended, and connections are refused until it has been started again."""
        with self.proxy.refusing():
            self._running.close()
            yield
            self.start()

    def close(self) -> None:
        """End it for good."""
        self.proxy.close()
        self._running.close()


class OwnedEngine(Engine):
    """One that the worker starts: `LTX2_ENGINE` or `COMFYUI_DIR`."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name, folder, free_port())

    @property
    def environment(self) -> dict[str, str]:
        shared = {
            "LTX2_COMFY_PORT": str(self.port),
            "COMFY_INPUT_DIR": str(self.input_dir),
            "COMFY_OUTPUT_DIR": str(self.output_dir),
        }
        if self.name == "sandbox":
            return shared | {"LTX2_ENGINE": "sandbox", "LTX2_COMFY_ARGS": "--speed 0"}
        options = [
            *engines.comfyui_options(self.folder),
            *tiny_options(self.folder),
            *("--temp-directory", str(self.folder / "temp")),
        ]
        return {
            **shared,
            **TINY_ENVIRONMENT,
            "COMFYUI_DIR": str(comfyui_dir()),
            "COMFY_MODELS_DIRS": json.dumps([str(TINY_MODELS)]),
            "LTX2_COMFY_ARGS": " ".join(options),
        }

    @property
    def pid(self) -> int:
        record = self.folder / "tmp" / f"ltx-worker-engine-{self.port}.json"
        return json.loads(record.read_text())["engine"][0]

    def close(self) -> None:
        """It ends with its worker."""


@dataclass(frozen=True)
class Left:
    """What there still is of jobs that are over."""

    files: tuple[Path, ...] = ()
    prompts: tuple[str, ...] = ()


class Deployment:
    """One worker and its platform on `engine`; `settings` are further variables."""

    def __init__(self, engine: RemoteEngine | OwnedEngine, settings: Mapping[str, str]) -> None:
        self.engine = engine
        self._settings = settings
        self.temporary_dir = engine.folder / "tmp"
        self.temporary_dir.mkdir(exist_ok=True)
        self._open = ExitStack()
        self.platform = Platform()
        self._open.enter_context(self.platform)
        self._handler = self._open.enter_context(ExitStack())
        self.start()

    def start(self) -> None:
        """Start `handler.py`, also again, until it asks for a job."""
        environment = {
            **self.engine.environment,
            "TMPDIR": str(self.temporary_dir),
            "LTX2_LOG_FORMAT": "json",
            **self._settings,
        }
        self.process = self._handler.enter_context(production_handler(self.platform, environment))

    def stop(self) -> None:
        """End `handler.py`, if it has not ended, and what it forked."""
        self._handler.close()

    def close(self) -> None:
        """End all of it but the engine."""
        self._open.close()

    def signal(self, number: signal.Signals) -> float:
        """Send the handler a signal that ends it; returns the seconds until it has."""
        started = time.monotonic()
        os.kill(self.process.pid, number)
        wait_until(lambda: not self.process.is_alive, 30)
        return time.monotonic() - started

    def left(self) -> Left:
        """The files and prompts that are still there, of whatever job."""
        folders = (self.engine.input_dir, self.engine.output_dir)
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        files += self.temporary_dir.glob("ltx2-job-*")
        return Left(tuple(files), (*self.engine.queued(), *self.engine.history()))


def wait_until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Wait until a condition holds; fails when it does not in time."""
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, f"it did not happen within {timeout_s:g} s"
        time.sleep(_LOOK_S)
