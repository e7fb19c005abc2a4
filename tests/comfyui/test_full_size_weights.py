"""The random weights of full size have the sizes and the layout of the published files."""

from __future__ import annotations

import json
import struct
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.comfyui.tiny_engine import comfyui_dir
from tests.fakes.runpod_platform import ROOT

from ltx_worker.comfy.launch import comfyui_python

pytestmark = pytest.mark.timeout(300)
# Sizes of the catalogue are exact or rounded to some digits of a GiB; Gemma's are reported ones.
MARGIN = 0.001
GEMMA_MARGIN = 0.035


def make(*options: str) -> str:
    """Run the maker with ComfyUI's own Python."""
    script = ROOT / "bench" / "full_size_weights.py"
    command = [str(comfyui_python(comfyui_dir())), str(script), "--comfyui", str(comfyui_dir())]
    return subprocess.run(
        [*command, *options], check=True, text=True, stdout=subprocess.PIPE
    ).stdout


@cache
def listed() -> dict[str, dict[str, Any]]:
    """Every file that can be made, by its name."""
    return {Path(row["path"]).name: row for row in json.loads(make("--list"))}


def test_every_file_has_its_published_size() -> None:
    assert len(listed()) == 14
    wrong = {
        name: row["bytes"] / row["published_bytes"]
        for name, row in listed().items()
        if abs(row["bytes"] / row["published_bytes"] - 1)
        > (GEMMA_MARGIN if name.startswith("gemma") else MARGIN)
    }
    assert not wrong


@pytest.mark.parametrize(
    ("name", "parameters", "quantised"),
    [
        ("ltx-2-19b-distilled.safetensors", 19_585_115_392, 0),
        ("ltx-2-19b-distilled-fp8.safetensors", 19_585_115_392, 28 * 42),
        ("ltx-2.3-22b-dev-fp8.safetensors", 21_005_004_544, 1496),
    ],
)
def test_a_checkpoint_has_the_published_transformer(
    name: str, parameters: int, quantised: int
) -> None:
    row = listed()[name]
    assert (row["parameters"], row["quantised_layers"]) == (parameters, quantised)


def test_a_written_file_holds_normal_numbers_of_the_right_scale(tmp_path: Path) -> None:
    make("--models", str(tmp_path), "--only", "temporal", "--family", "ltx-2", "--device", "cpu")
    (path,) = tmp_path.rglob("*.safetensors")
    assert path.stat().st_size == listed()[path.name]["bytes"]
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert json.loads(header.pop("__metadata__")["config"])["temporal_upsample"] is True
    weight = header["res_blocks.0.conv1.weight"]
    begin, end = (8 + length + offset for offset in weight["data_offsets"])
    # bfloat16 is the upper half of a float32.
    values = (np.frombuffer(content[begin:end], np.uint16).astype(np.uint32) << 16).view(np.float32)
    fan_in = np.prod(weight["shape"][1:])
    assert values.std() * fan_in**0.5 == pytest.approx(1, abs=0.01)
    assert abs(values.mean()) * fan_in**0.5 < 0.01
    assert len(np.unique(values)) > 1000
