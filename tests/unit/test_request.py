"""The request: aliases, defaults, snapping, and every problem at once."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltx_worker.errors import InvalidRequest
from ltx_worker.geometry import Size
from ltx_worker.job import Job
from ltx_worker.offer import Offer, WorkflowOffer
from ltx_worker.request import GenerateRequest
from ltx_worker.request_reader import parse_request
from ltx_worker.stop import StopSignal

TAKES = frozenset({"prompt", "seed"})
WITH_IMAGE = TAKES | {"image", "image_strength"}
CONTROLS = frozenset({"loras", "generate_audio", "enhance_prompt", "detailer"})
NEGATIVE = frozenset({"negative_prompt"})
OFFER = Offer(
    workflows={
        ("t2v", "fast", ""): WorkflowOffer(TAKES | CONTROLS),
        ("t2v", "pro", ""): WorkflowOffer(TAKES | CONTROLS | NEGATIVE),
        ("i2v", "fast", ""): WorkflowOffer(WITH_IMAGE, requires=frozenset({"image"})),
        ("i2v", "pro", ""): WorkflowOffer(WITH_IMAGE | NEGATIVE, requires=frozenset({"image"})),
        ("keyframes", "fast", ""): WorkflowOffer(TAKES | {"keyframes"}),
        ("a2v", "fast", ""): WorkflowOffer(TAKES | {"audio"}, requires=frozenset({"audio"})),
    },
    families=("ltx-2", "ltx-2.3"),
    installed=("ltx-2",),
    max_frames=505,
    roles={
        "ltx-2": frozenset({"detailer_lora", "camera_dolly_in"}),
        "ltx-2.3": frozenset(),
    },
    loras=("style.safetensors",),
)
BOTH = dataclasses.replace(OFFER, installed=("ltx-2", "ltx-2.3"))
IMAGE = "https://example.com/a.png"


def parse(**fields: Any) -> GenerateRequest:
    return parse_request({"prompt": "x"} | fields, OFFER)


def problems(**fields: Any) -> dict[str, str]:
    """The problems of a request, by field."""
    with pytest.raises(InvalidRequest) as failure:
        parse(**fields)
    return {problem.field: problem.message for problem in failure.value.details}


def test_a_prompt_is_enough() -> None:
    """Every other field has a default: 5 s of 720p at 24 fps, fast, by the installed family."""
    request = parse()
    assert (request.mode, request.family, request.quality) == ("t2v", "ltx-2", "fast")
    assert (request.size, request.num_frames, request.fps) == (Size(1280, 704), 121, 24.0)
    assert request.warnings == ()


def test_a_seed_not_given_comes_from_the_job() -> None:
    """Another delivery of the job has the same seed, another job another one."""
    jobs = [Job(name, {}, StopSignal(1)) for name in ("one", "one", "two")]
    seeds = [parse_request({"prompt": "x"}, OFFER, job.default_seed).seed for job in jobs]
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"type": "i2v", "image": IMAGE}, {"mode": "i2v"}),
        ({"mode": "Pro"}, {"quality": "pro", "mode": "t2v"}),
        ({"preset": "Balanced"}, {"quality": "pro"}),
        ({"preset": "Fast"}, {"quality": "fast"}),
        ({"model": "ltx-2-pro"}, {"quality": "pro", "family": "ltx-2"}),
        ({"model": "LTX-2"}, {"family": "ltx-2"}),
        ({"length": 49}, {"num_frames": 49}),
        ({"frame_rate": 25}, {"fps": 25.0}),
        ({"width": 640, "height": 384}, {"size": Size(640, 384)}),
        ({"resolution": "640x384"}, {"size": Size(640, 384)}),
        ({"resolution": "1080P"}, {"size": Size(1920, 1088)}),
        ({"aspect_ratio": "9:16"}, {"size": Size(704, 1280)}),
        ({"aspect_ratio": "1:1"}, {"size": Size(960, 960)}),
        ({"image_url": IMAGE}, {"mode": "i2v"}),
        ({"image_uri": IMAGE}, {"mode": "i2v"}),
        ({"image_base64": "AAAA"}, {"mode": "i2v"}),
        ({"image": {"url": IMAGE}}, {"mode": "i2v"}),
        ({"duration": 2}, {"num_frames": 49}),
        ({"duration": 10, "fps": 25}, {"num_frames": 249}),
        ({"negative_prompt": None, "seed": 0}, {"seed": 0}),
        ({"seed": 2**53 - 1}, {"seed": 2**53 - 1}),
        ({"prompt": "x" * 10_000}, {"mode": "t2v"}),
    ],
)
def test_other_names_and_forms_mean_the_same(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Names that callers know from elsewhere are understood."""
    request = parse(**fields)
    assert {name: getattr(request, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": "  \n"}, "prompt", "empty"),
        ({"prompt": "x" * 10_001}, "prompt", "10,001 characters"),
        ({"prompt": 5}, "prompt", "text"),
        ({"num_frames": 0}, "num_frames", "at least 9"),
        ({"num_frames": 10**9}, "num_frames", "at most 505"),
        ({"num_frames": 3.5}, "num_frames", "whole number"),
        ({"num_frames": "121"}, "num_frames", "whole number"),
        ({"num_frames": True}, "num_frames", "whole number"),
        ({"fps": 0}, "fps", "at least 1"),
        ({"fps": float("nan")}, "fps", "finite"),
        ({"fps": float("inf")}, "fps", "finite"),
        ({"fps": "24"}, "fps", "number"),
        ({"fps": True}, "fps", "number"),
        ({"duration": -1}, "duration", "more than 0"),
        ({"duration": 60}, "duration", "at most 21.0 s"),
        ({"duration": 5, "num_frames": 121}, "duration", "num_frames"),
        ({"seed": -1}, "seed", "at least 0"),
        ({"seed": 2**64}, "seed", "at most"),
        ({"seed": 2**53}, "seed", "at most"),
        ({"resolution": "banana"}, "resolution", "720p"),
        ({"resolution": "10x10"}, "resolution", "128"),
        ({"resolution": "4096x4096"}, "resolution", "pixels"),
        ({"resolution": "720p", "width": 640, "height": 640}, "resolution", "width"),
        ({"width": 640}, "height", "required"),
        ({"width": "640", "height": 640}, "width", "whole number"),
        ({"aspect_ratio": "16/9"}, "aspect_ratio", "16:9"),
        ({"aspect_ratio": "0:9"}, "aspect_ratio", "16:9"),
        ({"aspect_ratio": "9:1"}, "aspect_ratio", "4:1"),
        ({"promt": "x"}, "promt", "did you mean prompt?"),
        ({"framerate": 24}, "framerate", "did you mean frame_rate?"),
        ({"zzzz": 1}, "zzzz", "is not a field"),
        ({"model": "ltx-2.3"}, "model", "not installed"),
        ({"model": "sora"}, "model", "ltx-2, ltx-2.3"),
        ({"model": "ltx-2-pro", "quality": "fast"}, "quality", "pro"),
        ({"mode": "fast", "quality": "pro"}, "quality", "same as mode"),
        ({"mode": "dance"}, "mode", "t2v"),
        ({"mode": "i2v"}, "image", "required"),
        ({"mode": "t2v", "image": IMAGE}, "image", "not taken"),
        ({"video": "AAAA"}, "mode", "v2v"),
        ({"mode": "a2v"}, "audio", "required"),
        ({"quality": "quality"}, "quality", "fast, pro"),
        ({"image": {"url": IMAGE, "base64": "AAAA"}}, "image", "either"),
        ({"image": IMAGE, "image_url": IMAGE}, "image_url", "same as image"),
        ({"image": 5}, "image", "object"),
        ({"image": IMAGE, "image_strength": 2}, "image_strength", "at most 1"),
        ({"generate_audio": "no"}, "generate_audio", "true or false"),
        ({"generate_audio": False, "image": IMAGE}, "generate_audio", "not taken"),
        ({"temporal_upscale": True}, "temporal_upscale", "not taken"),
        ({"detailer": True, "num_frames": 17}, "detailer", "at least 25 frames"),
        ({"camera_motion": "spin"}, "camera_motion", "dolly_in"),
        ({"camera_strength": 1}, "camera_strength", "camera_motion"),
        ({"loras": [{"name": "a"}]}, "loras.0.name", "style.safetensors"),
        ({"loras": [{"name": "style"}], "image": IMAGE}, "loras", "not taken"),
        ({"keyframes": [{"image": IMAGE}]}, "keyframes.0", "either frame or time"),
        ({"keyframes": [{"image": IMAGE, "frame": 121}]}, "keyframes.0.frame", "120"),
        ({"keyframes": [{"image": IMAGE, "time": 9}]}, "keyframes.0.time", "5.00 s"),
        ({"mode": "keyframes"}, "keyframes", "required"),
        (
            {"image": IMAGE, "keyframes": [{"image": IMAGE, "frame": 0}]},
            "keyframes",
            "different frames",
        ),
        ({"keyframes": [{"image": IMAGE, "frame": -1}]}, "keyframes.0.frame", "at least 0"),
        ({"output": {"format": "gif"}}, "output.format", "webm"),
        ({"output": {"fromat": "mp4"}}, "output.fromat", "is not a field"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_right(
    fields: dict[str, Any], field: str, words: str
) -> None:
    """The error names the field and says what would be accepted."""
    found = problems(**fields)
    assert words in found[field]
    assert len(found) == 1, found


def test_all_problems_come_at_once() -> None:
    """Mistakes of every kind are in the one error: types, ranges, names, combinations."""
    found = problems(
        promt="y",
        seed=-1,
        fps=0,
        resolution="banana",
        mode="i2v",
        model="ltx-2.3",
        detailer=True,
    )
    assert set(found) == {
        "promt", "seed", "fps", "resolution", "image", "model", "detailer",
    }  # fmt: skip


@pytest.mark.parametrize("job_input", [None, [], "a prompt", 5, True])
def test_an_input_that_is_no_object_is_refused(job_input: Any) -> None:
    """Anything but an object is one clear problem."""
    with pytest.raises(InvalidRequest, match="must be an object"):
        parse_request(job_input, OFFER)


def test_messages_do_not_repeat_what_was_sent() -> None:
    """A caller's words and files do not reach an error message."""
    canary = "canary-7351"
    with pytest.raises(InvalidRequest) as failure:
        parse(prompt=canary * 2000, image={"base64": canary, "url": canary}, aspect_ratio=canary)
    assert canary not in failure.value.to_json()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_frames": 120}, "num_frames 120 was changed to 121"),
        ({"duration": 5, "fps": 25}, "5.16 s (129 frames)"),
        ({"width": 1280, "height": 720}, "height 720 was changed to 704"),
        ({"negative_prompt": "rain"}, "no effect at quality fast"),
    ],
)
def test_what_was_changed_is_told(fields: dict[str, Any], words: str) -> None:
    """Each value that was snapped or has no effect gives one warning."""
    warnings = parse(**fields).warnings
    assert len(warnings) == 1
    assert words in warnings[0]


def test_the_clip_takes_the_ratio_of_its_picture_unless_told_otherwise() -> None:
    """Only a request without size and ratio follows the picture."""
    assert parse(image=IMAGE).fitted_to(Size(1000, 1000)).size == Size(960, 960)
    assert parse(image=IMAGE).fitted_to(Size(1920, 1080)).size == Size(1280, 704)
    assert parse(image=IMAGE, aspect_ratio="16:9").fitted_to(Size(9, 9)).size == Size(1280, 704)
    assert parse(image=IMAGE, resolution="640x384").fitted_to(Size(9, 9)).size == Size(640, 384)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["prompt", "seed", "fps", "num_frames", "duration", "width", "height", "resolution", "image",
     "mode", "quality", "model", "aspect_ratio", "loras", "output", "keyframes", "promt"]
)  # fmt: skip


