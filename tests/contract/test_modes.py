"""Every mode, quality and control that the README claims, through the handler, on either engine."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.conftest import RunJob, clip_of, frames_of, picture, settings_for, sound_of

from ltx_worker import samples
from ltx_worker.engines import Engine
from ltx_worker.result import GenerateResult
from ltx_worker.settings import Settings
from ltx_worker.worker import Worker
from ltx_worker.workflow.template import load_templates

FAMILIES = ("ltx-2", "ltx-2.3")
JOB = {"prompt": "a cat in the rain", "resolution": "256x128", "seed": 1}
LENGTH_TOLERANCE_S = 0.15
LORAS = {
    "ltx-2": "ltx-2-19b-distilled-lora-384",
    "ltx-2.3": "ltx-2.3-22b-distilled-lora-384-1.1",
}
SOUND = samples.sound(0.75)
SOURCE = samples.clip(1.0)  # 24 frames

# Name -> the fields, and the frames that the clip must have.
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "t2v fast": ({"num_frames": 9}, 9),
    "t2v pro": ({"num_frames": 9, "quality": "pro"}, 9),
    "t2v quality": ({"num_frames": 9, "quality": "quality"}, 9),
    "i2v fast": ({"num_frames": 9, "image": picture(256, 128)}, 9),
    "i2v pro": ({"num_frames": 9, "image": picture(256, 128), "quality": "pro"}, 9),
    "i2v quality": ({"num_frames": 9, "image": picture(256, 128), "quality": "quality"}, 9),
    "a2v fast": ({"audio": SOUND}, 17),
    "a2v pro": ({"audio": SOUND, "quality": "pro"}, 17),
    "lipsync fast": ({"audio": SOUND, "image": picture(256, 128)}, 17),
    "lipsync pro": ({"audio": SOUND, "image": picture(256, 128), "quality": "pro"}, 17),
    "keyframes fast": (
        {
            "num_frames": 25,
            "image": picture(256, 128),
            "keyframes": [{"image": picture(90, 90), "time": 0.5}],
            "last_image": picture(256, 128, (20, 40, 220)),
        },
        25,
    ),
    "keyframes pro": (
        {"num_frames": 17, "last_image": picture(256, 128), "quality": "pro"},
        17,
    ),
    "v2v fast": ({"video": SOURCE, "control": "canny"}, 17),
    "v2v fast restyle": ({"video": SOURCE}, 17),
    "extend fast": ({"video": SOURCE, "num_frames": 17}, 40),
    "extend fast backward": ({"video": SOURCE, "num_frames": 9, "direction": "backward"}, 33),
    "retake fast": ({"video": SOURCE, "start_time": 0.3, "end_time": 0.6}, 24),
}
# Controls, and the family they are tried on where only one has the file.
CONTROLS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "camera LoRA": ({"camera_motion": "dolly_in"}, ("ltx-2",)),
    "camera words": ({"camera_motion": "focus_shift"}, FAMILIES),
    "detailer": ({"detailer": True, "num_frames": 25}, ("ltx-2",)),
    "spatial upscaler": ({"spatial_upscale": True}, FAMILIES),
    "temporal upscaler": ({"temporal_upscale": True}, FAMILIES),
    "no sound": ({"generate_audio": False}, FAMILIES),
    "webm": ({"output": {"format": "webm"}}, ("ltx-2",)),
    "depth": ({"video": SOURCE, "control": "depth"}, FAMILIES),
    "pose": ({"video": SOURCE, "control": "pose"}, FAMILIES),
    "union": ({"video": SOURCE, "control": "union"}, FAMILIES),
    "motion track": ({"video": SOURCE, "control": "motion_track"}, ("ltx-2.3",)),
    "retake sound": (
        {"video": SOURCE, "start_time": 0.3, "end_time": 0.6, "replace": "audio"},
        FAMILIES,
    ),
    "retake picture": (
        {"video": SOURCE, "start_time": 0.0, "end_time": 9.0, "replace": "video"},
        FAMILIES,
    ),
    "silent extension": ({"video": SOURCE, "num_frames": 9, "generate_audio": False}, FAMILIES),
}


def run(run_job: RunJob, family: str, **fields: Any) -> tuple[dict[str, Any], bytes]:
    """The output and the clip of a job."""
    answer = run_job(JOB | {"model": family} | fields)
    return answer["output"] if answer["status"] == "COMPLETED" else answer, clip_of(answer)


def test_every_workflow_is_tried() -> None:
    """No workflow file is without a case below."""
    names = {
        f"{t.mode} {t.quality} {t.variant}".strip()
        for t in load_templates(Settings().workflows_dir).values()
    }
    assert names == set(CASES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CASES)
def test_every_workflow_makes_its_clip(run_job: RunJob, family: str, name: str) -> None:
    """The mode follows from the media; size, frames and sound are what the job implies."""
    fields, frames = CASES[name]
    mode = name.partition(" ")[0]
    explicit = {"mode": mode} if mode in ("extend", "retake") else {}
    output, clip = run(run_job, family, **fields, **explicit)
    metadata = output["metadata"]
    assert (metadata["mode"], metadata["model"]) == (mode, family)
    assert frames_of(clip).shape == (frames, 128, 256, 3)
    samples_, rate = sound_of(clip)
    length_s = samples_.shape[1] / rate
    assert length_s == pytest.approx(frames / metadata["fps"], abs=LENGTH_TOLERANCE_S)


@pytest.mark.parametrize(
    ("name", "family"), [(name, f) for name, (_, families) in CONTROLS.items() for f in families]
)
def test_every_control_makes_its_clip(run_job: RunJob, name: str, family: str) -> None:
    """The clip was probed against what the control implies, or there would be no result."""
    fields = CONTROLS[name][0]
    mode = {"retake": "retake", "silent": "extend"}.get(name.partition(" ")[0])
    defaults = {} if "video" in fields else {"num_frames": 17}
    asked = defaults | fields | ({"mode": mode} if mode else {})
    output, _ = run(run_job, family, **asked)
    metadata = output["metadata"]
    assert metadata["has_audio"] == fields.get("generate_audio", True)
    factor = 2 if fields.get("spatial_upscale") else 1
    assert (metadata["width"], metadata["height"]) == (256 * factor, 128 * factor)
    if fields.get("temporal_upscale"):
        assert (metadata["num_frames"], metadata["fps"]) == (33, 48.0)
    assert any("in words" in w for w in output["warnings"]) == (name == "camera words")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_enhanced_prompt_is_in_the_result(run_job: RunJob, family: str) -> None:
    """What the text encoder made of the prompt is told, and only when asked for."""
    output, _ = run(run_job, family, num_frames=9, enhance_prompt=True)
    assert output["metadata"]["enhanced_prompt"]
    output, _ = run(run_job, family, num_frames=9)
    assert output["metadata"]["enhanced_prompt"] is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_changes_the_clip_by_its_strength(run_job: RunJob, family: str) -> None:
    """At strength 0 the frames are those without it, at strength 1 others."""
    plain, off, on = (
        frames_of(run(run_job, family, num_frames=9, loras=loras)[1])
        for loras in (
            [],
            [{"name": LORAS[family], "strength": 0.0}],
            [{"name": LORAS[family], "strength": 1.0}],
        )
    )
    assert np.array_equal(plain, off)
    assert np.abs(plain.astype(int) - on).mean() > 0.5


def test_sound_given_is_the_sound_of_the_clip(run_job: RunJob) -> None:
    """Audio to video carries the caller's own samples, not their way through the model."""
    _, clip = run(run_job, "ltx-2", audio=SOUND)
    given, rate = _wav(SOUND)
    made, made_rate = sound_of(clip)
    assert made_rate == rate
    length = min(given.size, made.shape[1]) - 2048
    # AAC starts with a delay of up to two packets: the best shift is looked for.
    best = max(
        np.corrcoef(given[:length], made[0][shift : shift + length])[0, 1]
        for shift in range(0, 2048, 32)
    )
    assert best > 0.95


