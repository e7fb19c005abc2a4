"""A caller's sound or video file as FFmpeg sees it, under guard.

FFmpeg is given bytes and nothing else: it may open no path and no address, and it reads only
containers that hold their content themselves, so a playlist leads nowhere (invariant 6). A file is
read through once, undecoded and within a limit of memory, before anything of it is decoded: a few
kilobytes of an mp4's index can claim samples that take gigabytes.
"""

# PyAV's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import io
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.packet import Packet

from ltx_worker.errors import InputRejected
from ltx_worker.media.memory_limit import ample_memory, limited_memory
from ltx_worker.stop import StopSignal

# FFmpeg's names; "mov" is also mp4 and m4a, "matroska" also webm.
_FORMATS = "wav,mp3,flac,ogg,mov,matroska,avi"
_READABLE = "wav, mp3, flac, ogg, m4a, mp4, mov, webm, mkv or avi"
SOUND_CODECS = frozenset(
    {
        *("aac", "ac3", "alac", "eac3", "flac", "libopus", "mp3", "mp3float", "opus", "vorbis"),
        *("pcm_alaw", "pcm_mulaw", "pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le"),
        *("pcm_f64le", "pcm_s16be", "pcm_s24be", "pcm_s32be", "pcm_f32be"),
    }
)
PICTURE_CODECS = frozenset(
    {
        *("h264", "hevc", "av1", "libdav1d", "vp8", "vp9", "mpeg4", "mpeg2video"),
        *("mjpeg", "prores", "dnxhd"),
    }
)
_GUARD = {
    "format_whitelist": _FORMATS,
    "codec_whitelist": ",".join(sorted(SOUND_CODECS | PICTURE_CODECS)),
    # No protocol has this name: whatever a file refers to, nothing is opened.
    "protocol_whitelist": "none",
    "max_streams": "64",
}


@contextmanager
def opened(data: bytes, field: str) -> Generator[InputContainer]:
    """FFmpeg's view of `data`; its errors inside become `InputRejected` naming `field`."""
    try:
        with limited_memory():
            container = av.open(
                io.BytesIO(data), "r", container_options=_GUARD, metadata_errors="replace"
            )
        with container, ample_memory():
            yield container
    # PyAV raises the latter for what it does not know, such as a rate of 0.
    except (FFmpegError, ValueError, OverflowError, MemoryError) as error:
        raise InputRejected.of(field, f"cannot be read; send a whole {_READABLE} file") from error


@contextmanager
def surveyed(data: bytes, field: str) -> Generator[InputContainer]:
    """As `opened`, for reading packets only: that too is done within the limit of memory."""
    with limited_memory(), opened(data, field) as container:
        yield container


def sound_stream(container: InputContainer) -> AudioStream | None:
    """The stream that players would choose, if its codec is one of those read here."""
    stream = container.streams.best("audio")
    if not isinstance(stream, AudioStream) or not stream.codec_context:
        return None
    return stream if stream.codec_context.name in SOUND_CODECS else None


def decoded(packets: Iterable[Packet[Any]], stop: StopSignal) -> Iterator[Any]:
    """The frames in the packets of one stream; damaged packets are left out, as players do."""
    for packet in packets:
        stop.check()
        try:
            frames = packet.decode()
        except InvalidDataError:
            continue
        yield from frames
