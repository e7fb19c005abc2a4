"""What goes wrong in the modes' graphs goes wrong in the sandbox, in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from tests.sandbox.graphs import CONTROL_LORA, SECOND_SIGMAS, Graph, Link, Node, Studio
from tests.sandbox.probe import Probe, sandbox

CAMERA_LORA = "ltx-2-19b-lora-camera-control-static.safetensors"
BEYOND = "Conditioning frames exceed the length of the latent sequence."


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    with sandbox(tmp_path_factory.mktemp("traps"), "--speed", "0") as running:
        pixels = np.indices((64, 64)).sum(axis=0).astype(np.uint8)
        Image.fromarray(pixels).convert("RGB").save(running.input_dir / "picture.png")
        with av.open(running.input_dir / "silent.mp4", "w") as output:
            video = output.add_stream("libx264", rate=24)
            video.width, video.height = 64, 64
            for _ in range(33):
                frame = av.VideoFrame.from_ndarray(pixels, format="gray8")
                output.mux(video.encode(frame.reformat(format="yuv420p")))
            output.mux(video.encode(None))
        yield running


def picture(studio: Studio) -> Link:
    return studio.add("LoadImage", image="picture.png")[0]


def failure(probe: Probe, graph: Graph) -> tuple[str, str, str]:
    """The class of the node that failed, the exception's type, and its message."""
    kind, data = probe.run(graph)["status"]["messages"][-1]
    assert kind == "execution_error", data
    return data["node_type"], data["exception_type"], data["exception_message"].strip()


def frame_count(probe: Probe, graph: Graph) -> int:
    entry = probe.run(graph)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    with av.open(probe.file(entry)) as container:
        return sum(1 for _ in container.decode(video=0))


def two_passes_between(studio: Studio, *, crop_first: bool, crop_last: bool) -> Graph:
    """First and last frame given in a first pass over 25 frames; a second without guides."""
    told = studio.text()
    first = studio.guide(told, studio.empty(64, 64, 25), picture(studio), 0)
    last = studio.guide(first, first[2], picture(studio), -1)
    video = studio.sample(last[2], studio.guider(last))
    video = studio.crop(last, video) if crop_first else video
    video = studio.sample(studio.upsample(video), studio.guider(told), SECOND_SIGMAS)
    video = studio.crop(last, video) if crop_last else video
    return studio.save(studio.decode(video))


@pytest.mark.parametrize(
    ("crop_first", "crop_last", "frames"),
    [
        (True, False, 25),
        (False, False, 41),
        # At twice the size the guides' tokens count as a quarter of the latents, so as none.
        (False, True, 41),
    ],
)
def test_guides_that_are_not_cropped_are_decoded(
    probe: Probe, crop_first: bool, crop_last: bool, frames: int
) -> None:
    """Each adds eight frames, and nothing fails."""
    graph = two_passes_between(Studio(), crop_first=crop_first, crop_last=crop_last)
    assert frame_count(probe, graph) == frames


@pytest.mark.parametrize(("pictures", "frame"), [(1, 200), (33, 0), (9, 17)])
def test_a_guide_beyond_the_end_fails(probe: Probe, pictures: int, frame: int) -> None:
    """One picture after the end, too many from the start, and some that reach beyond it."""
    studio = Studio()
    footage = studio.frames(studio.footage("silent.mp4")[0], 0, pictures)
    guide = studio.guide(studio.text(), studio.empty(64, 64, 17), footage, frame)
    found = failure(probe, studio.save(studio.decode(guide[2])))
    assert found == ("LTXVAddGuide", "AssertionError", BEYOND)


def test_a_guide_far_before_the_start_is_the_first_frame(probe: Probe) -> None:
    """And two guides may have the same frame."""
    studio = Studio()
    guide = studio.guide(studio.text(), studio.empty(64, 64, 9), picture(studio), -500)
    guide = studio.guide(guide, guide[2], picture(studio), 0)
    video = studio.crop(guide, studio.sample(guide[2], studio.guider(guide)))
    assert frame_count(probe, studio.save(studio.decode(video))) == 9


def test_a_joint_latent_takes_no_guide(probe: Probe) -> None:
    """Pictures are put in before video and sound are joined."""
    studio = Studio()
    latent = studio.join(studio.empty(64, 64, 9), studio.empty_audio(9))
    guide = studio.guide(studio.text(), latent, picture(studio), 0)
    found = failure(probe, studio.save(studio.decode(guide[2])))
    assert found[:2] == ("LTXVAddGuide", "TypeError")


