"""Scripts that compare the nodes' speed-ups with ComfyUI, run by ComfyUI's own Python."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from typing import Any

from tests.comfyui.tiny_engine import TINY_ENVIRONMENT, comfyui_dir
from tests.fakes.runpod_platform import ROOT

from ltx_worker.comfy.launch import comfyui_python


@cache
def has_triton() -> bool:
    """Whether ComfyUI's Python can import Triton."""
    python = str(comfyui_python(comfyui_dir()))
    done = subprocess.run([python, "-c", "import triton"], capture_output=True, check=False)
    return done.returncode == 0


def printed_by(script: str, *arguments: str, interpreted: bool) -> dict[str, Any]:
    """The JSON object that a script of this folder prints; kernels in Triton's interpreter.

    Where there is no Triton to interpret them, the script is not run: `{"triton": False}`.
    """
    if interpreted and not has_triton():
        return {"triton": False}
    environment = os.environ | TINY_ENVIRONMENT
    environment.pop("TRITON_INTERPRET", None)
    if interpreted:
        environment["TRITON_INTERPRET"] = "1"
    path = ROOT / "tests" / "comfyui" / script
    output = subprocess.run(
        [str(comfyui_python(comfyui_dir())), str(path), *arguments],
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        cwd=comfyui_dir(),
        env=environment,
    ).stdout
    return json.loads(output)
