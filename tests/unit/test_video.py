"""Clips that callers send: measured, brought to one size and rate, and written as one form."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.video.reformatter import Colorspace
from PIL import Image
from tests.unit.test_audio import audio_file, is_opened, tone

from ltx_worker.errors import Cancelled, InputRejected
from ltx_worker.geometry import Size
from ltx_worker.media.video import Clip, SourceFacts, read_clip_facts, write_clip
from ltx_worker.stop import StopSignal

Pixels = npt.NDArray[np.uint8]

KINDS = {
    "mp4": ("mp4", "libx264"),
    "mov": ("mov", "libx264"),
    "mkv": ("matroska", "libx264"),
    "webm": ("webm", "libvpx-vp9"),
    "avi": ("avi", "mpeg4"),
}
SIZE = Size(128, 64)
RED, GREEN, BLUE = (200, 30, 30), (30, 160, 30), (30, 30, 200)


def grey(level: int, size: Size = SIZE) -> Pixels:
    return np.full((size.height, size.width, 3), level, np.uint8)


def halves(left: tuple[int, ...], right: tuple[int, ...], size: Size = SIZE) -> Pixels:
    picture = np.empty((size.height, size.width, 3), np.uint8)
    picture[:, : size.width // 2], picture[:, size.width // 2 :] = left, right
    return picture


def video_file(
    pictures: Iterable[Pixels],
    rate: Fraction | int = 24,
    kind: str = "mp4",
    *,
    times_ms: Iterable[int] | None = None,
    pix_fmt: str = "yuv420p",
    codec: str | None = None,
    rotation: int = 0,
    pixel_ratio: Fraction | None = None,
    sound_s: float = 0,
    matrix: Colorspace | None = None,
) -> bytes:
    """A clip of RGB pictures, at a rate or at times of their own."""
    container_format, usual_codec = KINDS[kind]
    buffer = io.BytesIO()
    pictures = list(pictures)
    with av.open(buffer, "w", format=container_format) as output:
        stream = output.add_stream(codec or usual_codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2] if pictures else (64, 128)
        stream.pix_fmt, stream.bit_rate = pix_fmt, 2_000_000
        stream.options = {"crf": "12", "preset": "ultrafast", "cpu-used": "8"}
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if pixel_ratio:
            stream.codec_context.sample_aspect_ratio = pixel_ratio
        if matrix:
            stream.colorspace = matrix
        if rotation:
            stream.set_display_rotation(rotation)
        track = output.add_stream("aac", rate=48_000, layout="stereo") if sound_s else None
        times = list(times_ms) if times_ms is not None else None
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if matrix:
                frame = frame.reformat(format=pix_fmt, dst_colorspace=matrix)
            frame.pts = times[index] if times else index
            frame.time_base = Fraction(1, 1000) if times else 1 / Fraction(rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if track:
            samples = tone(sound_s, 48_000)
            block = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
            block.sample_rate, block.pts, block.time_base = 48_000, 0, Fraction(1, 48_000)
            output.mux(track.encode(block))
            output.mux(track.encode(None))
    return buffer.getvalue()


def ramp(count: int, size: Size = SIZE) -> list[Pixels]:
    """Pictures that get lighter, so that each is known by its level."""
    return [grey(20 + 200 * index // max(1, count - 1), size) for index in range(count)]


def frames_of(path: Path) -> list[Pixels]:
    with av.open(path) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def levels_of(path: Path) -> list[int]:
    return [int(np.median(picture)) for picture in frames_of(path)]


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
    return write_clip(data, "video", path, size=size, fps=fps, max_frames=max_frames, edges=edges)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "video.mp4"


@pytest.mark.parametrize("kind", KINDS)
def test_every_container_is_read(kind: str, out: Path) -> None:
    """A second of 24 frames comes out of each container, frame by frame."""
    data = video_file(ramp(24), kind=kind)
    assert read_clip_facts(data, "video") == SourceFacts(SIZE, 24, 1, has_sound=False)
    clip = written(data, out)
    assert (clip.num_frames, clip.duration_s, clip.fps, clip.sound) == (24, 1, 24, None)
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
    assert read_clip_facts(data, "video").fps == 23.976
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
    """A long clip is cut at its end, and its sound with it."""
    clip = written(video_file(ramp(48), sound_s=2), out, max_frames=9)
    assert (clip.num_frames, len(frames_of(out))) == (9, 9)
    assert clip.sound is not None
    assert clip.sound.duration_s == pytest.approx(9 / 24, abs=0.001)


def test_a_single_frame_is_a_clip(out: Path) -> None:
    """One picture lasts one frame."""
    assert written(video_file([grey(90)]), out).num_frames == 1


def test_sound_comes_with_the_clip(out: Path) -> None:
    """The tone of the source is handed over, no longer than the picture."""
    data = video_file(ramp(24), sound_s=1.5)
    assert read_clip_facts(data, "video").has_sound
    clip = written(data, out)
    assert clip.sound is not None
    assert clip.sound.duration_s == pytest.approx(1, abs=0.001)
    assert (
        np.corrcoef(clip.sound.samples[0, 4800:-4800], tone(1, 48_000)[0, 4800:-4800])[0, 1] > 0.99
    )


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
    assert read_clip_facts(data, "video").size == size
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
    assert read_clip_facts(data, "video").size == SIZE
    written(data, out, size=Size(64, 64))
    picture = frames_of(out)[0]
    assert colours_near(picture[32, 8], RED)
    assert colours_near(picture[32, -8], GREEN)


@pytest.mark.parametrize("size", [Size(101, 57), Size(3, 2), Size(2, 40), Size(600, 2)])
def test_odd_and_tiny_sizes_are_scaled(size: Size, out: Path) -> None:
    """Whatever its size and shape, a clip covers the one asked for."""
    data = video_file([grey(120, size)] * 2, pix_fmt="yuv444p")
    assert read_clip_facts(data, "video").size == size
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


def joined(*files: bytes) -> bytes:
    """The packets of several files behind one another, in the first one's container."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as output, av.open(io.BytesIO(files[0])) as head:
        stream = output.add_stream_from_template(head.streams.video[0])
        index = 0
        for data in files:
            with av.open(io.BytesIO(data)) as source:
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.stream = stream
                        packet.time_base = Fraction(1, 24)
                        packet.pts = packet.dts = index
                        packet.duration = 1
                        index += 1
                        output.mux(packet)
    return buffer.getvalue()


