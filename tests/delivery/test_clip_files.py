"""A finished clip as a file: whole or not, free of words, and its pictures."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ltx_worker.delivery.probe import probe, without_private_tags
from ltx_worker.delivery.stills import last_frame, thumbnail
from ltx_worker.delivery.transcode import to_webm
from ltx_worker.errors import ComfyFailed

FRAMES = 30
SIZE = (256, 128)


def write_clip(
    path: Path, tags: dict[str, str] | None = None, size: tuple[int, int] = SIZE
) -> Path:
    """A clip of 30 frames, each brighter than the one before, with sound; its header first."""
    options = {"movflags": "faststart+use_metadata_tags"}
    with av.open(str(path), "w", options=options) as output:
        output.metadata.update(tags or {})
        video = output.add_stream("h264", rate=24, options={"g": "12"})
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        audio = output.add_stream("aac", rate=48000, layout="stereo")
        for number in range(FRAMES):
            pixels = np.full((size[1], size[0], 3), number * 8, np.uint8)
            output.mux(video.encode(av.VideoFrame.from_ndarray(pixels)))
        output.mux(video.encode(None))
        for block in range(FRAMES * 2000 // 1024):
            sound = av.AudioFrame.from_ndarray(
                np.zeros((2, 1024), np.float32), format="fltp", layout="stereo"
            )
            sound.sample_rate, sound.pts = 48000, block * 1024
            output.mux(audio.encode(sound))
        output.mux(audio.encode(None))
    return path


@pytest.fixture(params=["mp4", "webm"])
def clip(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A clip in each container."""
    path = write_clip(tmp_path / "clip.mp4")
    if request.param == "webm":
        to_webm(path, tmp_path / "clip.webm")
        path = tmp_path / "clip.webm"
    return path


def decoded(path: Path) -> list[np.ndarray]:
    """Every frame of a clip."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_a_whole_clip_passes(clip: Path) -> None:
    """With the frames that are in it."""
    assert probe(clip).num_frames == FRAMES


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.99])
def test_a_clip_that_was_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    """Its header is there and promises all frames; they are not."""
    path = write_clip(tmp_path / "clip.mp4")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ComfyFailed, match=r"incomplete|cannot be read|no picture"):
        probe(path)


@pytest.mark.parametrize("kept", [0, 5])
def test_a_first_frame_that_does_not_decode_is_refused(tmp_path: Path, kept: int) -> None:
    """Sizes and order are right, but the frame is zeros, or says what it is and then is zeros."""
    path = write_clip(tmp_path / "clip.mp4")
    with av.open(str(path)) as container:
        frame = next(packet for packet in container.demux(video=0))
        start, size = frame.pos, frame.size
    data = bytearray(path.read_bytes())
    data[start + kept : start + size] = bytes(size - kept)
    path.write_bytes(data)
    with pytest.raises(ComfyFailed):
        probe(path)


def test_a_webm_loses_its_words_too(tmp_path: Path) -> None:
    """Such containers write the names of tags in capitals."""
    to_webm(write_clip(tmp_path / "clip.mp4"), tmp_path / "clip.webm")
    path = tmp_path / "tagged.webm"
    with av.open(str(tmp_path / "clip.webm")) as clip, av.open(str(path), "w") as output:
        output.metadata["prompt"] = "canary"
        copy = output.add_stream_from_template(clip.streams.video[0])
        for packet in clip.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                output.mux(packet)
    assert probe(path).has_private_tags
    clean = without_private_tags(path, tmp_path / "clean.webm")
    assert not probe(clean).has_private_tags
    assert np.array_equal(decoded(path), decoded(clean))


def test_words_in_the_container_are_taken_out(tmp_path: Path) -> None:
    """Prompt and graph are gone; every frame and the sound are what they were."""
    tags = {"prompt": '{"text": "canary"}', "workflow": "canary", "comment": "canary"}
    path = write_clip(tmp_path / "clip.mp4", tags)
    clean = without_private_tags(path, tmp_path / "clean.mp4")
    assert b"canary" in path.read_bytes()
    assert b"canary" not in clean.read_bytes()
    assert np.array_equal(decoded(path), decoded(clean))
    before, after = probe(path), probe(clean)
    assert (before.has_private_tags, after.has_private_tags) == (True, False)
    assert (after.num_frames, after.fps, after.audio_duration_s) == (
        before.num_frames,
        before.fps,
        before.audio_duration_s,
    )


def test_a_usual_container_says_nothing_private(clip: Path) -> None:
    """What every container says is no reason to write the clip once more."""
    assert not probe(clip).has_private_tags


def test_the_last_frame_is_exact(clip: Path) -> None:
    """Pixel for pixel what a player ends with."""
    image = Image.open(io.BytesIO(last_frame(clip)))
    assert image.format == "PNG"
    assert np.array_equal(np.asarray(image), decoded(clip)[-1])


def test_the_thumbnail_is_from_one_third(clip: Path) -> None:
    """A picture of that time; a small clip is not made larger."""
    image = Image.open(io.BytesIO(thumbnail(clip)))
    assert (image.format, image.size) == ("JPEG", SIZE)
    brightness = float(np.asarray(image).mean())
    expected = [float(frame.mean()) for frame in decoded(clip)]
    nearest = int(np.abs(np.array(expected) - brightness).argmin())
    assert nearest in (FRAMES // 3, FRAMES // 3 + 1)


def test_a_thumbnail_has_512_pixels_on_its_longest_side(tmp_path: Path) -> None:
    """In the clip's own shape."""
    path = write_clip(tmp_path / "clip.mp4", size=(704, 1280))
    assert Image.open(io.BytesIO(thumbnail(path))).size == (282, 512)


@pytest.mark.parametrize("picture", [thumbnail, last_frame])
def test_a_file_that_is_no_clip_has_no_pictures(
    tmp_path: Path, picture: Callable[[Path], bytes]
) -> None:
    """It is named for what it is, by our own error."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"no clip")
    with pytest.raises(ComfyFailed):
        picture(path)
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
    with pytest.raises(ComfyFailed):
        picture(sound)
