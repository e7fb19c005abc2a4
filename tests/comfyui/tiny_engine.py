"""A real ComfyUI with tiny random weights on the CPU, as an engine like any other."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

from ltx_worker import engines
from ltx_worker.comfy.launch import comfyui_python

_HERE = Path(__file__).parent
_PACKS = _HERE.parents[1] / "docker" / "custom_nodes"
_CACHE = Path.home() / ".cache" / "ltx-worker"
# Tiny tensors gain nothing from threads, and lose much to those of another process.
TINY_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
TINY_MODELS = _CACHE / "tiny-models"
_FOLDERS = ("checkpoints", "loras", "text_encoders", "latent_upscale_models")


def comfyui_dir() -> Path:
    """Where ComfyUI lies: `COMFYUI_DIR`, else the cache folder."""
    return Path(os.environ.get("COMFYUI_DIR") or _CACHE / "ComfyUI")


@contextmanager
def tiny_comfyui(folder: Path, port: int | None = None) -> Generator[engines.Engine]:
    """ComfyUI with both families' tiny weights, its other files under `folder`."""
    options = tiny_options(folder)
    with engines.comfyui(comfyui_dir(), folder, options, TINY_ENVIRONMENT, port) as engine:
        yield replace(engine, folders=replace(engine.folders, models_dirs=(TINY_MODELS,)))


@cache
def make_tiny_models() -> None:
    """Write the tiny weights unless they are there; asked once a process, by one at a time."""
    comfyui = comfyui_dir()
    maker = [str(comfyui_python(comfyui)), str(_HERE / "tiny_weights.py")]
    TINY_MODELS.mkdir(parents=True, exist_ok=True)
    with (TINY_MODELS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(
            [*maker, "--comfyui", str(comfyui), "--models", str(TINY_MODELS)], check=True
        )


def tiny_options(folder: Path) -> list[str]:
    """The options of a ComfyUI with the tiny weights, which are made where they are missing."""
    make_tiny_models()
    paths = folder / "extra_model_paths.yaml"
    rows = "".join(f"  {name}: {name}\n" for name in _FOLDERS)
    paths.write_text(
        f"tiny:\n  base_path: {TINY_MODELS}\n  is_default: true\n{rows}"
        f"nodes:\n  custom_nodes: |\n    {_HERE / 'custom_nodes'}\n    {_PACKS}\n"
    )
    frontend = folder / "frontend"
    frontend.mkdir(exist_ok=True)
    return [
        *("--extra-model-paths-config", str(paths)),
        *("--front-end-root", str(frontend)),
        "--disable-api-nodes",
        "--use-pytorch-cross-attention",
        "--disable-all-custom-nodes",
        *("--whitelist-custom-nodes", "ltx_tiny_gemma", "ltx_faults", "ComfyUI-LTXVideo"),
        "ltx_worker_nodes",
    ]
