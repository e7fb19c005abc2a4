"""The graphs of the modes on the sandbox: each draws something that tells it from the others."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from tests.sandbox.films import (
    SAME,
    SHOWN,
    apart,
    frames_of,
    likeness,
    samples_of,
    write_video,
)
from tests.sandbox.graphs import (
    FIRST_SIGMAS,
    SECOND_SIGMAS,
    TEMPORAL,
    Graph,
    H,
    Studio,
    W,
    controlled,
    extended,
    keyframed,
    one_pass,
    retaken,
)
from tests.sandbox.probe import Probe, sandbox

CAMERA_LORA = "ltx-2-19b-lora-camera-control-dolly-in.safetensors"


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    with sandbox(tmp_path_factory.mktemp("modes"), "--speed", "0") as running:
        folder = running.input_dir
        write_video(folder / "source.mp4", 49, sound=True)
        write_video(folder / "silent.mp4", 25, sound=False)
        rows, columns = np.indices((H, W))
        for name, level in (("one", 0), ("two", 128), ("three", 255)):
            pixels = np.stack([columns, rows * 2, np.full_like(rows, level)], axis=-1)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}.png")
        yield running


def clip(probe: Probe, graph: Graph) -> Path:
    entry = probe.run(graph)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    return probe.file(entry)


def source_frames(probe: Probe) -> np.ndarray:
    return frames_of(probe.input_dir / "source.mp4")


def pixels_of(probe: Probe, name: str) -> np.ndarray:
    with Image.open(probe.input_dir / f"{name}.png") as image:
        return np.asarray(image, dtype=float)[SHOWN]


def test_a_clip_without_sound_has_no_sound_stream(probe: Probe) -> None:
    """A video latent alone goes through both passes, and CreateVideo takes no sound."""
    studio = Studio()
    told = studio.text()
    video = one_pass(studio, told, studio.empty(128, 64, 17))
    video = one_pass(studio, told, studio.upsample(video), sigmas=SECOND_SIGMAS)
    file = clip(probe, studio.save(studio.decode(video)))
    assert frames_of(file).shape[0] == 17
    with av.open(file) as container:
        assert not container.streams.audio


def test_a2v_plays_the_sound_given(probe: Probe) -> None:
    """Frozen through the pass: the clip has the samples of the file from the start asked for."""
    studio = Studio()
    loaded = studio.add("LoadAudio", audio="source.mp4")[0]
    trimmed = studio.trimmed(loaded, 0.5, 25 / 24)
    audio = studio.freeze(studio.encode_audio(trimmed))
    latent = studio.join(studio.empty(W, H, 25), audio)
    split = studio.split(studio.sample(latent, studio.guider(studio.text())))
    heard = samples_of(clip(probe, studio.save(studio.decode(split[0]), trimmed)))
    source = samples_of(probe.input_dir / "source.mp4")[:, 22_050:]
    assert abs(heard.shape[1] - 45_938) <= 1024
    assert likeness(heard, source) > 0.95


@pytest.mark.parametrize(("frozen", "expected"), [(True, True), (False, False)])
def test_a_frozen_sound_decodes_to_its_source(probe: Probe, frozen: bool, expected: bool) -> None:
    """At the vocoder's rate and without the ends that the encoder drops; a free one is new."""
    studio = Studio()
    encoded = studio.encode_audio(studio.footage("source.mp4")[1])
    audio = studio.freeze(encoded) if frozen else encoded
    latent = studio.join(studio.empty(W, H, 49), audio)
    split = studio.split(studio.sample(latent, studio.guider(studio.text())))
    graph = studio.save(studio.decode(split[0]), studio.decode_audio(split[1]))
    heard = samples_of(clip(probe, graph))
    source = samples_of(probe.input_dir / "source.mp4")
    # Half of what is beyond a multiple of 4096 samples is dropped at the start.
    start = source.shape[1] % 4096 // 2
    places = start + np.arange(heard.shape[1]) * (44_100 / 24_000)
    known = np.interp(places, np.arange(source.shape[1]), source[0])[None, :]
    assert (max(likeness(heard, np.roll(known, s, 1)) for s in range(-40, 40)) > 0.8) is expected