@given(st.dictionaries(NAMES | st.text(), JSON))
def test_any_object_gives_a_request_or_one_coded_error(job_input: dict[str, Any]) -> None:
    """No input of any shape raises anything but the contract's error, which serialises."""
    try:
        request = parse_request(job_input, OFFER)
    except InvalidRequest as error:
        refusal = error
    else:
        assert request.size.width % 64 == request.size.height % 64 == 0
        assert request.num_frames % 8 == 1
        assert request.num_frames <= OFFER.max_frames
        return
    assert refusal.details
    assert json.loads(refusal.to_json())["code"] == "invalid_request"


# ---- controls -----------------------------------------------------------------------------------


def test_options_that_are_on_are_those_of_the_workflow() -> None:
    """Sound is on by default; what a workflow has no place for is not asked of it."""
    assert parse().options == {"generate_audio"}
    assert parse(generate_audio=False).options == frozenset()
    assert parse(detailer=True, enhance_prompt=True).options == {
        "generate_audio",
        "detailer",
        "enhance_prompt",
    }
    assert parse(image=IMAGE).options == frozenset()


def test_a_detailer_that_is_not_published_for_the_family_is_refused() -> None:
    """What one family has and the other lacks is said by name."""
    with pytest.raises(InvalidRequest, match=r"detailer is not possible: .* ltx-2\.3"):
        parse_request({"prompt": "x", "model": "ltx-2.3", "detailer": True}, BOTH)


