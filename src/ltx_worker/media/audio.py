"""A caller's sound: two channels of samples, whatever file they came in.

The sound of a clip may be minutes long and goes from the file to its WAV block by block.
"""

# PyAV's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import itertools
import math
import wave
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import av
import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer

from ltx_worker.errors import InputRejected
from ltx_worker.media.container import decoded, opened, sound_stream, surveyed
from ltx_worker.stop import StopSignal

Samples: TypeAlias = npt.NDArray[np.float32]

# ComfyUI's audio VAE cannot encode 0.08 s; 0.1 s works (measured).
_MIN_DURATION_S = 0.1
_MIN_RATE = 16_000
_MAX_RATE = 48_000
# Below telephony or above any studio; resampling from far away would fill the memory.
_MIN_SOURCE_RATE = 4_000
_MAX_SOURCE_RATE = 384_000
# Sound that precedes its picture by more belongs to another film.
_MAX_EARLY_S = 600
_BLOCK = 48_000


@dataclass(frozen=True, eq=False)
class Sound:
    """Stereo sound: samples of shape (2, n) within -1 … 1, and how many of them make a second."""

    samples: Samples
    rate: int

    @property
    def duration_s(self) -> float:
        """Seconds that the samples last."""
        return self.samples.shape[1] / self.rate


def read_sound(data: bytes, field: str, max_duration_s: float, stop: StopSignal) -> Sound:
    """Decode the sound of an audio or video file; raises `InputRejected` naming `field`.

    Mono and surround become stereo. A rate of 16 to 48 kHz is kept, any other becomes 48 kHz.
    """
    _survey(data, field, stop)
    with opened(data, field) as container:
        stream = sound_stream(container)
        if stream is None:
            raise InputRejected.of(field, "has no sound that can be read")
        track = _track(container, stream, field, stop)
        # One sample more than allowed shows that there is more, and no more is decoded.
        sound = track and _collected(track, math.floor(max_duration_s * track.rate) + 1)
        whole_s = _said_duration_s(stream)
    if sound is None or sound.duration_s < _MIN_DURATION_S:
        raise InputRejected.of(field, f"has less than {_MIN_DURATION_S:g} s of sound")
    if sound.duration_s > max_duration_s:
        found = f"{whole_s:.1f} s" if whole_s > max_duration_s else "longer"
        raise InputRejected.of(field, f"lasts {found}; at most {max_duration_s:g} s are possible")
    return sound


def write_clip_sound(
    data: bytes, field: str, path: Path, start_s: float, duration_s: float, stop: StopSignal
) -> bool:
    """Write a clip's sound from `start_s`, when its picture begins, for exactly `duration_s`.

    Sound that begins later than the picture is led by silence. Without usable sound nothing is
    left at `path`, and the result is False.
    """
    _survey(data, field, stop)
    with opened(data, field) as container:
        stream = sound_stream(container)
        track = stream and _track(container, stream, field, stop, start_s)
        if track is None:
            return False
        limit = round(duration_s * track.rate)
        count = _write(_limited(track.blocks, limit), track.rate, path, limit)
        has_sound = count >= _MIN_DURATION_S * track.rate
    if not has_sound:
        path.unlink()
    return has_sound


def write_wav(sound: Sound, path: Path, duration_s: float) -> None:
    """Write 16-bit PCM, exactly round(`duration_s` x rate) samples: cut, or followed by silence."""
    limit = round(duration_s * sound.rate)
    _write(_split(sound.samples[:, :limit]), sound.rate, path, limit)


def _write(blocks: Iterable[Samples], rate: int, path: Path, limit: int) -> int:
    """Write `limit` samples, silence where blocks do not suffice; returns how many did."""
    count = 0
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(rate)
        for block in blocks:
            file.writeframes(np.rint(block.T * 32767).astype("<i2").tobytes())
            count += block.shape[1]
        for start in range(count, limit, _BLOCK):
            file.writeframes(bytes(4 * min(_BLOCK, limit - start)))
    return count


def _split(samples: Samples) -> Iterator[Samples]:
    for start in range(0, samples.shape[1], _BLOCK):
        yield samples[:, start : start + _BLOCK]


def _survey(data: bytes, field: str, stop: StopSignal) -> None:
    """Read a file's packets, as whoever decodes them will; raises `InputRejected`."""
    with surveyed(data, field) as container:
        for _ in container.demux():
            stop.check()


@dataclass(frozen=True)
class _Track:
    """A decoded sound: blocks of shape (2, n), the first of which begins at time 0."""

    rate: int
    blocks: Iterator[Samples]


def _track(
    container: InputContainer,
    stream: AudioStream,
    field: str,
    stop: StopSignal,
    start_s: float | None = None,
) -> _Track | None:
    """A stream's sound from `start_s` (None: wherever it begins); None without a frame."""
    frames: Iterator[AudioFrame] = decoded(container.demux(stream), stop)
    first = next(frames, None)
    if first is None:
        return None
    # The frame knows its rate; a header may give half of it (HE-AAC).
    rate = first.sample_rate if _MIN_RATE <= first.sample_rate <= _MAX_RATE else _MAX_RATE
    late_s = 0.0 if start_s is None or first.time is None else first.time - start_s
    blocks = _stereo(itertools.chain([first], frames), rate, field)
    return _Track(rate, _placed(blocks, late_s, rate))


def _collected(track: _Track, limit: int) -> Sound:
    """At most `limit` samples of a track, in memory once."""
    samples = np.empty((2, limit), np.float32)
    count = 0
    for block in _limited(track.blocks, limit):
        samples[:, count : count + block.shape[1]] = block
        count += block.shape[1]
    return Sound(samples[:, :count], track.rate)


def _stereo(frames: Iterable[AudioFrame], rate: int, field: str) -> Iterator[Samples]:
    """Blocks of shape (2, n). A stream may change its form midway: each form has its resampler."""
    for (_, channels, _, source_rate), group in itertools.groupby(frames, _form):
        if not _MIN_SOURCE_RATE <= source_rate <= _MAX_SOURCE_RATE:
            raise InputRejected.of(
                field,
                f"has {source_rate} samples a second; {_MIN_SOURCE_RATE} to {_MAX_SOURCE_RATE} "
                "are possible",
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


def _placed(blocks: Iterable[Samples], late_s: float, rate: int) -> Iterator[Samples]:
    """A sound whose first block belongs at `late_s`, from time 0: silence first, or cut."""
    if late_s < -_MAX_EARLY_S:
        return
    position = round(late_s * rate)
    for start in range(0, position, _BLOCK):
        yield np.zeros((2, min(_BLOCK, position - start)), np.float32)
    for block in blocks:
        kept = block[:, max(0, -position) :]
        # Float files may hold anything.
        yield np.clip(np.nan_to_num(kept, copy=False), -1, 1, out=kept)
        position += block.shape[1]


def _limited(blocks: Iterable[Samples], limit: int) -> Iterator[Samples]:
    """The first `limit` samples."""
    missing = limit
    for block in blocks:
        yield block[:, :missing]
        missing -= block.shape[1]
        if missing <= 0:
            return


def _said_duration_s(stream: AudioStream) -> float:
    """Seconds by the file's header; 0 when it does not say."""
    if not stream.duration or not stream.time_base:
        return 0.0
    return float(stream.duration * stream.time_base)
