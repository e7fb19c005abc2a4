"""What a finished clip is, read from the file and not from the request (invariant 1)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError

from ltx_worker.errors import ComfyFailed
from ltx_worker.request import ClipSpec

# AAC packets hold 1,024 samples and generated sound ends up to 30 ms before the picture.
_AUDIO_TOLERANCE_S = 0.15
_FPS_TOLERANCE = 0.01


@dataclass(frozen=True)
class ClipFacts:
    """A clip's streams: pixels, frames a second, frames, seconds, samples a second, bytes."""

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


def probe(path: Path) -> ClipFacts:
    """Read a clip; raises `ComfyFailed` when it is not a video."""
    try:
        with av.open(str(path)) as container:
            video = next(iter(container.streams.video), None)
            if video is None or not video.average_rate:
                raise ComfyFailed("The workflow's result has no picture")
            audio = next(iter(container.streams.audio), None)
            fps = float(video.average_rate)
            frames, audio_s = video.frames, _seconds(audio)
            if not frames or (audio and audio_s is None):
                frames, audio_s = _count(container)
            return ClipFacts(
                width=video.width,
                height=video.height,
                fps=round(fps, 3),
                num_frames=frames,
                duration_s=round(frames / fps, 4),
                audio_duration_s=audio_s,
                audio_sample_rate=audio.sample_rate if audio else None,
                video_codec=video.codec_context.name,
                audio_codec=audio.codec_context.name if audio else None,
                bytes=path.stat().st_size,
                sha256=_sha256(path),
            )
    except (FFmpegError, OSError) as error:
        raise ComfyFailed("The workflow's result cannot be read as a video") from error


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


def _count(container: InputContainer) -> tuple[int, float | None]:
    """The frames and the sound's seconds, from every packet."""
    frames, audio_s = 0, None
    for packet in container.demux():
        if packet.size and packet.stream.type == "video":
            frames += 1
        elif packet.size and packet.stream.type == "audio" and packet.pts is not None:
            audio_s = round(float((packet.pts + (packet.duration or 0)) * packet.time_base), 4)
    return frames, audio_s


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
