"""How an engine is started: its command, its port and the folders it shares with the worker."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from ltx_worker.errors import ComfyUnavailable
from ltx_worker.settings import Settings

# Node packs run inside the engine: what the worker alone needs is not handed to them.
_SECRET = re.compile(r"^(?:R2|BUCKET|RUNPOD|AWS)_|SECRET|TOKEN$|API_KEY")


@dataclass(frozen=True)
class EngineFolders:
    """An engine's folders, where the worker shares them."""

    input_dir: Path | None = None
    output_dir: Path | None = None
    temp_dir: Path | None = None
    models_dirs: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Launch:
    """What to start, and what it is then reached by. `environment` is added to the worker's."""

    command: tuple[str, ...]
    port: int
    folders: EngineFolders
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def url(self) -> str:
        """Where the engine listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        """Whether something takes connections on the port."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def preloading(self, weights: Sequence[Path]) -> Launch:
        """The same, with weights that the worker's nodes read onto the GPU as the engine starts."""
        names = os.pathsep.join(str(path) for path in weights)
        return replace(self, environment={**self.environment, "LTX2_PRELOAD": names})

    @property
    def record_path(self) -> Path:
        """Where the running engine is written down, so that a later worker finds an orphan."""
        return Path(tempfile.gettempdir()) / f"ltx-worker-engine-{self.port}.json"


def launch_of(settings: Settings, gpu_args: Sequence[str] = ()) -> Launch:
    """The engine that the settings ask for; raises `ComfyUnavailable` when they name none.

    `gpu_args` are the options that the GPU calls for; those of the settings come after them.
    """
    if settings.engine == "sandbox":
        root = Path(tempfile.gettempdir()) / f"ltx-sandbox-{settings.comfy_port}"
        command = sandbox_command()
        models: tuple[Path, ...] = ()
    elif settings.comfyui_dir is None:
        raise ComfyUnavailable(
            "No ComfyUI is named: set COMFYUI_DIR for one that the worker starts, COMFY_URL for "
            "one that runs already, or LTX2_ENGINE=sandbox"
        )
    else:
        root = settings.comfyui_dir
        command = comfyui_command(root, settings.comfyui_python)
        models = (root / "models",)
    folders = EngineFolders(
        settings.comfy_input_dir or root / "input",
        settings.comfy_output_dir or root / "output",
        root / "temp",
        settings.comfy_models_dirs or models,
    )
    return Launch(
        (
            *command,
            *serving_options(settings.comfy_port, folders),
            *gpu_args,
            *shlex.split(settings.comfy_args),
        ),
        settings.comfy_port,
        folders,
    )


def process_environment(launch: Launch) -> dict[str, str]:
    """The environment of the engine: the worker's, without its secrets."""
    kept = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
    return kept | dict(launch.environment)


def sandbox_command() -> tuple[str, ...]:
    """The sandbox, without the options of `serving_options`."""
    return (sys.executable, "-m", "ltx_worker.sandbox")


def comfyui_command(comfyui_dir: Path, python: Path | None = None) -> tuple[str, ...]:
    """A ComfyUI, without the options of `serving_options`. Without a GPU it runs on the CPU.

    Its files carry neither the workflow nor the prompt.
    """
    return (
        str(python or comfyui_python(comfyui_dir)),
        str(comfyui_dir / "main.py"),
        "--disable-auto-launch",
        "--disable-metadata",
        *_quick_options(),
        *([] if shutil.which("nvidia-smi") else ["--cpu"]),
    )


@cache
def _quick_options() -> tuple[str, ...]:
    """What shortens its start, as `launch.toml` says."""
    data = tomllib.loads(Path(__file__).with_name("launch.toml").read_text(encoding="utf-8"))
    return tuple(data["options"])


def serving_options(port: int, folders: EngineFolders) -> Sequence[str]:
    """What both engines take for their port and folders, which are made here."""
    options = ["--port", str(port)]
    for name, folder in (
        ("input", folders.input_dir),
        ("output", folders.output_dir),
        ("temp", folders.temp_dir),
    ):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            options += [f"--{name}-directory", str(folder)]
    return options


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
