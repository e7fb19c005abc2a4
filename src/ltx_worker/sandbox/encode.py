"""Writing clips and pictures: H.264 with AAC in an mp4, or PNG.

A file holds no metadata, and its sound is as long as its picture, to within one AAC frame, unless
the graph gave it less.
"""

# PyAV's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream
from av.container import OutputContainer
from PIL import Image

from ltx_worker.sandbox.draw import Painter
from ltx_worker.sandbox.values import Clip, Footage, Pixels, Sound, seed_of

# A fixed number of threads, since x264's output depends on it.
_VIDEO_OPTIONS = {"preset": "veryfast", "crf": "20", "threads": "4"}
_CONTAINER_OPTIONS = {"movflags": "+faststart", "fflags": "+bitexact"}

_NOTE_S = 0.42
_LOUDNESS = 0.16
# A pentatonic scale, in semitones: any sequence of it is agreeable.
_SCALE = np.array([0, 2, 4, 7, 9, 12, 14, 16])
_LOWEST_HZ = 196.0
_NOTES = 256


def write_clip(path: Path, clip: Clip) -> None:
    """Draw a clip and write it as mp4.

    Raises ValueError for a width or height that 4:2:0 cannot have.
    """
    footage = clip.footage
    if footage.width % 2 or footage.height % 2:
        size = f"{footage.width}x{footage.height}"
        raise ValueError(f"H.264 in yuv420p needs an even width and height, not {size}")
    painter = Painter(footage, clip.fps)
    with av.open(path, "w", format="mp4", options=_CONTAINER_OPTIONS) as output:
        video = output.add_stream("libx264", rate=clip.fps, options=_VIDEO_OPTIONS)
        video.width, video.height, video.pix_fmt = footage.width, footage.height, "yuv420p"
        track = _Track(output, clip) if clip.sound else None
        for index in range(footage.frames):
            frame = av.VideoFrame.from_ndarray(painter.frame(index), format="yuv420p")
            output.mux(video.encode(frame))
            if track:
                track.advance((index + 1) / clip.fps)
        output.mux(video.encode(None))
        if track:
            track.close()


class _Track:
    """The sound of a clip, encoded beside its frames so that little waits in memory."""

    def __init__(self, output: OutputContainer, clip: Clip) -> None:
        sound = clip.sound
        assert sound is not None
        self._output = output
        self._rate = sound.sample_rate
        self._tones = _Tones(sound)
        self._stream: AudioStream = output.add_stream(
            "aac", rate=self._rate, options={"b": "128k"}, layout="stereo"
        )
        # Sound that is longer than the picture is cut, as ComfyUI's SaveVideo does.
        picture_s = clip.footage.frames / clip.fps
        self._samples = min(round(sound.seconds * self._rate), math.ceil(picture_s * self._rate))
        self._written = 0

    def advance(self, seconds: Fraction) -> None:
        """Encode up to `seconds`, or to the end of the sound."""
        until = min(self._samples, round(seconds * self._rate))
        if until <= self._written:
            return
        block = self._tones.samples(self._written, until)
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
        frame.sample_rate = self._rate
        frame.time_base = Fraction(1, self._rate)
        frame.pts = self._written
        self._output.mux(self._stream.encode(frame))
        self._written = until

    def close(self) -> None:
        """Encode what rounding left over, and flush."""
        self.advance(Fraction(self._samples, self._rate))
        self._output.mux(self._stream.encode(None))


class _Tones:
    """A soft sequence of notes drawn from a sound's passes; silence when there was no pass."""

    def __init__(self, sound: Sound) -> None:
        random = np.random.default_rng(seed_of(sound.passes))
        self._rate = sound.sample_rate
        self._loudness = _LOUDNESS if sound.passes else 0.0
        pitches = _LOWEST_HZ * 2 ** (random.choice(_SCALE, _NOTES) / 12)
        self._pitches = pitches * 2 ** (random.integers(0, 12) / 12)
        self._places = random.uniform(0.25, 0.75, _NOTES)

    def samples(self, start: int, end: int) -> npt.NDArray[np.float32]:
        """Samples start … end: two channels."""
        time = np.arange(start, end) / self._rate
        note = (time / _NOTE_S).astype(np.int64) % _NOTES
        since = time % _NOTE_S
        turn = 2 * np.pi * self._pitches[note] * since
        swell = np.minimum(1, since / 0.02) * np.minimum(1, (_NOTE_S - since) / 0.08)
        wave = (np.sin(turn) + 0.25 * np.sin(2 * turn)) * np.exp(-3.2 * since) * swell
        place = self._places[note]
        return (self._loudness * wave * np.stack([1 - place, place])).astype(np.float32)


def stills(footage: Footage) -> Iterator[Pixels]:
    """The frames of a footage as RGB pictures."""
    painter = Painter(footage, Fraction(24))
    for index in range(footage.frames):
        frame = av.VideoFrame.from_ndarray(painter.frame(index), format="yuv420p")
        yield np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)


def write_png(path: Path, pixels: Pixels) -> None:
    """Write a picture."""
    Image.fromarray(pixels).save(path, compress_level=1)
