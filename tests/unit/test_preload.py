"""Which weights a ComfyUI of the worker's own is told to read onto the GPU as it starts."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.image.fakes.nvidia_smi import nvidia_smi

from ltx_worker.boot import Boot
from ltx_worker.catalog import load_catalog
from ltx_worker.engines import free_port
from ltx_worker.errors import ComfyUnavailable
from ltx_worker.settings import Settings

H200 = "NVIDIA H200, 143771, 570.86.10, Disabled"
L40S = "NVIDIA L40S, 46068, 570.86.10, Disabled"
ROLES = ("text_encoder", "distilled_checkpoint", "spatial_upscaler")
# A ComfyUI that writes down what it was told, and ends.
MAIN = """
import json, os, pathlib, sys
told = [*sys.argv[1:], os.environ.get("LTX2_PRELOAD")]
pathlib.Path(__file__).with_name("told").write_text(json.dumps(told))
"""


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, Path]:
    """The files of a default job in ComfyUI's folders, by role."""
    places: dict[str, Path] = {}
    for role in ROLES:
        file = load_catalog().candidates("ltx-2", role, "fp8")[0]
        places[role] = tmp_path / "models" / file.folder / file.name
        places[role].parent.mkdir(parents=True)
        places[role].write_bytes(b"weights")
    return places


@pytest.fixture
def comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ComfyUI that ends at once, on a machine whose GPUs a script of ours lists."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("LTX2_PRELOAD", raising=False)
    (tmp_path / "main.py").write_text(MAIN)
    return tmp_path


def told(comfyui: Path, listing: str, **settings: Any) -> list[str | None]:
    """What a ComfyUI is started with on this GPU: its options, then what it is to read."""
    nvidia_smi(comfyui, listing)
    given = {"comfyui_dir": comfyui, "comfyui_python": Path(sys.executable), "variant": "fp8"}
    boot = Boot(Settings(**given, comfy_port=free_port(), **settings))
    with pytest.raises(ComfyUnavailable):
        boot.nodes()
    boot.close()
    return json.loads((comfyui / "told").read_text())


def test_where_the_gpu_holds_everything_the_large_files_are_read_ahead(
    comfyui: Path, weights: dict[str, Path]
) -> None:
    """In the order of their use: the prompt is read first. The upscaler is small."""
    *options, preload = told(comfyui, H200)
    assert "--gpu-only" in options
    assert preload == f"{weights['text_encoder']}{os.pathsep}{weights['distilled_checkpoint']}"


@pytest.mark.parametrize(
    ("listing", "settings"),
    [
        (L40S, {}),
        (H200, {"comfy_args": "--lowvram"}),
        (H200, {"vram_management": False}),
        (H200, {"read_ahead": False}),
    ],
    ids=["a smaller GPU", "flags of the operator's", "flags left alone", "switched off"],
)
@pytest.mark.usefixtures("weights")
def test_elsewhere_nothing_is_read_onto_the_gpu(
    comfyui: Path, listing: str, settings: dict[str, Any]
) -> None:
    assert told(comfyui, listing, **settings)[-1] is None


def test_weights_that_are_not_there_are_not_named(comfyui: Path, weights: dict[str, Path]) -> None:
    """A family that is not whole has no default job."""
    weights["text_encoder"].unlink()
    assert told(comfyui, H200)[-1] == ""
