"""The worker's encoder: what it writes, and how good that is."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from encoding_content import chord, content, planes_of
from ltx_worker_nodes.encoding import ClipEncoder
from ltx_worker_nodes.encoding_segments import Plan, plan_for
from ltx_worker_nodes.encoding_settings import (
    SegmentRules,
    default_quality,
    encoding_for,
    formats,
    qualities,
)
from tests.nodes.clips import (
    FRAMES,
    HEIGHT,
    IN_THREE,
    RATE,
    WIDTH,
    clip_encoder,
    luma_of,
    number_of,
    numbered,
    tone,
    write,
)

from ltx_worker.delivery.probe import probe

# ---- what is written --------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["mp4", "webm"])
@pytest.mark.parametrize("plan", [None, IN_THREE], ids=["whole", "in three"])
def test_every_frame_is_in_its_place(tmp_path: Path, container: str, plan: Plan | None) -> None:
    path = write(tmp_path / "clip", numbered(), container=container, plan=plan)
    assert [number_of(frame) for frame in luma_of(path)] == list(range(FRAMES))


@pytest.mark.parametrize("plan", [None, IN_THREE], ids=["whole", "in three"])
@pytest.mark.parametrize("container", ["mp4", "webm"])
def test_the_clip_is_what_was_announced(tmp_path: Path, container: str, plan: Plan | None) -> None:
    options = {"container": container, "plan": plan, "frame_rate": Fraction(30000, 1001)}
    path = write(tmp_path / "clip", numbered(), tone(2.002), **options)

    facts = probe(path)
    assert (facts.width, facts.height, facts.num_frames) == (WIDTH, HEIGHT, FRAMES)
    assert facts.audio_duration_s == pytest.approx(2.002, abs=0.03)
    assert facts.audio_sample_rate == RATE
    codecs = {"mp4": ("h264", "aac"), "webm": ("vp9", "opus")}
    assert (facts.video_codec, facts.audio_codec) == codecs[container]
    with av.open(str(path)) as clip:
        video = clip.streams.video[0]
        assert video.average_rate == Fraction(30000, 1001)
        frames = list(clip.decode(video))
        assert [float(frame.time) for frame in frames] == pytest.approx(
            [k * 1001 / 30000 for k in range(FRAMES)], abs=0.001
        )
        assert {(frame.colorspace, frame.color_range) for frame in frames} == {(1, 1)}
        context = video.codec_context
        assert (context.color_primaries, context.color_trc) == (1, 1)


def test_times_of_decoding_rise_and_never_pass_those_of_showing(tmp_path: Path) -> None:
    path = write(tmp_path / "clip", numbered(), plan=IN_THREE)
    with av.open(str(path)) as clip:
        packets = [packet for packet in clip.demux(video=0) if packet.size]
    assert all(a.dts < b.dts for a, b in pairwise(packets))
    assert all(packet.dts <= packet.pts for packet in packets)
    assert [k for k, packet in enumerate(packets) if packet.is_keyframe] == [0, 20, 40]


@pytest.mark.parametrize(
    ("asked", "written"), [(23.976023976, Fraction(24000, 1001)), (12.5, Fraction(25, 2))]
)
def test_a_decimal_frame_rate_becomes_the_fraction_it_means(
    tmp_path: Path, asked: float, written: Fraction
) -> None:
    path = write(tmp_path / "clip", numbered(), frame_rate=asked)
    with av.open(str(path)) as clip:
        assert clip.streams.video[0].average_rate == written


def test_playing_can_start_before_all_is_there(tmp_path: Path) -> None:
    data = write(tmp_path / "clip", numbered(), tone(2.5)).read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("container", ["mp4", "webm"])
def test_nothing_is_said_about_how_it_was_made(tmp_path: Path, container: str) -> None:
    path = write(tmp_path / "clip", numbered(), container=container, plan=IN_THREE)
    assert not probe(path).has_private_tags
    assert b"x264" not in path.read_bytes()
    assert b"crf" not in path.read_bytes()


def test_sound_is_cut_to_the_picture_and_kept_as_it_is(tmp_path: Path) -> None:
    sound = tone(9)
    path = write(tmp_path / "clip", numbered(), sound)
    with av.open(str(path)) as clip:
        blocks = [frame.to_ndarray() for frame in clip.decode(audio=0)]
    heard = np.concatenate(blocks, axis=1)[:, 4_000:100_000]
    assert probe(path).audio_duration_s == pytest.approx(FRAMES / 24, abs=0.03)
    likeness = np.corrcoef(heard[0], sound[0, 4_000:100_000])[0, 1]
    assert likeness > 0.99


@pytest.mark.parametrize(("channels", "rate"), [(1, 24_000), (2, 44_100), (6, 48_000)])
def test_channels_and_rate_of_the_sound_are_kept(tmp_path: Path, channels: int, rate: int) -> None:
    with clip_encoder(tmp_path / "clip", sound=(rate, channels)) as clip:
        clip.add_sound(np.zeros((channels, rate * 2), np.float32))
        clip.add(numbered())
        clip.finish()
    with av.open(str(clip.path)) as file:
        context = file.streams.audio[0].codec_context
        assert (context.channels, context.sample_rate) == (channels, rate)


def test_a_silent_clip_has_no_sound_track(tmp_path: Path) -> None:
    assert probe(write(tmp_path / "clip", numbered())).audio_codec is None


def test_one_frame_is_a_clip(tmp_path: Path) -> None:
    assert probe(write(tmp_path / "clip", numbered(1))).num_frames == 1


def test_a_clip_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "clip"
    path.write_text("earlier")
    assert probe(write(path, numbered())).num_frames == FRAMES


# ---- quality ----------------------------------------------------------------------------------


def test_a_higher_quality_is_larger_and_more_like_the_frames(tmp_path: Path) -> None:
    planes = np.stack([planes_of(frame) for frame in content("calm", 24, 128, 192)])
    for container in formats():
        sizes: list[int] = []
        errors: list[float] = []
        for quality in qualities():
            path = write(tmp_path / "clip", planes, container=container, quality=quality)
            sizes.append(path.stat().st_size)
            errors.append(float(np.abs(np.stack(luma_of(path)) - planes.astype(int)).mean()))
        assert sizes == sorted(sizes)
        assert errors == sorted(errors, reverse=True)


def test_the_default_is_not_below_comfyuis_own_save_node(tmp_path: Path) -> None:
    """No larger; and at the largest size below ComfyUI's, nearer to the frames in each measure."""
    from encoding import write_as_comfyui
    from encoding_likeness import likeness

    pictures, sound = content("natural", 61, 352, 640), chord(61)
    planes = np.stack([planes_of(picture) for picture in pictures])
    stock, ours = tmp_path / "stock", tmp_path / "ours"
    write_as_comfyui(stock, pictures, sound)

    def sized(quality_step: float) -> int:
        crf = float(encoding_for("mp4", default_quality()).video_options["crf"]) - quality_step
        encoding = encoding_for("mp4", default_quality(), {"crf": str(crf)})
        plan = Plan(((0, 61),), at_a_time=1, threads=2)
        with ClipEncoder(ours, 640, 352, 61, 24, encoding=encoding, plan=plan) as clip:
            clip.add(planes)
            return clip.finish().stat().st_size

    silent = stock.stat().st_size - sound_bytes(stock)
    assert sized(0) <= silent
    fits, exceeds = 0.0, 1.0
    assert sized(exceeds) > silent, "ComfyUI's clip is much larger: there is no such size"
    for _ in range(5):
        middle = (fits + exceeds) / 2
        fits, exceeds = (middle, exceeds) if sized(middle) <= silent else (fits, middle)
    sized(fits)
    before, after = likeness(stock, pictures), likeness(ours, pictures)
    assert [name for name, value in before.items() if after[name] < value] == []


