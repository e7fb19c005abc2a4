"""An mp4 clip as WebM: VP9 with Opus, frame for frame."""

# PyAV's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import os
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.video.stream import VideoStream

# Opus has no other rates than 48 kHz and its whole parts.
_OPUS_RATE = 48_000
# Constant quality; with `realtime` 121 frames of 1280x704 take seconds and not minutes.
_VP9 = {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"}


def to_webm(source: Path, target: Path) -> None:
    """Write `source` to `target` with the same frames, rate and sound."""
    with av.open(str(source)) as clip, av.open(str(target), "w", format="webm") as output:
        video = _add_video(output, clip.streams.video[0])
        sound = clip.streams.audio[0] if clip.streams.audio else None
        audio = _add_audio(output) if sound else None
        resampler = av.AudioResampler(format="flt", layout="stereo", rate=_OPUS_RATE)
        for frame in clip.decode(*_streams(clip)):
            if isinstance(frame, av.VideoFrame):
                output.mux(video.encode(frame))
            elif audio is not None and isinstance(frame, av.AudioFrame):
                for block in resampler.resample(frame):
                    output.mux(audio.encode(block))
        if audio is not None:
            for block in resampler.resample(None):
                output.mux(audio.encode(block))
            output.mux(audio.encode(None))
        output.mux(video.encode(None))


def _streams(clip: InputContainer) -> list[VideoStream | AudioStream]:
    return [clip.streams.video[0], *clip.streams.audio[:1]]


def _add_video(output: OutputContainer, source: VideoStream) -> VideoStream:
    options = _VP9 | {"threads": str(os.cpu_count() or 1)}
    stream = output.add_stream("libvpx-vp9", rate=source.average_rate, options=options)
    stream.width, stream.height, stream.pix_fmt = source.width, source.height, "yuv420p"
    stream.time_base = source.time_base
    return stream


def _add_audio(output: OutputContainer) -> AudioStream:
    return output.add_stream("libopus", rate=_OPUS_RATE, options={"b": "128k"}, layout="stereo")