def controlled(width: int, *loras: str) -> Graph:
    studio = Studio()
    model = studio.model
    for name in loras:
        lora = {"lora_name": name, "strength_model": 1.0}
        model = studio.add("LoraLoaderModelOnly", model=model, **lora)[0]
    parameters = studio.add("GetICLoRAParameters", iclora_model=model)[0]
    control = studio.frames(studio.footage("silent.mp4")[0], 0, 9)
    told = studio.text()
    video = studio.empty(width, 64, 9)
    guide = studio.guide(told, video, control, 0, iclora_parameters=parameters)
    return studio.save(studio.decode(studio.crop(guide, guide[2])))


def test_a_half_size_control_needs_an_even_latent(probe: Probe) -> None:
    """The factor is read from the LoRA that was loaded last, so another after it hides it."""
    node, kind, message = failure(probe, controlled(96, CONTROL_LORA))
    assert (node, kind) == ("LTXVAddGuide", "ValueError")
    expected = "Latent spatial size 3x2 must be divisible by reference_downscale_factor 2"
    assert message.startswith(expected)
    assert frame_count(probe, controlled(128, CONTROL_LORA)) == 9
    assert frame_count(probe, controlled(96, CONTROL_LORA, CAMERA_LORA)) == 9


def test_multimodal_guidance_needs_sound(probe: Probe) -> None:
    """A video latent alone fails in the sampler, as a tuple that is too short."""
    studio = Studio()
    guider = studio.multimodal_guider(studio.text())
    video = studio.sample(studio.empty(64, 64, 9), guider)
    found = failure(probe, studio.save(studio.decode(video)))
    message = "not enough values to unpack (expected 2, got 1)"
    assert found == ("SamplerCustomAdvanced", "ValueError", message)


@pytest.mark.parametrize(
    ("strength", "stg", "perturb", "fails"),
    [
        (0.7, 1.0, True, True),
        (1.0, 1.0, True, False),
        (0.7, 0.0, True, False),
        (0.7, 1.0, False, False),
    ],
)
def test_a_weak_guide_breaks_stg(
    probe: Probe, strength: float, stg: float, perturb: bool, fails: bool
) -> None:
    """Unless the guide is at full strength, or nothing is perturbed."""
    studio = Studio()
    guide = studio.guide(studio.text(), studio.empty(64, 64, 9), picture(studio), 0, strength)
    guider = studio.multimodal_guider(guide, stg, perturb)
    latent = studio.join(guide[2], studio.empty_audio(9))
    split = studio.split(studio.sample(latent, guider))
    graph = studio.save(studio.decode(studio.crop(guide, split[0])))
    if fails:
        found = failure(probe, graph)
        assert found[:2] == ("SamplerCustomAdvanced", "RuntimeError")
        assert "(8) must match the existing size (12)" in found[2]
    else:
        assert frame_count(probe, graph) == 9


def test_a_modality_is_guided_once(probe: Probe) -> None:
    """Two GuiderParameters of one modality do not go together."""
    studio = Studio()
    numbers = {"cfg": 3.0, "stg": 1.0, "rescale": 0.7, "modality_scale": 3.0, "skip_step": 0}
    given = {"modality": "VIDEO", "perturb_attn": True, "cross_attn": True, **numbers}
    first = studio.add("GuiderParameters", **given)[0]
    second = studio.add("GuiderParameters", **given, parameters=first)[0]
    told = studio.text()
    texts = {"positive": told[0], "negative": told[1], "skip_blocks": ""}
    guider = studio.add("MultimodalGuider", model=studio.model, **texts, parameters=second)[0]
    video = studio.sample(studio.empty(64, 64, 9), guider)
    assert failure(probe, studio.save(studio.decode(video)))[:2] == (
        "GuiderParameters",
        "ValueError",
    )


def encoded(studio: Studio, audio: Link) -> Graph:
    latent = studio.join(studio.empty(64, 64, 9), studio.encode_audio(audio))
    return studio.save(studio.decode(studio.split(latent)[0]))


def silence(studio: Studio, seconds: float) -> Link:
    return studio.add("EmptyAudio", duration=seconds, sample_rate=44_100, channels=2)[0]