def sound_bytes(path: Path) -> int:
    with av.open(str(path)) as clip:
        return sum(packet.size for packet in clip.demux(audio=0))


# ---- how the work is divided ------------------------------------------------------------------

RULES = SegmentRules(cores=8, threads_per_core=1, min_frames=24, max_frames=100)


@pytest.mark.parametrize(
    ("frames", "cores", "counts", "at_a_time", "threads"),
    [
        (121, 16, [60, 61], 2, 8),
        (121, 2, [60, 61], 1, 2),
        (20, 64, [20], 1, 8),
        (97, 32, [24, 24, 24, 25], 4, 8),
        (505, 16, [84, 84, 84, 84, 84, 85], 2, 8),
        (121, 1, [60, 61], 1, 1),
    ],
)
def test_segments_are_as_many_as_cores_and_rules_allow(
    frames: int, cores: int, counts: list[int], at_a_time: int, threads: int
) -> None:
    plan = plan_for(frames, cores, RULES)
    assert [count for _, count in plan.segments] == counts
    assert (plan.at_a_time, plan.threads) == (at_a_time, threads)
    ends = [first + count for first, count in plan.segments]
    assert [first for first, _ in plan.segments] == [0, *ends[:-1]]
    assert ends[-1] == frames


def test_every_format_has_every_quality() -> None:
    assert formats() == ("mp4", "webm")
    assert default_quality() in qualities()
    for container in formats():
        for quality in qualities():
            assert encoding_for(container, quality).video_options["crf"]
