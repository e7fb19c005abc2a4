"""What a finished clip is, read from the file and not from the request (invariant 1)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import av
from av.error import FFmpegError

from ltx_worker.errors import ComfyFailed
from ltx_worker.request import GenerateRequest

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
            frames = video.frames or sum(1 for p in container.demux(video) if p.size)
            return ClipFacts(
                width=video.width,
                height=video.height,
                fps=round(fps, 3),
                num_frames=frames,
                duration_s=round(frames / fps, 4),
                audio_duration_s=_seconds(audio) if audio else None,
                audio_sample_rate=audio.sample_rate if audio else None,
                video_codec=video.codec_context.name,
                audio_codec=audio.codec_context.name if audio else None,
                bytes=path.stat().st_size,
                sha256=_sha256(path),
            )
    except (FFmpegError, OSError) as error:
        raise ComfyFailed("The workflow's result cannot be read as a video") from error


def check(facts: ClipFacts, request: GenerateRequest) -> None:
    """Raise `ComfyFailed` when the clip is not what the request asked for."""
    wrong = [
        f"{name} is {found}, not {asked}"
        for name, found, asked in (
            ("width", facts.width, request.size.width),
            ("height", facts.height, request.size.height),
            ("num_frames", facts.num_frames, request.num_frames),
        )
        if found != asked
    ]
    if abs(facts.fps - request.fps) > _FPS_TOLERANCE:
        wrong.append(f"fps is {facts.fps}, not {request.fps:g}")
    if facts.audio_duration_s is None:
        wrong.append("sound is missing")
    elif abs(facts.audio_duration_s - facts.duration_s) > _AUDIO_TOLERANCE_S:
        wrong.append(f"sound lasts {facts.audio_duration_s} s, the picture {facts.duration_s} s")
    if wrong:
        raise ComfyFailed("The clip is not what was asked for: " + "; ".join(wrong))


def _seconds(stream: av.AudioStream) -> float | None:
    if stream.duration is None or not stream.time_base:
        return None
    return round(float(stream.duration * stream.time_base), 4)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
