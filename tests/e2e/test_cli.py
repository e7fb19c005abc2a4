"""The `ltx` command as a user runs it: real processes, real clips, readable errors."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import pytest
from tests.conftest import picture

SMALL = ["--resolution", "256x128", "--num-frames", "9"]


def ltx(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ltx_worker.cli", *arguments]
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("LTX2_", "COMFY"))}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=variables | {"COLUMNS": "100"} | environment,
    )


def test_demo_leaves_a_clip_and_says_what_it_is(tmp_path: Path) -> None:
    """One command starts everything, writes an H.264 + AAC clip and prints both tables."""
    clip = tmp_path / "folder" / "demo.mp4"
    run = ltx("demo", "a cat", *SMALL, "--seed", "41", "--out", str(clip))
    assert run.returncode == 0, run.stderr
    with av.open(str(clip)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.width, video.height, video.frames) == (256, 128, 9)
    assert "sandbox" in run.stderr
    assert "41" in run.stderr
    assert "Diffusion, first pass" in run.stderr


def test_demo_makes_a_clip_from_a_picture(tmp_path: Path) -> None:
    """--image is image to video; --set reaches any other field."""
    (tmp_path / "a.png").write_bytes(base64.b64decode(picture(200, 100)))
    clip = tmp_path / "i2v.mp4"
    run = ltx(
        *("demo", "a cat", *SMALL, "--image", str(tmp_path / "a.png"), "--set"),
        *("image_strength=0.5", "--out", str(clip)),
    )
    assert run.returncode == 0, run.stderr
    assert "i2v" in run.stderr
    assert clip.stat().st_size > 0


def test_generate_sends_a_job_to_a_running_worker(handler_url: str, tmp_path: Path) -> None:
    """The worker's answer becomes the file named by --out."""
    clip = tmp_path / "clip.mp4"
    run = ltx("generate", "a cat", *SMALL, "--url", handler_url, "--out", str(clip))
    assert run.returncode == 0, run.stderr
    assert clip.stat().st_size > 0


def test_a_refused_job_is_shown_problem_by_problem(handler_url: str, tmp_path: Path) -> None:
    """Status 1, the code, a line for each problem, no traceback and no file."""
    clip = tmp_path / "clip.mp4"
    run = ltx(
        *("generate", "", "--seed", "-1", "--set", "promt=x", "--url", handler_url),
        *("--out", str(clip)),
    )
    assert run.returncode == 1
    assert "invalid_request: the request has 3 problems" in run.stderr
    assert "promt: is not a field; did you mean prompt?" in run.stderr
    assert "seed: must be at least 0" in run.stderr
    assert "Traceback" not in run.stderr
    assert not clip.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "a cat", "--url", "http://127.0.0.1:9"], "127.0.0.1"),
        (["generate", "a cat", "--endpoint", "abc"], "RUNPOD_API_KEY"),
        (["demo", "--engine", "comfyui"], "COMFYUI_DIR"),
        (["demo", "--image", "no-such-file.png"], "no-such-file.png"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(arguments: list[str], words: str) -> None:
    """A worker that is not there, a key or a file that is missing: status 1, no traceback."""
    run = ltx(*arguments)
    assert run.returncode == 1
    assert words in run.stderr
    assert "Traceback" not in run.stderr


def test_schema_prints_the_contract() -> None:
    """Request and result come as JSON Schema; the request takes nothing unknown."""
    request = json.loads(ltx("schema").stdout)
    assert request["required"] == ["prompt"]
    assert request["additionalProperties"] is False
    assert {"resolution", "seed", "image"} <= set(request["properties"])
    result = json.loads(ltx("schema", "result").stdout)
    assert {"outputs", "metadata", "timings", "warnings"} == set(result["required"])
    assert {"video", "video_url"} <= set(result["properties"])