def test_half_a_file_gives_the_half_that_is_there(out: Path) -> None:
    """An upload that broke off is used as far as it can be decoded."""
    noise = np.random.default_rng(0)
    pictures = [noise.integers(0, 255, (64, 128, 3), np.uint8) for _ in range(24)]
    data = video_file(pictures, kind="mkv")
    assert 6 <= written(data[: len(data) // 2], out).num_frames <= 18


def test_a_file_without_its_index_is_refused(out: Path) -> None:
    """Half an mp4 has no index, and nothing can be decoded."""
    data = video_file(ramp(24))
    with pytest.raises(InputRejected, match="video cannot be read"):
        written(data[: len(data) // 2], out)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    return buffer.getvalue()


def gif() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("L", (64, 64), level) for level in (0, 255)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


@pytest.mark.parametrize("data", [b"", b"not a clip" * 100, png(), gif(), bytes(5000)])
def test_what_is_no_video_is_refused(data: bytes) -> None:
    """Pictures, animations and text are not read as video, whatever FFmpeg could make of them."""
    with pytest.raises(InputRejected, match="video cannot be read"):
        read_clip_facts(data, "video")


def song_with_cover() -> bytes:
    """An mp3 whose ID3 tag holds a picture, which FFmpeg shows as a video stream."""
    picture = b"\0image/png\0\3\0" + png()
    frame = b"APIC" + len(picture).to_bytes(4, "big") + b"\0\0" + picture
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + frame + audio_file("mp3")


@pytest.mark.parametrize("data", [audio_file("wav"), audio_file("m4a"), song_with_cover()])
def test_a_sound_is_no_video(data: bytes) -> None:
    """A file with sound alone is refused by name, its cover picture notwithstanding."""
    with pytest.raises(InputRejected, match="video has no video"):
        read_clip_facts(data, "video")


@pytest.mark.parametrize("kind", ["mp4", "mkv", "webm"])
def test_a_video_without_frames_is_refused(kind: str) -> None:
    """A stream that is announced and never comes is no clip."""
    with pytest.raises(InputRejected):
        read_clip_facts(video_file([], kind=kind), "video")


def test_a_video_whose_frames_cannot_be_decoded_is_refused() -> None:
    """Noise where the frames should be is no clip."""
    data = bytearray(video_file([halves(RED, GREEN)] * 24, kind="avi"))
    start = data.find(b"movi") + 12
    end = data.find(b"idx1")
    data[start:end] = b"\xff" * (end - start)
    with pytest.raises(InputRejected):
        read_clip_facts(bytes(data), "video")


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    """The size is read from the header, and said in the message."""
    data = video_file([grey(0, Size(4096, 2560))], codec="mpeg4")
    with pytest.raises(InputRejected, match=r"video is 4096x2560; at most 10\.0 megapixels"):
        read_clip_facts(data, "video")


def test_a_clip_of_more_than_ten_minutes_is_refused() -> None:
    """The length is measured from the packets, and said in the message."""
    data = video_file(ramp(2), kind="mkv", times_ms=[0, 601_000])
    with pytest.raises(InputRejected, match=r"video lasts .* s; at most 600 s are possible"):
        read_clip_facts(data, "video")


def test_a_job_that_is_cancelled_stops_reading(out: Path) -> None:
    """The stop signal is asked at every frame."""
    stop = StopSignal(60)
    stop.cancel()
    with pytest.raises(Cancelled):
        write_clip(video_file(ramp(24)), "video", out, size=SIZE, fps=24, max_frames=9, stop=stop)


@pytest.mark.parametrize(
    ("playlist", "demuxer", "options"),
    [
        ("ffconcat version 1.0\nfile {path}\n", "concat", {"safe": "0"}),
        (
            "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n",
            "hls",
            {"allowed_extensions": "ALL", "extension_picky": "0"},
        ),
    ],
)
def test_a_playlist_is_refused_and_its_file_not_opened(
    playlist: str, demuxer: str, options: dict[str, str], out: Path, tmp_path: Path
) -> None:
    """The same bytes do open the local file where FFmpeg is not kept to the list."""
    path = tmp_path / "private.mp4"
    path.write_bytes(video_file(ramp(3)))
    data = playlist.format(path=path).encode()

    def unguarded() -> None:
        with av.open(io.BytesIO(data), "r", format=demuxer, container_options=options):
            pass

    def guarded(read: Callable[[], object]) -> Callable[[], None]:
        def act() -> None:
            with pytest.raises(InputRejected, match="video cannot be read"):
                read()

        return act

    assert is_opened(path, unguarded)
    assert not is_opened(path, guarded(lambda: read_clip_facts(data, "video")))
    assert not is_opened(path, guarded(lambda: written(data, out)))
