"""Sounds and clips that are not what they seem, each named for what it does."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
from tests.hostile.answers import CANARY
from tests.unit.media_files import (
    Pixels,
    audio_file,
    gif,
    grey,
    plain_wav,
    png,
    ramp,
    song_with_cover,
    video_file,
)

from ltx_worker.geometry import Size

Build = Callable[[], bytes]
_BIG = 20_000_000


def _wav(
    rate: int = 48_000, channels: int = 2, size: int | None = None, body: bytes = bytes(40_000)
) -> bytes:
    """A WAV with a header of one's own."""
    form = struct.pack(
        "<HHIIHH", 1, channels, rate, rate * channels * 2 % 2**32, channels * 2 % 2**16, 16
    )
    length = len(body) if size is None else size
    whole = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", length) + body
    return b"RIFF" + struct.pack("<I", min(2**32 - 1, length + 36)) + whole


def _patched(data: bytes, box: bytes, offset: int, *values: int) -> bytes:
    """An mp4 with 32-bit values written `offset` bytes after the name of its first such box."""
    changed = bytearray(data)
    start = data.index(box) + offset
    changed[start : start + 4 * len(values)] = struct.pack(f">{len(values)}I", *values)
    return bytes(changed)


def _many_samples() -> bytes:
    """A short m4a whose index says that it holds millions of samples of one byte."""
    data = _patched(audio_file("m4a"), b"stsz", 8, 1, _BIG)
    return _patched(_patched(data, b"stsc", 16, _BIG), b"stts", 12, _BIG)


def _many_edits(count: int) -> bytes:
    """A clip whose edit list plays its frames again and again."""
    data = video_file(ramp(200), sound_s=0)
    start = data.index(b"elst")
    size = struct.unpack(">I", data[start - 4 : start])[0]
    listed = b"elst" + bytes(4) + struct.pack(">I", count) + data[start + 12 : start + 24] * count
    grown = 4 + len(listed) - size
    for parent in (b"edts", b"trak", b"moov"):
        at = data.index(parent) - 4
        old = struct.unpack(">I", data[at : at + 4])[0]
        data = data[:at] + struct.pack(">I", old + grown) + data[at + 4 :]
    listed = struct.pack(">I", len(listed) + 4) + listed
    return data[: start - 4] + listed + data[start - 4 + size :]


def _many_fragments() -> bytes:
    """A fragmented m4a whose one fragment says that it has millions of samples."""
    buffer = io.BytesIO()
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    with av.open(buffer, "w", format="mp4", container_options=options) as output:
        stream = output.add_stream("aac", rate=48_000, layout="mono")
        block = av.AudioFrame.from_ndarray(
            np.zeros((1, 48_000), np.float32), format="fltp", layout="mono"
        )
        block.sample_rate, block.time_base = 48_000, Fraction(1, 48_000)
        output.mux(stream.encode(block))
        output.mux(stream.encode(None))
    data = buffer.getvalue()
    # Without flags, no sample has a row of its own.
    return _patched(data, b"trun", 4, 1, 100_000_000)


def _many_streams(kind: str, count: int) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as output:
        streams = [output.add_stream("flac", rate=16_000, layout="mono") for _ in range(count)]
        for stream in streams:
            silence = np.zeros((1, 8000), np.int16)
            block = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = 16_000, 0, Fraction(1, 16_000)
            output.mux(stream.encode(block))
            output.mux(stream.encode(None))
    return buffer.getvalue()


def _many_frames() -> bytes:
    """Frames beyond number in a clip of three seconds, each of a few bytes."""
    buffer = io.BytesIO()
    source = io.BytesIO(video_file([grey(9, Size(16, 16))] * 2, kind="avi"))
    with av.open(buffer, "w", format="matroska") as output, av.open(source) as container:
        stream = output.add_stream_from_template(container.streams.video[0])
        packet = next(packet for packet in container.demux(video=0) if packet.size)
        data = bytes(packet)
        for index in range(40_000):
            copy = av.Packet(data)
            copy.stream, copy.time_base = stream, Fraction(1, 12_000)
            copy.pts = copy.dts = index
            output.mux(copy)
    return buffer.getvalue()


def _clip_of(width: int, height: int) -> bytes:
    """A clip whose sample description says that it is so large."""
    data = video_file(ramp(9), codec="mpeg4")
    at = data.index(b"mp4v") + 28
    return data[:at] + struct.pack(">HH", width, height) + data[at + 4 :]


def _with_external_track() -> bytes:
    """A mov whose samples are said to be in a file of the worker's."""
    data = video_file(ramp(9), kind="mov")
    at = data.index(b"dref") + 12
    path = b"file:///etc/passwd\0"
    size = struct.unpack(">I", data[at : at + 4])[0]
    return (
        data[: at + 4] + b"url " + bytes(4) + path[: size - 12].ljust(size - 12) + data[at + size :]
    )


