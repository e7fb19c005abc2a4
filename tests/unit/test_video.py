"""Clips that callers send: measured, brought to one size and rate, and written as one form."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.video.reformatter import Colorspace
from tests.unit.media_files import (
    BLUE,
    CLIP_KINDS,
    GREEN,
    RED,
    SIZE,
    Pixels,
    frames_of,
    grey,
    halves,
    joined,
    levels_of,
    ramp,
    samples_of,
    tone,
    video_file,
)

from ltx_worker.geometry import Size
from ltx_worker.media.audio import write_clip_sound
from ltx_worker.media.video import Clip, SourceFacts, read_clip_facts, write_clip
from ltx_worker.stop import StopSignal

STOP = StopSignal(3600)


def colours_near(pixel: npt.NDArray[np.uint8], colour: tuple[int, ...]) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() < 16)


def written(
    data: bytes,
    path: Path,
    *,
    size: Size = SIZE,
    fps: float = 24,
    max_frames: int = 1000,
    edges: bool = False,
) -> Clip:
    return write_clip(
        data, "video", path, size=size, fps=fps, max_frames=max_frames, stop=STOP, edges=edges
    )


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "video.mp4"


@pytest.mark.parametrize("kind", CLIP_KINDS)
def test_every_container_is_read(kind: str, out: Path) -> None:
    """A second of 24 frames comes out of each container, frame by frame."""
    data = video_file(ramp(24), kind=kind)
    assert read_clip_facts(data, "video", STOP) == SourceFacts(SIZE, 24, 1, has_sound=False)
    clip = written(data, out)
    assert (clip.num_frames, clip.duration_s, clip.fps) == (24, 1, 24)
    assert levels_of(out) == pytest.approx([int(p[0, 0, 0]) for p in ramp(24)], abs=3)


def test_what_is_written_is_what_comfyui_reads(out: Path) -> None:
    """H.264 in yuv420p at a constant rate from time 0, without sound or the source's metadata."""
    written(video_file(ramp(30), 30, "mkv", sound_s=1), out)
    with av.open(out) as container:
        (stream,) = container.streams
        assert isinstance(stream, av.VideoStream)
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.average_rate, stream.frames) == (24, 24)
        assert [frame.time for frame in container.decode(stream)] == pytest.approx(
            [index / 24 for index in range(24)]
        )
        assert "encoder" not in {key.lower() for key in container.metadata}


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_film_at_23_976_becomes_24_without_a_hitch(kind: str, out: Path) -> None:
    """No frame is repeated or left out, though times in a file are rounded."""
    data = video_file(ramp(48), Fraction(24_000, 1001), kind)
    assert read_clip_facts(data, "video", STOP).fps == 23.976
    assert written(data, out).num_frames == 48
    assert len(set(levels_of(out))) == 48


def test_60_frames_a_second_become_24(out: Path) -> None:
    """The clip lasts as long as before, starts with the same frame, and shows two in five."""
    source = ramp(60)
    clip = written(video_file(source, 60), out)
    assert (clip.num_frames, clip.duration_s) == (24, 1)
    nearest = [int(source[min(59, round(index * 2.5))][0, 0, 0]) for index in range(24)]
    assert levels_of(out) == pytest.approx(nearest, abs=7)


def test_a_rate_that_is_not_whole_is_kept(out: Path) -> None:
    """A clip asked for at 23.976 frames a second says so in its file."""
    clip = written(video_file(ramp(24)), out, fps=23.976)
    assert clip.fps == pytest.approx(23.976)
    with av.open(out) as container:
        assert container.streams.video[0].average_rate == Fraction(2997, 125)


def test_a_variable_rate_becomes_constant(out: Path) -> None:
    """A picture that stands for half a second is repeated until the next is due."""
    source = [grey(level) for level in (40, 120, 200)]
    data = video_file(source, 24, "mkv", times_ms=[0, 500, 541])
    written(data, out)
    levels = levels_of(out)
    assert levels[:13] == pytest.approx([40] * 12 + [120], abs=3)
    assert set(np.rint(levels[13:])) <= {199, 200, 201}


def test_no_more_frames_are_written_than_asked_for(out: Path) -> None:
    """A long clip is cut at its end."""
    clip = written(video_file(ramp(48)), out, max_frames=9)
    assert (clip.num_frames, clip.duration_s, len(frames_of(out))) == (9, 9 / 24, 9)


def test_a_single_frame_is_a_clip(out: Path) -> None:
    """One picture lasts one frame."""
    assert written(video_file([grey(90)]), out).num_frames == 1


def test_sound_comes_with_the_clip(out: Path) -> None:
    """The tone of the source is written from where its picture begins, and as long."""
    data = video_file(ramp(24), sound_s=1.5)
    assert read_clip_facts(data, "video", STOP).has_sound
    clip, path = written(data, out), out.with_name("audio.wav")
    assert write_clip_sound(data, "video", path, clip.start_s, clip.duration_s, STOP)
    sound = samples_of(path)
    assert sound.shape == (2, 48_000)
    assert np.corrcoef(sound[0, 4800:-4800], tone(1, 48_000)[0, 4800:-4800])[0, 1] > 0.99