def test_sounds_are_joined_with_silence_in_stereo(probe: Probe) -> None:
    """EmptyAudio and AudioConcat, at the higher rate; what is longer than the picture is cut."""
    studio = Studio()
    silence = studio.add("EmptyAudio", duration=0.5, sample_rate=48_000, channels=1)[0]
    both = {"audio1": silence, "audio2": studio.footage("source.mp4")[1]}
    joined = studio.add("AudioConcat", **both, direction="after")[0]
    file = clip(probe, studio.save(studio.footage("silent.mp4")[0], joined))
    heard = samples_of(file)
    assert heard.shape == (2, pytest.approx(25 * 2000, abs=1024))
    assert np.abs(heard[:, :22_000]).max() < 0.01 < 0.2 < np.abs(heard[:, 26_000:]).max()


def test_footage_passes_through_unchanged(probe: Probe) -> None:
    """Cut, joined, scaled there and back: the file's own frames in their order, and its rate."""
    studio = Studio()
    source = studio.footage("source.mp4")
    tail, head = studio.frames(source[0], -9, 9), studio.frames(source[0], 0, 12)
    joined = studio.add("ImageBatch", image1=tail, image2=head)[0]
    size = {"width": W * 2, "height": H * 2, "crop": "center"}
    scaled = studio.add("ImageScale", image=joined, upscale_method="bicubic", **size)[0]
    back = {"upscale_method": "area", "scale_by": 0.5}
    scaled = studio.add("ImageScaleBy", image=scaled, **back)[0]
    file = clip(probe, studio.save(scaled, fps=source[2]))
    expected = source_frames(probe)
    assert apart(frames_of(file), np.concatenate([expected[40:], expected[:12]])) < SAME
    with av.open(file) as container:
        assert container.streams.video[0].average_rate == Fraction(24)


def test_keyframes_are_the_pictures_given(probe: Probe) -> None:
    """At frames 0, 12 and the last, in two passes; far from them the clip is drawn."""
    studio = Studio()
    told = studio.text()
    guides, video = keyframed(studio, told, studio.empty(128, 64, 33))
    video = studio.crop(guides, one_pass(studio, guides, video))
    guides, video = keyframed(studio, told, studio.upsample(video))
    video = studio.crop(guides, one_pass(studio, guides, video, sigmas=SECOND_SIGMAS))
    frames = frames_of(clip(probe, studio.save(studio.decode(video))))
    assert len(frames) == 33
    for index, name in ((0, "one"), (12, "two"), (32, "three")):
        assert apart(frames[index], pixels_of(probe, name)) < SAME
    assert min(apart(frames[22], pixels_of(probe, name)) for name in ("two", "three")) > 15
    assert apart(frames[14], pixels_of(probe, "two")) < apart(frames[17], pixels_of(probe, "two"))


def test_a_control_is_followed_but_not_shown(probe: Probe) -> None:
    """The clip's light follows the control's, frame by frame, in other colours."""
    studio = Studio()
    control = studio.frames(studio.footage("source.mp4")[0], 0, 25)
    frames = frames_of(clip(probe, studio.save(controlled(studio, control))))
    source = source_frames(probe)
    for index in (0, 24):
        own, other = (source[i].mean(axis=-1).ravel() for i in (index, 24 - index))
        light = frames[index].mean(axis=-1).ravel()
        assert np.corrcoef(light, own)[0, 1] > np.corrcoef(light, other)[0, 1] + 0.05
        assert apart(frames[index], source[index]) > 15


def test_a_restyled_clip_shows_its_source_through_waves(probe: Probe) -> None:
    """Encoded and sampled from less than full noise; with no steps it stays the source."""
    shown = []
    for sigmas in ("0.725, 0.421875, 0", "0.0"):
        studio = Studio()
        video = studio.encode(studio.frames(studio.footage("source.mp4")[0], 0, 17))
        video = one_pass(studio, studio.text(), video, sigmas=sigmas)
        shown.append(frames_of(clip(probe, studio.save(studio.decode(video)))))
    source = source_frames(probe)[:17]
    assert apart(shown[1], source) < SAME
    assert SAME * 2 < apart(shown[0], source) < 40


