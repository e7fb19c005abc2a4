"""A caller's sound: two channels of samples, whatever file they came in.

FFmpeg is given bytes and nothing else: it may open no path and no address, and it reads only
containers that hold their sound themselves, so a playlist leads nowhere (invariant 6).
"""

# PyAV's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import io
import itertools
import math
import wave
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.packet import Packet

from ltx_worker.errors import InputRejected

Samples: TypeAlias = npt.NDArray[np.float32]

_GUARD = {
    # FFmpeg's names of the containers; "mov" is also mp4 and m4a, "matroska" also webm.
    "format_whitelist": "wav,mp3,flac,ogg,mov,matroska,avi",
    # No protocol has this name: whatever a file refers to, nothing is opened.
    "protocol_whitelist": "none",
}
_READABLE = "wav, mp3, flac, ogg, m4a, mp4, mov, webm, mkv or avi"
# ComfyUI's audio VAE cannot encode 0.08 s; 0.1 s works (measured).
_MIN_DURATION_S = 0.1
_MIN_RATE = 16_000
_MAX_RATE = 48_000
# Below telephony; resampling a block at 1 Hz would fill the memory.
_MIN_SOURCE_RATE = 4_000


@dataclass(frozen=True, eq=False)
class Sound:
    """Stereo sound: samples of shape (2, n) within -1 … 1, and how many of them make a second."""

    samples: Samples
    rate: int

    @property
    def duration_s(self) -> float:
        """Seconds that the samples last."""
        return self.samples.shape[1] / self.rate

    def fitted(self, duration_s: float) -> Sound:
        """Exactly round(`duration_s` x rate) samples: cut, or followed by silence."""
        count = round(duration_s * self.rate)
        missing = max(0, count - self.samples.shape[1])
        return Sound(np.pad(self.samples[:, :count], ((0, 0), (0, missing))), self.rate)

    def section(self, start_s: float, end_s: float) -> Sound:
        """The sound between two times, as far as there is any."""
        start, end = (max(0, round(time_s * self.rate)) for time_s in (start_s, end_s))
        return Sound(self.samples[:, start:end], self.rate)


def read_sound(data: bytes, field: str, max_duration_s: float) -> Sound:
    """Decode the sound of an audio or video file; raises `InputRejected` naming `field`.

    Mono and surround become stereo. A rate of 16 to 48 kHz is kept, any other becomes 48 kHz.
    """
    with opened(data, field) as container:
        stream = sound_stream(container)
        if stream is None:
            raise InputRejected.of(field, "has no sound")
        # One sample more than allowed shows that there is more, and no more is decoded.
        sound = _decode(container, stream, field, max_duration_s, spare=1)
        whole_s = _said_duration_s(stream)
    if sound is None or sound.duration_s < _MIN_DURATION_S:
        raise InputRejected.of(field, f"has less than {_MIN_DURATION_S:g} s of sound")
    if sound.duration_s > max_duration_s:
        found = f"{whole_s:.1f} s" if whole_s > max_duration_s else "longer"
        raise InputRejected.of(field, f"lasts {found}; at most {max_duration_s:g} s are possible")
    return sound


def read_clip_sound(data: bytes, field: str, start_s: float, duration_s: float) -> Sound | None:
    """The sound of a clip from `start_s`, when its picture begins, for at most `duration_s`.

    Sound that begins later than the picture is led by silence. None without usable sound.
    """
    with opened(data, field) as container:
        stream = sound_stream(container)
        if stream is None:
            return None
        sound = _decode(container, stream, field, duration_s, start_s=start_s)
    return sound if sound and sound.duration_s >= _MIN_DURATION_S else None


def write_wav(sound: Sound, path: Path) -> None:
    """Write 16-bit PCM."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(sound.rate)
        file.writeframes(np.rint(sound.samples.T * 32767).astype("<i2").tobytes())


@contextmanager
def opened(data: bytes, field: str) -> Generator[InputContainer]:
    """FFmpeg's view of `data`, under guard; its errors inside become `InputRejected`."""
    try:
        with av.open(
            io.BytesIO(data), "r", container_options=_GUARD, metadata_errors="replace"
        ) as container:
            yield container
    except FFmpegError as error:
        raise InputRejected.of(field, f"cannot be read; send a whole {_READABLE} file") from error


def sound_stream(container: InputContainer) -> AudioStream | None:
    """The stream that players would choose, if FFmpeg can decode it."""
    stream = container.streams.best("audio")
    return stream if isinstance(stream, AudioStream) and stream.codec_context else None


def decoded(packets: Iterable[Packet[Any]]) -> Iterator[Any]:
    """The frames in the packets of one stream; damaged packets are left out, as players do."""
    for packet in packets:
        try:
            frames = packet.decode()
        except InvalidDataError:
            continue
        yield from frames


def _decode(
    container: InputContainer,
    stream: AudioStream,
    field: str,
    duration_s: float,
    *,
    start_s: float | None = None,
    spare: int = 0,
) -> Sound | None:
    """At most `duration_s` and `spare` samples from `start_s` (None: wherever the sound begins)."""
    frames: Iterator[AudioFrame] = decoded(container.demux(stream))
    first = next(frames, None)
    if first is None:
        return None
    # The frame knows its rate; a header may give half of it (HE-AAC).
    rate = first.sample_rate if _MIN_RATE <= first.sample_rate <= _MAX_RATE else _MAX_RATE
    late_s = 0.0 if start_s is None or first.time is None else first.time - start_s
    limit = math.floor(duration_s * rate) + spare
    blocks = _stereo(itertools.chain([first], frames), rate, field)
    return Sound(_placed(blocks, round(late_s * rate), limit), rate)


def _stereo(frames: Iterable[AudioFrame], rate: int, field: str) -> Iterator[Samples]:
    """Blocks of shape (2, n). A stream may change its form midway: each form has its resampler."""
    for (_, channels, _, source_rate), group in itertools.groupby(frames, _form):
        if source_rate < _MIN_SOURCE_RATE:
            raise InputRejected.of(
                field, f"has {source_rate} samples a second; at least {_MIN_SOURCE_RATE} are needed"
            )
        # FFmpeg would play mono 3 dB softer; it is doubled below instead. Folded surround keeps
        # its sum within 1.
        target = "mono" if channels == 1 else "stereo"
        resampler = av.AudioResampler("fltp", target, rate, options={"rematrix_maxval": "1"})
        for frame in itertools.chain(group, [None]):
            for block in resampler.resample(frame):
                yield np.broadcast_to(block.to_ndarray(), (2, block.samples)).astype(np.float32)


def _form(frame: AudioFrame) -> tuple[str, int, str, int]:
    layout = frame.layout
    return layout.name, layout.nb_channels, frame.format.name, frame.sample_rate


def _placed(blocks: Iterable[Samples], offset: int, limit: int) -> Samples:
    """Samples 0 … `limit` of a sound whose first block belongs at `offset`, silence before it."""
    kept = [np.zeros((2, min(max(0, offset), limit)), np.float32)]
    position = offset
    for block in blocks:
        kept.append(block[:, max(0, -position) :])
        position += block.shape[1]
        if position >= limit:
            break
    samples = np.concatenate(kept, axis=1)[:, :limit]
    # Float files may hold anything.
    return np.clip(np.nan_to_num(samples, copy=False), -1, 1, out=samples)


def _said_duration_s(stream: AudioStream) -> float:
    """Seconds by the file's header; 0 when it does not say."""
    if not stream.duration or not stream.time_base:
        return 0.0
    return float(stream.duration * stream.time_base)