def _noise(size: Size, count: int) -> list[Pixels]:
    """Pictures of coarse noise, which are work for an encoder."""
    chance = np.random.default_rng(1)
    coarse = (size.height // 16, size.width // 16, 3)
    kinds = [chance.integers(0, 255, coarse, np.uint8).repeat(16, 0).repeat(16, 1) for _ in "abc"]
    return [kinds[index % 3] for index in range(count)]


def _raw_picture(codec: str) -> bytes:
    return video_file(
        ramp(3), kind="avi", codec=codec, pix_fmt="rgb24" if codec == "png" else "yuv420p"
    )


def _damaged(data: bytes, end: bytes = b"") -> bytes:
    """A file with every 97th byte turned over, up to its part called `end`."""
    changed = bytearray(data)
    for at in range(len(data) // 4, data.rindex(end), 97):
        changed[at] ^= 0xFF
    return bytes(changed)


_PLAYLISTS: dict[str, bytes] = {
    "m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttps://127.0.0.1/x\n#EXT-X-ENDLIST\n",
    "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "pls": b"[playlist]\nFile1=https://127.0.0.1/x\n",
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 4000 RTP/AVP 0\n",
    "mpd": b'<?xml version="1.0"?><MPD><BaseURL>https://127.0.0.1/</BaseURL></MPD>',
    "cue": b'FILE "/etc/passwd" WAVE\n  TRACK 01 AUDIO\n',
    "wpl": b'<?wpl version="1.0"?><smil><media src="https://127.0.0.1/"/></smil>',
}
_NEITHER: dict[str, Build] = {
    **{f"playlist-{name}": (lambda text=text: text) for name, text in _PLAYLISTS.items()},
    "html": lambda: b"<!doctype html><video src=x>",
    "html-and-mp4": lambda: b"<html><!--" + video_file(ramp(9)) + b"-->",
    "png": png,
    "gif": gif,
    "zeros": lambda: bytes(200_000),
    "mp4-head": lambda: video_file(ramp(9))[:200],
    "webm-head": lambda: video_file(ramp(9), kind="webm")[:60],
    "mp4-of-streams": lambda: _many_streams("mp4", 80),
}

SOUND_REFUSED: dict[str, Build] = {
    **_NEITHER,
    "wav-head": lambda: plain_wav(2, 1)[:30],
    "wav-empty": lambda: plain_wav(2, 0),
    "wav-short": lambda: plain_wav(2, 0.05),
    "mp3-head": lambda: audio_file("mp3")[:60],
    "flac-head": lambda: audio_file("flac")[:60],
    "ogg-head": lambda: audio_file("ogg")[:60],
    "m4a-half": lambda: audio_file("m4a")[:3000],
    "webm-head": lambda: audio_file("webm")[:100],
    "wav-1-hertz": lambda: _wav(1),
    "wav-2-gigahertz": lambda: _wav(2**31 - 1),
    "wav-0-hertz": lambda: _wav(0),
    "wav-no-channels": lambda: _wav(channels=0),
    "wav-65535-channels": lambda: _wav(channels=65_535),
    "wav-too-long": lambda: _wav(8000, 1, body=bytes(16_000 * 130)),
    "m4a-many-samples": _many_samples,
    "m4a-many-fragments": _many_fragments,
    "midi": lambda: b"MThd\0\0\0\6\0\0\0\1\0`MTrk\0\0\0\4\0\xff/\0",
    "amr": lambda: b"#!AMR\n" + bytes(5000),
    "silent-film": lambda: video_file(ramp(9)),
}
SOUND_NORMALISED: dict[str, Build] = {
    "wav-claims-4-gb": lambda: _wav(size=2**32 - 1),
    "wav-half": lambda: plain_wav(2, 1)[:100_000],
    "mp3-half": lambda: audio_file("mp3", 2)[:16_000],
    "flac-half": lambda: audio_file("flac", 2)[:60_000],
    "webm-half": lambda: audio_file("webm", 2)[:14_000],
    "mp3-damaged": lambda: _damaged(audio_file("mp3", 2)),
    "mp3-with-cover": song_with_cover,
    "mkv-of-streams": lambda: _many_streams("matroska", 40),
    "wav-and-page": lambda: plain_wav(1, 0.5) + f"<script>{CANARY}</script>".encode(),
}
CLIP_REFUSED: dict[str, Build] = {
    **_NEITHER,
    "mp4-half": lambda: video_file(ramp(24))[:1500],
    "mp4-no-frames": lambda: _patched(video_file(ramp(9)), b"stsz", 12, 0),
    "mkv-no-frames": lambda: video_file(ramp(9), kind="mkv").partition(b"\x1f\x43\xb6\x75")[0],
    "mp4-too-large": lambda: video_file([grey(0, Size(4096, 2560))], codec="mpeg4"),
    "mp4-many-edits": lambda: _many_edits(100_000),
    "mkv-many-frames": _many_frames,
    "mkv-too-long": lambda: video_file(ramp(2), kind="mkv", times_ms=[0, 10**9]),
    "avi-of-png": lambda: _raw_picture("png"),
    "avi-raw": lambda: _raw_picture("rawvideo"),
    "avi-ffv1": lambda: _raw_picture("ffv1"),
    "song-with-cover": song_with_cover,
    "sound": lambda: audio_file("m4a"),
}
CLIP_NORMALISED: dict[str, Build] = {
    "mp4-said-endless": lambda: _patched(video_file(ramp(24)), b"mvhd", 16, 2**31),
    "mkv-half": lambda: video_file([grey(n * 9) for n in range(24)], kind="mkv")[:-600],
    "mkv-uneven": lambda: video_file(
        ramp(9), kind="mkv", times_ms=[0, 1, 2, 3, 900, 901, 902, 903, 2000]
    ),
    "mp4-damaged": lambda: _damaged(video_file(ramp(48)), b"moov"),
    "mp4-said-60000": lambda: _clip_of(60_000, 60_000),
    "mp4-full-hd": lambda: video_file(_noise(Size(1920, 1088), 40)),
    "mp4-tiny": lambda: video_file([grey(90, Size(2, 2))] * 24),
    "mov-elsewhere": _with_external_track,
    "mp4-and-page": lambda: video_file(ramp(24)) + f"<html>{CANARY}".encode(),
}
