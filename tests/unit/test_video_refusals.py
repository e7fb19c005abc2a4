"""Clips that callers send and that cannot be used: refused by name, and nothing else is opened."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from tests.unit.media_files import (
    GREEN,
    RED,
    SIZE,
    audio_file,
    gif,
    grey,
    halves,
    is_opened,
    png,
    ramp,
    song_with_cover,
    video_file,
)

from ltx_worker.errors import Cancelled, InputRejected
from ltx_worker.geometry import Size
from ltx_worker.media.video import read_clip_facts, write_clip
from ltx_worker.stop import StopSignal

STOP = StopSignal(3600)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "video.mp4"


def written(data: bytes, path: Path) -> int:
    """How many frames of a clip were written."""
    return write_clip(data, "video", path, size=SIZE, fps=24, max_frames=1000, stop=STOP).num_frames


def test_half_a_file_gives_the_half_that_is_there(out: Path) -> None:
    """An upload that broke off is used as far as it can be decoded."""
    noise = np.random.default_rng(0)
    pictures = [noise.integers(0, 255, (64, 128, 3), np.uint8) for _ in range(24)]
    data = video_file(pictures, kind="mkv")
    assert 6 <= written(data[: len(data) // 2], out) <= 18


def test_a_file_without_its_index_is_refused(out: Path) -> None:
    """Half an mp4 has no index, and nothing can be decoded."""
    data = video_file(ramp(24))
    with pytest.raises(InputRejected, match="video cannot be read"):
        written(data[: len(data) // 2], out)


@pytest.mark.parametrize("data", [b"", b"not a clip" * 100, png(), gif(), bytes(5000)])
def test_what_is_no_video_is_refused(data: bytes) -> None:
    """Pictures, animations and text are not read as video, whatever FFmpeg could make of them."""
    with pytest.raises(InputRejected, match="video cannot be read"):
        read_clip_facts(data, "video", STOP)


@pytest.mark.parametrize("data", [audio_file("wav"), audio_file("m4a"), song_with_cover()])
def test_a_sound_is_no_video(data: bytes) -> None:
    """A file with sound alone is refused by name, its cover picture notwithstanding."""
    with pytest.raises(InputRejected, match="video has no video"):
        read_clip_facts(data, "video", STOP)


@pytest.mark.parametrize("kind", ["mp4", "mkv", "webm"])
def test_a_video_without_frames_is_refused(kind: str) -> None:
    """A stream that is announced and never comes is no clip."""
    with pytest.raises(InputRejected):
        read_clip_facts(video_file([], kind=kind), "video", STOP)


def test_a_video_whose_frames_cannot_be_decoded_is_refused() -> None:
    """Noise where the frames should be is no clip."""
    data = bytearray(video_file([halves(RED, GREEN)] * 24, kind="avi"))
    start = data.find(b"movi") + 12
    end = data.find(b"idx1")
    data[start:end] = b"\xff" * (end - start)
    with pytest.raises(InputRejected):
        read_clip_facts(bytes(data), "video", STOP)


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    """The size is read from the header, and said in the message."""
    data = video_file([grey(0, Size(4096, 2560))], codec="mpeg4")
    with pytest.raises(InputRejected, match=r"video is 4096x2560; at most 10\.0 megapixels"):
        read_clip_facts(data, "video", STOP)


def test_a_clip_of_more_than_ten_minutes_is_refused() -> None:
    """The length is measured from the packets, and said in the message."""
    data = video_file(ramp(2), kind="mkv", times_ms=[0, 601_000])
    with pytest.raises(InputRejected, match=r"video lasts .* s; at most 600 s are possible"):
        read_clip_facts(data, "video", STOP)


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
    assert not is_opened(path, guarded(lambda: read_clip_facts(data, "video", STOP)))
    assert not is_opened(path, guarded(lambda: written(data, out)))