@pytest.mark.parametrize(
    ("start_s", "end_s", "freed"),
    [
        (0.5, 1.4, range(17, 33)),
        (1.0, 2.0, range(25, 41)),
        (0.7, 0.9, range(0)),
        (1.5, 1.6, range(0)),
        (1.0, 49 / 24, range(25, 49)),
        (0.0, 0.4, range(9)),
    ],
)
def test_a_retake_frees_whole_latents_only(
    probe: Probe, start_s: float, end_s: float, freed: range
) -> None:
    """The window is rounded inwards, down to nothing; outside of it the frames are the source's."""
    studio = Studio()
    video, _ = retaken(studio, start_s, end_s)
    frames = frames_of(clip(probe, studio.save(studio.decode(video))))
    new = [apart(a, b) > SAME for a, b in zip(frames, source_frames(probe), strict=True)]
    assert [index for index, changed in enumerate(new) if changed] == list(freed)


def test_a_retake_of_the_sound_leaves_the_picture(probe: Probe) -> None:
    """New notes in the window, the source's sound before it, and the source's frames."""
    studio = Studio()
    video, audio = retaken(studio, 1.0, 1.6, mask_video=False)
    file = clip(probe, studio.save(studio.decode(video), studio.decode_audio(audio)))
    assert apart(frames_of(file), source_frames(probe)) < SAME
    heard = samples_of(file)
    chord_hz, before, inside = 2765 / 2 / np.pi, heard[0, 2400:21_600], heard[0, 26_400:36_000]

    def loudest_hz(samples: np.ndarray) -> float:
        return float(np.abs(np.fft.rfft(samples)).argmax()) * 24_000 / len(samples)

    assert abs(loudest_hz(before) - chord_hz) < 3 < abs(loudest_hz(inside) - chord_hz)


def test_an_extension_goes_on_from_the_source(probe: Probe) -> None:
    """The context stays, the first new frame is close to it, and the last is not."""
    studio = Studio()
    decoded = studio.decode(extended(studio, 17, 24))
    source = studio.footage("source.mp4")[0]
    new = studio.frames(decoded, 17, 24)
    joined = studio.add("ImageBatch", image1=source, image2=new)[0]
    frames = frames_of(clip(probe, studio.save(joined)))
    context = frames_of(clip(probe, studio.save(decoded)))[:17]
    assert apart(frames[:49], source_frames(probe)) < SAME
    assert apart(context, source_frames(probe)[32:]) < SAME
    assert len(frames) == 73
    assert apart(frames[49], frames[48]) < 10 < 15 < apart(frames[72], frames[48])


def test_a_context_of_sixteen_frames_keeps_nine(probe: Probe) -> None:
    """What is beyond 8k+1 is dropped, so the next frame is the drawing's own."""
    studio = Studio()
    file = clip(probe, studio.save(studio.decode(extended(studio, 16, 9))))
    frames, source = frames_of(file), source_frames(probe)[33:]
    assert apart(frames[:9], source[:9]) < SAME
    assert apart(frames[15], source[15]) > SAME


def test_frames_before_the_source_lead_up_to_it(probe: Probe) -> None:
    """A guide of 16 frames at frame 24 is placed at 17, and decodes as the source there."""
    studio = Studio()
    told = studio.text()
    start = studio.frames(studio.footage("source.mp4")[0], 0, 16)
    guide = studio.guide(told, studio.empty(W, H, 41), start, 24)
    video = studio.crop(guide, one_pass(studio, guide, guide[2]))
    frames = frames_of(clip(probe, studio.save(studio.decode(video))))
    assert len(frames) == 41
    assert apart(frames[17:33], source_frames(probe)[:16]) < SAME
    assert apart(frames[4], source_frames(probe)[0]) > 15


def test_twice_as_many_frames_show_the_same(probe: Probe) -> None:
    """25 frames become 49 at twice the rate, before and after a refining pass."""
    studio = Studio()
    video = studio.encode(studio.frames(studio.footage("source.mp4")[0], 0, 25))
    video = studio.upsample(video, TEMPORAL)
    raw = frames_of(clip(probe, studio.save(studio.decode(video), fps=48.0)))
    assert len(raw) == 49
    assert apart(raw[::2], source_frames(probe)[:25]) < SAME
    refined = one_pass(studio, studio.text(fps=48.0), video, sigmas="0.421875, 0.0")
    file = clip(probe, studio.save(studio.decode(refined), fps=48.0))
    assert SAME < apart(frames_of(file), raw) < 20
    with av.open(file) as container:
        assert container.streams.video[0].average_rate == 48