def test_a_camera_movement_is_a_lora_where_there_is_one() -> None:
    """The role and the strength go on; the prompt stays as it was."""
    request = parse(camera_motion="Dolly_In", camera_strength=0.5)
    assert request.camera_lora == ("camera_dolly_in", 0.5)
    assert (request.prompt, request.warnings) == ("x", ())


@pytest.mark.parametrize(
    ("model", "motion"), [("ltx-2", "focus_shift"), ("ltx-2.3", "dolly_in"), ("ltx-2.3", "static")]
)
def test_a_camera_movement_without_a_lora_becomes_words(model: str, motion: str) -> None:
    """The prompt gets the movement, and the caller is told."""
    request = parse_request({"prompt": "x", "model": model, "camera_motion": motion}, BOTH)
    assert request.camera_lora is None
    assert request.prompt.startswith("x ")
    assert "in words" in request.warnings[0]


def test_loras_are_named_with_or_without_their_ending() -> None:
    """Order and strengths are the caller's; the names are ComfyUI's."""
    request = parse(loras=[{"name": "style", "strength": 0.5}, {"name": "style.safetensors"}])
    assert request.loras == (("style.safetensors", 0.5), ("style.safetensors", 1.0))


def test_keyframes_are_put_in_order_with_first_and_last_image() -> None:
    """A frame or a time, the image at 0, the last image at the last frame."""
    frames = [{"image": IMAGE, "time": 2.0, "strength": 0.5}, {"image": IMAGE, "frame": 24}]
    request = parse(keyframes=frames, image=IMAGE, last_image=IMAGE)
    assert request.mode == "keyframes"
    assert [(k.frame, k.strength) for k in request.keyframes] == [
        (0, 1.0),
        (24, 1.0),
        (48, 0.5),
        (120, 1.0),
    ]


def test_a_clip_lasts_as_long_as_its_sound_unless_told_otherwise() -> None:
    """Without a duration the frames follow the sound, up to the limit."""
    request = parse(audio="AAAA")
    assert request.follow_sound
    assert request.timed_by(3.0, 505).num_frames == 73
    assert request.timed_by(60.0, 505).num_frames == 505
    fixed = parse(audio="AAAA", duration=2)
    assert fixed.timed_by(3.0, 505).num_frames == 49


def test_what_upscalers_make_is_counted_in() -> None:
    """Twice the sides; 2F-1 frames at twice the rate."""
    request = dataclasses.replace(
        parse(), options=frozenset({"spatial_upscale", "temporal_upscale"})
    )
    assert request.made.size == Size(2560, 1408)
    assert (request.made.num_frames, request.made.fps) == (241, 48.0)
