"""Sound as the sandbox passes it on: samples, a caller's own or a melody drawn from a seed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]

_NOTE_S = 0.42
_LOUDNESS = 0.16
# A pentatonic scale, in semitones: any sequence of it is agreeable.
_SCALE = np.array([0, 2, 4, 7, 9, 12, 14, 16])
_LOWEST_HZ = 196.0
_NOTES = 256


@dataclass(frozen=True)
class Sound:
    """Samples, channels x length, -1 to 1. Their digest stands for them."""

    digest: str
    sample_rate: int
    samples: Samples = field(repr=False, compare=False)

    @classmethod
    def of(cls, samples: Samples, sample_rate: int) -> Sound:
        """A sound of these samples."""
        shaped = repr(samples.shape).encode() + np.ascontiguousarray(samples).tobytes()
        return cls(hashlib.sha256(shaped).hexdigest()[:16], sample_rate, samples)

    @property
    def channels(self) -> int:
        """How many channels it has."""
        return self.samples.shape[0]

    @property
    def length(self) -> int:
        """How many samples each channel has."""
        return self.samples.shape[1]


def file_sound(path: Path, *, last_stream: bool = False) -> Sound | None:
    """The first audio stream of a file, or the last; None when it has none, or an empty one.

    Raises what PyAV raises for a file that it cannot read.
    """
    with av.open(path) as container:
        if not container.streams.audio:
            return None
        stream = container.streams.audio[-1 if last_stream else 0]
        resampler = av.AudioResampler(format="fltp")
        blocks = [
            block.to_ndarray()
            for frame in container.decode(stream)
            for block in resampler.resample(frame)
        ]
        rate = stream.codec_context.sample_rate
    if not blocks:
        return None
    return Sound.of(np.concatenate(blocks, axis=1, dtype=np.float32), rate)


def resampled(samples: Samples, rate: int, new_rate: int) -> Samples:
    """Samples at another rate, by straight lines: good enough to be recognised."""
    if rate == new_rate:
        return samples
    length = -(-samples.shape[1] * new_rate // rate)
    places = np.arange(length, dtype=np.float64) * (rate / new_rate)
    known = np.arange(samples.shape[1], dtype=np.float64)
    new = np.empty((samples.shape[0], length), dtype=np.float32)
    for channel, old in zip(new, samples, strict=True):
        channel[:] = np.interp(places, known, old)
    return new


def with_channels(samples: Samples, channels: int) -> Samples:
    """The first channels of a sound; one channel is repeated."""
    if samples.shape[0] == 1:
        return np.repeat(samples, channels, axis=0)
    return samples[:channels]


def melody(seed: int, length: int, rate: int) -> Samples:
    """A soft sequence of notes in two channels, drawn from a seed."""
    random = np.random.default_rng(seed)
    pitches = _LOWEST_HZ * 2 ** (random.choice(_SCALE, _NOTES) / 12)
    pitches = pitches * 2 ** (random.integers(0, 12) / 12)
    places = random.uniform(0.25, 0.75, _NOTES)
    time = np.arange(length) / rate
    note = (time / _NOTE_S).astype(np.int64) % _NOTES
    since = time % _NOTE_S
    turn = 2 * np.pi * pitches[note] * since
    swell = np.minimum(1, since / 0.02) * np.minimum(1, (_NOTE_S - since) / 0.08)
    wave = (np.sin(turn) + 0.25 * np.sin(2 * turn)) * np.exp(-3.2 * since) * swell
    place = places[note]
    return (_LOUDNESS * wave * np.stack([1 - place, place])).astype(np.float32)