SOUNDS: dict[str, tuple[Callable[[Studio], Link], tuple[str, str, str]]] = {
    "none": (
        lambda studio: studio.footage("silent.mp4")[1],
        ("LTXVAudioVAEEncode", "ValueError", "VAEEncodeAudio: input audio is None"),
    ),
    "short": (
        lambda studio: silence(studio, 0.08),
        ("LTXVAudioVAEEncode", "RuntimeError", "cannot reshape tensor of 0 elements"),
    ),
    "late": (
        lambda studio: studio.trimmed(silence(studio, 1.0), 1.0, 0.5),
        ("TrimAudioDuration", "ValueError", "TrimAudioDuration: Start time must be less"),
    ),
    "absent": (
        lambda studio: studio.add("LoadAudio", audio="silent.mp4")[0],
        ("LoadAudio", "ValueError", "No audio stream found in the file."),
    ),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_sound_that_cannot_be_encoded_fails(probe: Probe, name: str) -> None:
    """No sound, hardly any, a start at its end, and a video file without it."""
    sound, expected = SOUNDS[name]
    studio = Studio()
    found = failure(probe, encoded(studio, sound(studio)))
    assert (*found[:2], found[2][: len(expected[2])]) == expected


def test_a_tenth_of_a_second_can_be_encoded(probe: Probe) -> None:
    """Less than 93 ms cannot."""
    studio = Studio()
    assert frame_count(probe, encoded(studio, silence(studio, 0.1))) == 9


def test_a_file_that_is_no_video_fails_when_it_is_read(probe: Probe) -> None:
    """Not when it is loaded."""
    (probe.input_dir / "broken.mp4").write_bytes(b"no video")
    studio = Studio()
    found = failure(probe, studio.save(studio.footage("broken.mp4")[0]))
    assert found[:2] == ("GetVideoComponents", "av.error.InvalidDataError")


def test_more_pictures_in_place_than_frames_fail(probe: Probe) -> None:
    """The latent cannot hold them."""
    studio = Studio()
    footage = studio.footage("silent.mp4")[0]
    video = studio.in_place(studio.empty(64, 64, 17), footage)
    found = failure(probe, studio.save(studio.decode(video)))
    assert found[:2] == ("LTXVImgToVideoInplace", "RuntimeError")


def test_the_upsampler_forgets_what_was_in_place(probe: Probe) -> None:
    """Without it in the second pass as well, the first frame is no longer the picture."""
    shown: dict[bool, Any] = {}
    for again in (True, False):
        studio = Studio()
        told, image = studio.text(), picture(studio)
        video = studio.sample(studio.in_place(studio.empty(64, 64, 9), image), studio.guider(told))
        video = studio.upsample(video)
        video = studio.in_place(video, image) if again else video
        video = studio.sample(video, studio.guider(told), SECOND_SIGMAS)
        with av.open(probe.file(probe.run(studio.save(studio.decode(video))))) as container:
            shown[again] = next(container.decode(video=0)).to_ndarray(format="rgb24")[:80]
    asked = np.asarray(Image.open(probe.input_dir / "picture.png").resize((128, 128)))[:80]
    drift = {again: np.abs(shown[again].astype(float) - asked).mean() for again in shown}
    assert drift[True] < 5 < 10 < drift[False]


def test_the_looping_sampler_takes_no_joint_latent(probe: Probe) -> None:
    """And as many guiding latents as latents."""
    failures = []
    for joint in (True, False):
        studio = Studio()
        video = studio.empty(64, 64, 17)
        latents = studio.join(video, studio.empty_audio(17)) if joint else video
        sampled = looping(studio, latents, studio.empty(64, 64, 9))
        failures.append(failure(probe, studio.save(studio.decode(sampled[0])))[:2])
    assert failures == [
        ("LTXVLoopingSampler", "ValueError"),
        ("LTXVLoopingSampler", "AssertionError"),
    ]


def looping(studio: Studio, latents: Link, guiding: Link) -> Node:
    told = studio.sampling(studio.guider(studio.text()), SECOND_SIGMAS, 42)
    tiles = {"horizontal_tiles": 1, "vertical_tiles": 1, "spatial_overlap": 1}
    tiles |= {"temporal_tile_size": 56, "temporal_overlap": 24}
    names = ("guiding_strength", "temporal_overlap_cond_strength", "cond_image_strength")
    loaded = {"model": studio.model, "vae": studio.vae, "optional_guiding_latents": guiding}
    strengths = dict.fromkeys(names, 1.0)
    return studio.add("LTXVLoopingSampler", **loaded, **told, **tiles, **strengths, latents=latents)


def test_a_switch_runs_the_chosen_branch_alone(probe: Probe) -> None:
    """The other branch may fail, and is never run."""
    studio = Studio()
    sound = studio.footage("silent.mp4")[1]
    unwanted = studio.encode_audio(sound)
    wanted = studio.empty_audio(9)
    chosen = studio.add("ComfySwitchNode", switch=False, on_false=wanted, on_true=unwanted)[0]
    latent = studio.join(studio.empty(64, 64, 9), chosen)
    split = studio.split(studio.sample(latent, studio.guider(studio.text())))
    graph = studio.save(studio.decode(split[0]), studio.decode_audio(split[1]))
    messages = probe.follow(graph)
    ran = [m["data"]["node"] for m in messages if m["type"] == "executing"]
    assert unwanted[0] not in ran
    assert messages[-3]["type"] == "execution_success"