@pytest.mark.parametrize(("duration", "words"), [(0.375, "cut to"), (1.375, "filled with silence")])
def test_sound_that_does_not_fit_is_cut_or_filled_and_told(
    run_job: RunJob, duration: float, words: str
) -> None:
    """The clip has the length asked for; the caller learns what became of the sound."""
    output, _ = run(run_job, "ltx-2", audio=SOUND, duration=duration)
    assert any(words in warning for warning in output["warnings"])


def _wav(encoded: str) -> tuple[np.ndarray, int]:
    """Mono samples from -1 to 1 of a 16-bit WAV in base64, and its rate."""
    data = base64.b64decode(encoded)
    return np.frombuffer(data[44:], dtype="<i2").astype(float) / 32768, int.from_bytes(
        io.BytesIO(data[24:28]).read(), "little"
    )


def test_a_graph_of_the_callers_own_runs_through_the_handler(run_job: RunJob) -> None:
    """The generic worker's request form: a workflow, its pictures, and every output back."""
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "input.png"}},
        "2": {
            "class_type": "ImageScale",
            "inputs": {
                "image": ["1", 0],
                "upscale_method": "lanczos",
                "width": 64,
                "height": 32,
                "crop": "center",
            },
        },
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "out"}},
    }
    images = [{"name": "input.png", "image": picture(200, 100)}]
    answer = run_job({"workflow": graph, "images": images})
    assert answer["status"] == "COMPLETED", answer
    (image,) = answer["output"]["images"]
    with Image.open(io.BytesIO(base64.b64decode(image["data"]))) as scaled:
        assert scaled.size == (64, 32)


def test_the_worker_s_settings_name_the_container_and_the_folder(engine: Engine) -> None:
    """LTX2_VIDEO_FORMAT is for requests that name none; LTX2_OUTPUT_DIR is ComfyUI's folder."""
    worker = Worker(settings_for(engine, video_format="webm", output_dir="clips/of_today"))
    worker.start()
    job = JOB | {"num_frames": 9}
    ours = worker.run({"id": "default", "input": job})
    theirs = worker.run({"id": "mp4", "input": job | {"output": {"format": "mp4"}}})
    worker.close()
    assert isinstance(ours, GenerateResult)
    assert isinstance(theirs, GenerateResult)
    assert (ours.outputs[0].mime_type, theirs.outputs[0].mime_type) == ("video/webm", "video/mp4")
    assert ours.outputs[0].filename.endswith(".webm")
    assert (engine.output_dir / "clips").is_dir()
