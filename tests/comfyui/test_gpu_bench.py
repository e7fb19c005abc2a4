"""The GPU bench's whole way, with tiny weights on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from tests.fakes.runpod_platform import ROOT

pytestmark = pytest.mark.timeout(300)
# Mean difference of neighbouring pixels: grain of 2 % gives about 5, noise about 70.
NATURAL_STEP = 15


def test_a_fresh_and_a_warm_job_are_measured_through_the_whole_worker(tmp_path: Path) -> None:
    results, clips = tmp_path / "results.json", tmp_path / "clips"
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), "--models", "tiny", "--jobs", "2"]
    command += ["--scenario", "start-720p-5s", "warm-720p-5s", "--size", "256x128x9"]
    command += ["--json", str(results), "--clips", str(clips), "--configuration", "default"]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = {run["scenario"]: run for run in json.loads(results.read_text())["runs"]}
    start, warm = runs["start-256x128x9"], runs["warm-256x128x9"]
    assert len(warm["jobs"]) == 2
    median = warm["medians"]
    assert 0 < median["comfy_s"] < median["worker_s"] < median["job_s"]
    assert sum(median["nodes"].values()) == pytest.approx(median["comfy_s"], rel=0.5)
    assert any("SamplerCustomAdvanced" in name for name in median["nodes"])
    assert start["medians"]["start_to_result_s"] > start["medians"]["ready_s"] > 0
    assert len({job["seed"] for job in warm["jobs"]}) == 2
    # The first job, one before the measured ones, and those.
    assert len(list(clips.iterdir())) == 4
    for clip in clips.iterdir():
        assert neighbour_step(clip) < NATURAL_STEP


def neighbour_step(clip: Path) -> float:
    """The mean difference of pixels that lie side by side, in the clip's last frame."""
    with av.open(clip) as container:
        *_, last = container.decode(video=0)
    pixels = last.to_ndarray(format="gray").astype(np.int16)
    return float(np.abs(np.diff(pixels, axis=1)).mean())
