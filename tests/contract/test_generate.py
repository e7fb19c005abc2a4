"""What a caller gets for a good request, on the sandbox and on a real ComfyUI alike."""

from __future__ import annotations

import hashlib
from itertools import product
from typing import Any

import numpy as np
import pytest
import requests
from tests.conftest import SMALL, RunJob, clip_of, frames_of, picture, sound_of

from ltx_worker.engines import Engine

FAMILIES = ("ltx-2", "ltx-2.3")
QUALITIES = ("fast", "pro")
SAMPLE_RATES = {"ltx-2": 24_000, "ltx-2.3": 48_000}
# AAC packets hold 1,024 samples, and a generated sound ends a little before the picture.
LENGTH_TOLERANCE_S = 0.1

variants = pytest.mark.parametrize(("family", "quality"), list(product(FAMILIES, QUALITIES)))


def request_for(family: str, quality: str, **fields: Any) -> dict[str, Any]:
    return SMALL | {"model": family, "quality": quality} | fields


def check_clip(answer: dict[str, Any], width: int, height: int, frames: int, fps: float) -> None:
    """The clip is as large and long as asked, sounds, and the result says so."""
    clip = clip_of(answer)
    output, metadata = answer["output"], answer["output"]["metadata"]
    pixels = frames_of(clip)
    samples, rate = sound_of(clip)
    assert pixels.shape == (frames, height, width, 3)
    assert samples.shape[1] / rate == pytest.approx(frames / fps, abs=LENGTH_TOLERANCE_S)
    assert np.abs(samples).max() > 0.001, "the sound is silent"
    assert (metadata["width"], metadata["height"]) == (width, height)
    assert metadata["num_frames"] == frames
    assert metadata["fps"] == pytest.approx(fps, abs=0.001)
    assert metadata["duration_s"] == pytest.approx(frames / fps, abs=0.001)
    assert metadata["has_audio"]
    assert metadata["audio_sample_rate"] == rate == SAMPLE_RATES[metadata["model"]]
    assert output["outputs"][0]["bytes"] == len(clip)
    assert output["outputs"][0]["sha256"] == hashlib.sha256(clip).hexdigest()


@variants
def test_text_to_video_has_the_size_frames_rate_and_sound_asked_for(
    run_job: RunJob, family: str, quality: str
) -> None:
    """A clip from text is what was asked for, and says which model made it."""
    answer = run_job(request_for(family, quality, resolution="320x192", num_frames=17, fps=25))
    check_clip(answer, 320, 192, 17, 25)
    metadata = answer["output"]["metadata"]
    assert (metadata["mode"], metadata["model"], metadata["quality"]) == ("t2v", family, quality)
    assert metadata["variant"] == "fp8"
    assert answer["output"]["warnings"] == []


@variants
def test_image_to_video_has_the_size_frames_rate_and_sound_asked_for(
    run_job: RunJob, family: str, quality: str
) -> None:
    """A clip from a picture is what was asked for; the mode follows from the picture."""
    answer = run_job(request_for(family, quality, image=picture(300, 200)))
    check_clip(answer, 256, 128, 9, 24)
    assert answer["output"]["metadata"]["mode"] == "i2v"


@variants
@pytest.mark.parametrize("image", [None, picture(128, 128)], ids=["t2v", "i2v"])
def test_the_seed_decides_the_frames(
    run_job: RunJob, family: str, quality: str, image: str | None
) -> None:
    """The same seed gives the same decoded frames, another seed others."""
    media = {} if image is None else {"image": image}
    first, again, other = (
        frames_of(clip_of(run_job(request_for(family, quality, seed=seed, **media))))
        for seed in (7, 7, 8)
    )
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 1


@variants
def test_the_picture_decides_where_the_clip_starts(
    run_job: RunJob, family: str, quality: str
) -> None:
    """Another picture gives another first frame, from the same seed."""
    red, blue = (
        frames_of(clip_of(run_job(request_for(family, quality, image=picture(256, 128, color)))))
        for color in ((220, 40, 20), (20, 60, 220))
    )
    assert np.abs(red[0].astype(int) - blue[0]).mean() > 5


def test_a_fractional_rate_keeps_picture_and_sound_equally_long(run_job: RunJob) -> None:
    """At 23.976 frames a second the sound does not outlast the picture."""
    answer = run_job(request_for("ltx-2", "fast", num_frames=49, fps=23.976))
    check_clip(answer, 256, 128, 49, 23.976)


def test_a_clip_takes_the_aspect_ratio_of_its_picture(run_job: RunJob) -> None:
    """Without a size, a portrait picture gives a portrait clip with as many pixels."""
    fields = {k: v for k, v in SMALL.items() if k != "resolution"}
    answer = run_job(fields | {"image": picture(200, 400), "resolution": "540p"})
    metadata = answer["output"]["metadata"]
    assert metadata["width"] / metadata["height"] == pytest.approx(0.5, abs=0.1)
    assert metadata["width"] * metadata["height"] == pytest.approx(1024 * 576, rel=0.1)


def test_what_was_changed_is_told(run_job: RunJob) -> None:
    """A size and a count off the grid are snapped, each with a warning."""
    answer = run_job(SMALL | {"resolution": "250x130", "num_frames": 10})
    check_clip(answer, 256, 128, 9, 24)
    warnings = answer["output"]["warnings"]
    assert len(warnings) == 3
    assert any("num_frames 10" in warning for warning in warnings)
    assert any("width 250" in warning for warning in warnings)


def test_the_result_says_where_the_time_went(run_job: RunJob, engine_name: str) -> None:
    """Stages are timed by name, and the engine that made the clip is named."""
    output = run_job(SMALL | {"seed": 1234})["output"]
    timings = output["timings"]
    assert "Diffusion, first pass" in timings["stages"]
    assert 0 < sum(timings["stages"].values()) <= timings["total_s"]
    assert 0 < timings["comfy_s"] <= timings["total_s"]
    assert output["metadata"]["engine"] == engine_name


def test_nothing_of_a_job_is_left(run_job: RunJob, engine: Engine) -> None:
    """Inputs, outputs and ComfyUI's record of the prompt are gone after the job."""
    before = prompts_known_to(engine)
    clip_of(run_job(SMALL | {"seed": 99, "image": picture(256, 128)}))
    left = [
        path
        for folder in (engine.input_dir, engine.output_dir)
        for path in folder.rglob("*")
        if path.is_file()
    ]
    assert left == []
    assert prompts_known_to(engine) <= before


def prompts_known_to(engine: Engine) -> set[str]:
    """The prompts in the engine's history; another worker's last job may be on its way out."""
    return set(requests.get(f"{engine.url}/history", timeout=5).json())


def test_a_clip_carries_no_prompt(run_job: RunJob) -> None:
    """The file's metadata holds neither the workflow nor the caller's words."""
    clip = clip_of(run_job(SMALL | {"prompt": "canary-words-7351"}))
    assert b"canary-words-7351" not in clip
    assert b"class_type" not in clip
