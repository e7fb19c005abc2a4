"""What a finished clip is, read from the file and not from the request (invariant 1).

A header says what a file should have; so every packet is read and counted, which costs no more
than reading the file, and the first frame is decoded, which takes a few milliseconds. A file that
was cut off does not pass. The clips that ComfyUI saves have one key frame, so to decode their last
frame means to decode all: 0.2 s for 121 frames of 1280x704, and it would find only damage that
keeps a file's length and order.
"""

# PyAV's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream

from ltx_worker.errors import ComfyFailed
from ltx_worker.request import ClipSpec

_INCOMPLETE = "The workflow's result is incomplete: its frames are not all there"
# What a container says without being told; anything else could repeat the prompt.
_USUAL_TAGS = frozenset(
    {"major_brand", "minor_version", "compatible_brands", "encoder", "creation_time"}
)
# AAC packets hold 1,024 samples and generated sound ends up to 30 ms before the picture.
_AUDIO_TOLERANCE_S = 0.15
_FPS_TOLERANCE = 0.01


@dataclass(frozen=True)
class ClipFacts:
    """A clip's streams: pixels, frames a second, frames, seconds, samples a second, bytes.

    With `has_private_tags` its container says more than a container has to.
    """

    width: int
    height: int
    fps: float
    num_frames: int
    duration_s: float
    audio_duration_s: float | None
    audio_sample_rate: int | None
    video_codec: str
    audio_codec: str | None
    bytes: int
    sha256: str
    has_private_tags: bool

    @property
    def made(self) -> dict[str, Any]:
        """What of it a result's metadata say, under their names."""
        return {
            "width": self.width,
            "height": self.height,
            "fps": self.fps,
            "num_frames": self.num_frames,
            "duration_s": self.duration_s,
            "has_audio": self.audio_codec is not None,
            "audio_sample_rate": self.audio_sample_rate,
        }


@dataclass
class _Packets:
    """What a walk over a file has met: frames, the first of them, the sound's end in seconds."""

    frames: int = 0
    audio_s: float | None = None
    is_whole: bool = True
    first: Packet[VideoStream] | None = None


def probe(path: Path) -> ClipFacts:
    """Read a clip; raises `ComfyFailed` when it is not a video, or not all of one."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            video = next(iter(container.streams.video), None)
            if video is None or not video.average_rate:
                raise ComfyFailed("The workflow's result has no picture")
            audio = next(iter(container.streams.audio), None)
            fps = float(video.average_rate)
            packets = _walk(container)
            _require_whole(video, packets)
            return ClipFacts(
                width=video.width,
                height=video.height,
                fps=round(fps, 3),
                num_frames=packets.frames,
                duration_s=round(packets.frames / fps, 4),
                audio_duration_s=_seconds(audio) or packets.audio_s,
                audio_sample_rate=audio.sample_rate if audio else None,
                video_codec=video.codec_context.name,
                audio_codec=audio.codec_context.name if audio else None,
                bytes=path.stat().st_size,
                sha256=_sha256(path),
                has_private_tags=not {tag.lower() for tag in container.metadata} <= _USUAL_TAGS,
            )
    except (FFmpegError, OSError) as error:
        raise ComfyFailed("The workflow's result cannot be read as a video") from error


def without_private_tags(path: Path, target: Path) -> Path:
    """Write a clip to `target`, packet for packet, without what its container says beside them.

    ComfyUI writes the prompt and the graph there unless it is told not to. Raises `ComfyFailed`
    when the clip cannot be read.
    """
    try:
        with (
            av.open(str(path), metadata_errors="replace") as clip,
            av.open(str(target), "w", format=_container(clip)) as output,
        ):
            streams = [*clip.streams.video[:1], *clip.streams.audio[:1]]
            copies = {s.index: output.add_stream_from_template(s) for s in streams}
            for packet in clip.demux(streams):
                if packet.dts is not None:
                    packet.stream = copies[packet.stream.index]
                    output.mux(packet)
    except (FFmpegError, OSError) as error:
        raise ComfyFailed("The workflow's result cannot be read as a video") from error
    return target


def check(facts: ClipFacts, asked: ClipSpec) -> None:
    """Raise `ComfyFailed` when the clip is not what the request asked for."""
    wrong = [
        f"{name} is {found}, not {wanted}"
        for name, found, wanted in (
            ("width", facts.width, asked.size.width),
            ("height", facts.height, asked.size.height),
            ("num_frames", facts.num_frames, asked.num_frames),
        )
        if found != wanted
    ]
    if abs(facts.fps - asked.fps) > _FPS_TOLERANCE:
        wrong.append(f"fps is {facts.fps}, not {asked.fps:g}")
    if asked.has_audio != (facts.audio_codec is not None):
        wrong.append("sound is missing" if asked.has_audio else "it has sound")
    elif facts.audio_duration_s is not None:
        wrong += _length_problem(facts.audio_duration_s, facts.duration_s)
    if wrong:
        raise ComfyFailed("The clip is not what was asked for: " + "; ".join(wrong))


def _length_problem(audio_s: float, video_s: float) -> list[str]:
    if abs(audio_s - video_s) <= _AUDIO_TOLERANCE_S:
        return []
    return [f"sound lasts {audio_s} s, the picture {video_s} s"]


def _seconds(stream: av.AudioStream | None) -> float | None:
    """A stream's length as its header says it; mp4 does, WebM does not."""
    if stream is None or stream.duration is None or not stream.time_base:
        return None
    return round(float(stream.duration * stream.time_base), 4)


def _walk(container: InputContainer) -> _Packets:
    """Read every packet of the file."""
    found = _Packets()
    for packet in container.demux():
        if not packet.size:
            continue
        found.is_whole = found.is_whole and not packet.is_corrupt
        if isinstance(packet.stream, VideoStream):
            found.frames += 1
            found.first = found.first or cast("Packet[VideoStream]", packet)
        elif packet.stream.type == "audio" and packet.pts is not None:
            found.audio_s = round(
                float((packet.pts + (packet.duration or 0)) * packet.time_base), 4
            )
    return found


def _require_whole(video: VideoStream, packets: _Packets) -> None:
    """Raise `ComfyFailed` unless every frame of the header is there and the first one decodes."""
    first = packets.first
    is_whole = packets.is_whole and packets.frames == (video.frames or packets.frames)
    # A key frame that is nothing but zeros is no longer known for one.
    if first is None or not is_whole or not first.is_keyframe:
        raise ComfyFailed(_INCOMPLETE)
    # For one frame, starting threads takes longer than decoding.
    video.codec_context.thread_count = 1
    if not [*video.decode(first), *video.decode(None)]:
        raise ComfyFailed(_INCOMPLETE)


def _container(clip: InputContainer) -> str:
    return "webm" if "webm" in clip.format.name else "mp4"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