@pytest.mark.parametrize(
    ("rotation", "expected"),
    [(90, (GREEN, RED)), (-90, (RED, GREEN)), (180, (RED, GREEN))],
)
def test_a_rotated_clip_stands_upright(
    rotation: int, expected: tuple[tuple[int, ...], ...], out: Path
) -> None:
    """A phone's rotation is applied, to the facts as to the picture.

    The picture is red on the left; turned left by 90 degrees, red is at the bottom.
    """
    data = video_file([halves(RED, GREEN)] * 3, rotation=rotation)
    turned = rotation % 180 != 0
    size = Size(64, 128) if turned else SIZE
    assert read_clip_facts(data, "video", STOP).size == size
    written(data, out, size=size)
    picture = frames_of(out)[0]
    first, last = (
        (picture[16, 32], picture[-16, 32]) if turned else (picture[32, -16], picture[32, 16])
    )
    assert colours_near(first, expected[0])
    assert colours_near(last, expected[1])


def test_a_portrait_clip_fills_a_landscape_one(out: Path) -> None:
    """The middle is kept, top and bottom are cut, and nothing is stretched."""
    source = np.zeros((128, 64, 3), np.uint8)
    source[:40], source[40:88], source[88:] = RED, GREEN, BLUE
    # A square of 16 pixels in the middle becomes one of 32.
    source[56:72, 24:40] = 255
    written(video_file([source] * 3), out, size=Size(128, 64))
    picture = frames_of(out)[0]
    white = picture.min(axis=2) > 180
    assert colours_near(picture[4, 4], GREEN)
    assert colours_near(picture[-4, -4], GREEN)
    assert np.flatnonzero(white[32]).size == pytest.approx(32, abs=3)
    assert np.flatnonzero(white[:, 64]).size == pytest.approx(32, abs=3)
    assert abs(np.flatnonzero(white[32]).mean() - 63.5) < 1
    assert abs(np.flatnonzero(white[:, 64]).mean() - 31.5) < 1


def test_pixels_that_are_not_square_are_widened(out: Path) -> None:
    """Half an anamorphic picture is wide: a square clip cut from it holds its middle."""
    source = halves(RED, GREEN, Size(64, 64))
    source[:, :16] = source[:, -16:] = BLUE
    data = video_file([source] * 3, pixel_ratio=Fraction(2))
    assert read_clip_facts(data, "video", STOP).size == SIZE
    written(data, out, size=Size(64, 64))
    picture = frames_of(out)[0]
    assert colours_near(picture[32, 8], RED)
    assert colours_near(picture[32, -8], GREEN)


@pytest.mark.parametrize("size", [Size(101, 57), Size(3, 2), Size(2, 40), Size(600, 2)])
def test_odd_and_tiny_sizes_are_scaled(size: Size, out: Path) -> None:
    """Whatever its size and shape, a clip covers the one asked for."""
    data = video_file([grey(120, size)] * 2, pix_fmt="yuv444p")
    assert read_clip_facts(data, "video", STOP).size == size
    written(data, out)
    assert [p.shape for p in frames_of(out)] == [(64, 128, 3)] * 2
    assert levels_of(out) == pytest.approx([120, 120], abs=3)


@pytest.mark.parametrize(
    ("pix_fmt", "codec", "kind"),
    [
        ("yuv422p", None, "mp4"),
        ("yuv422p10le", None, "mp4"),
        ("yuv420p10le", None, "mkv"),
        ("yuv444p", None, "mp4"),
        ("yuvj420p", None, "mp4"),
        ("yuv422p10le", "prores_ks", "mov"),
        ("gbrp", "libvpx-vp9", "webm"),
    ],
)
def test_every_kind_of_pixel_keeps_its_colour(
    pix_fmt: str, codec: str | None, kind: str, out: Path
) -> None:
    """Ten bits, 4:2:2, full range and RGB end as the same red and green."""
    data = video_file([halves(RED, GREEN)] * 3, pix_fmt=pix_fmt, codec=codec, kind=kind)
    written(data, out)
    picture = frames_of(out)[0]
    assert colours_near(picture[32, 16], RED)
    assert colours_near(picture[32, -16], GREEN)


@pytest.mark.parametrize("matrix", [Colorspace.ITU709, Colorspace.ITU601])
def test_the_colours_of_a_tagged_clip_are_kept(matrix: Colorspace, out: Path) -> None:
    """Both matrices end as the one that readers take for granted, and the file says which."""
    written(video_file([halves(RED, GREEN)] * 3, matrix=matrix), out)
    for picture in (frames_of(out)[0], untagged(out)):
        assert colours_near(picture[32, 16], RED)
        assert colours_near(picture[32, -16], GREEN)


def untagged(path: Path) -> Pixels:
    """The first frame as a reader sees it that ignores the file's colour tag."""
    with av.open(path) as container:
        frame = next(container.decode(video=0))
        assert frame.colorspace == Colorspace.ITU601
        frame.colorspace = 2
        return frame.to_ndarray(format="rgb24")


def test_edges_are_white_on_black(out: Path) -> None:
    """A square leaves its outline and nothing else."""
    source = grey(30)
    source[16:48, 32:96] = 220
    clip = written(video_file([source] * 3), out, edges=True)
    picture = frames_of(out)[1][:, :, 0]
    assert clip.num_frames == 3
    assert picture[32, 30:35].max() > 230
    assert picture[14:19, 64].max() > 230
    assert picture[22:42, 38:90].max() < 20
    assert picture[:10].max() < 20


def test_a_clip_that_changes_its_size_midway_is_read(out: Path) -> None:
    """Each frame is fitted by its own size, as when a screen that is shared is turned."""
    first = video_file([grey(60)] * 4, kind="webm", codec="libvpx")
    second = video_file([grey(180, Size(64, 128))] * 4, kind="webm", codec="libvpx")
    written(joined(first, second), out)
    assert levels_of(out) == pytest.approx([60] * 4 + [180] * 4, abs=4)