def test_a_detailed_clip_stays_close_to_its_source(probe: Probe) -> None:
    """LTXVLoopingSampler takes its steps once for each tile, and keeps what guides it."""
    studio = Studio()
    video = studio.encode(studio.footage("source.mp4")[0])
    tiles = {"temporal_tile_size": 24, "temporal_overlap": 16}
    strengths = dict.fromkeys(
        ("guiding_strength", "temporal_overlap_cond_strength", "cond_image_strength"), 1.0
    )
    space = {"horizontal_tiles": 1, "vertical_tiles": 1, "spatial_overlap": 1}
    told = studio.sampling(studio.guider(studio.text()), SECOND_SIGMAS, 42)
    sampled = studio.add(
        "LTXVLoopingSampler",
        **{"model": studio.model, "vae": studio.vae, **told, "latents": video},
        **{**tiles, **strengths, **space, "optional_guiding_latents": video},
    )
    tiled = {"spatial_tiles": 2, "spatial_overlap": 1, "temporal_tile_length": 16}
    switches = {"last_frame_fix": False, "working_device": "auto", "working_dtype": "auto"}
    decoded = studio.add(
        "LTXVSpatioTemporalTiledVAEDecode",
        **{"vae": studio.vae, "latents": sampled[0], "temporal_overlap": 4, **tiled, **switches},
    )
    messages = probe.follow(studio.save(decoded[0]))
    steps = [m["data"] for m in messages if m["type"] == "progress"]
    # Seven latents in tiles of three, each one further on.
    assert [step["value"] for step in steps] == [1, 2, 3] * 5
    file = max(probe.output_dir.glob("ltx2/*.mp4"), key=lambda file: file.stat().st_mtime_ns)
    assert SAME < apart(frames_of(file), source_frames(probe)) < 25


def with_lora(strength: float) -> Graph:
    studio = Studio()
    lora = {"lora_name": CAMERA_LORA, "strength_model": strength}
    model = studio.add("LoraLoaderModelOnly", model=studio.model, **lora)[0]
    video = studio.sample(studio.empty(W, H, 9), studio.guider(studio.text(), model))
    return studio.save(studio.decode(video))


def test_a_lora_of_strength_0_changes_nothing(probe: Probe) -> None:
    """The same frames as without; strength 1 gives others."""
    studio = Studio()
    plain = one_pass(studio, studio.text(), studio.empty(W, H, 9))
    without = frames_of(clip(probe, studio.save(studio.decode(plain))))
    assert apart(frames_of(clip(probe, with_lora(0.0))), without) == 0
    assert apart(frames_of(clip(probe, with_lora(1.0))), without) > 10


def test_long_clips_are_sampled_in_windows(probe: Probe) -> None:
    """LTXVContextWindows passes the model on, and another clip comes of it."""
    studio = Studio()
    numbers = {"context_length": 49, "context_overlap": 16, "context_stride": 1}
    ways = {"context_schedule": "standard_uniform", "fuse_method": "pyramid", "freenoise": True}
    off = dict.fromkeys(("closed_loop", "retain_first_frame", "split_conds_to_windows"), False)
    model = studio.add("LTXVContextWindows", model=studio.model, **numbers, **ways, **off)[0]
    video = studio.sample(studio.empty(W, H, 97), studio.guider(studio.text(), model))
    assert len(frames_of(clip(probe, studio.save(studio.decode(video))))) == 97


def test_multimodal_guidance_takes_as_many_steps(probe: Probe) -> None:
    """One step for each sigma but the last, whatever it computes for it."""
    studio = Studio()
    latent = studio.join(studio.empty(W, H, 9), studio.empty_audio(9))
    split = studio.split(
        studio.sample(latent, studio.multimodal_guider(studio.text()), FIRST_SIGMAS)
    )
    messages = probe.follow(studio.save(studio.decode(split[0])))
    steps = [m["data"]["value"] for m in messages if m["type"] == "progress"]
    assert steps == list(range(1, 9))
