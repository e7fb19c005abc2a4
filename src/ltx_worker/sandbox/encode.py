"""Writing clips and pictures: H.264 with AAC in an mp4, or PNG.

A file holds no metadata, and its sound is as long as its picture, to within one AAC frame, unless
the graph gave it less. Every picture has the caption.
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
from av.audio.stream import AudioStream
from av.container import OutputContainer
from PIL import Image

from ltx_worker.sandbox.caption import Caption
from ltx_worker.sandbox.footage import Footage, Pixels
from ltx_worker.sandbox.frames import open_frames
from ltx_worker.sandbox.values import Clip

# A fixed number of threads, since x264's output depends on it.
_VIDEO_OPTIONS = {"preset": "veryfast", "crf": "20", "threads": "4"}
_CONTAINER_OPTIONS = {"movflags": "+faststart", "fflags": "+bitexact"}

# The layouts by their number of channels; ComfyUI takes any other number for stereo, and fails.
_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


class Painter:
    """The frames of a footage played at `fps`, with their caption.

    Raises ValueError for a width or height that 4:2:0 cannot have.
    """

    def __init__(self, footage: Footage, fps: Fraction) -> None:
        if footage.width % 2 or footage.height % 2:
            size = f"{footage.width}x{footage.height}"
            raise ValueError(f"H.264 in yuv420p needs an even width and height, not {size}")
        self._size = footage.width, footage.height
        self._frames = open_frames(footage, fps)
        self._caption = Caption(footage, fps)

    def frame(self, index: int) -> Pixels:
        """Frame `index` as one array: height * 3/2 rows of width, the planes Y, U, V in turn."""
        width, height = self._size
        planes = [np.asarray(plane).reshape(-1) for plane in self._frames.planes(index)]
        flat = np.concatenate(planes)
        luma, chroma = np.split(flat, [width * height])
        self._caption.write(luma.reshape(height, width), chroma.reshape(2, -1, width // 2), index)
        return flat.reshape(height * 3 // 2, width)


def write_clip(path: Path, clip: Clip) -> None:
    """Draw a clip and write it as mp4. Raises ValueError for an odd width or height."""
    footage = clip.footage
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
    """The sound of a clip, encoded beside its frames so that little waits in the encoder."""

    def __init__(self, output: OutputContainer, clip: Clip) -> None:
        sound = clip.sound
        assert sound is not None
        self._output = output
        self._sound = sound
        self._layout = _LAYOUTS.get(sound.channels, "stereo")
        self._stream: AudioStream = output.add_stream(
            "aac", rate=sound.sample_rate, options={"b": "128k"}, layout=self._layout
        )
        # Sound that is longer than the picture is cut, as ComfyUI's SaveVideo does.
        picture_s = clip.footage.frames / clip.fps
        self._samples = min(sound.length, math.ceil(picture_s * sound.sample_rate))
        self._written = 0

    def advance(self, seconds: Fraction) -> None:
        """Encode up to `seconds`, or to the end of the sound."""
        rate = self._sound.sample_rate
        until = min(self._samples, round(seconds * rate))
        if until <= self._written:
            return
        block = np.ascontiguousarray(self._sound.samples[:, self._written : until])
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=self._layout)
        frame.sample_rate = rate
        frame.time_base = Fraction(1, rate)
        frame.pts = self._written
        self._output.mux(self._stream.encode(frame))
        self._written = until

    def close(self) -> None:
        """Encode what rounding left over, and flush."""
        self.advance(Fraction(self._samples, self._sound.sample_rate))
        self._output.mux(self._stream.encode(None))


def stills(footage: Footage) -> Iterator[Pixels]:
    """The frames of a footage as RGB pictures."""
    painter = Painter(footage, Fraction(24))
    for index in range(footage.frames):
        frame = av.VideoFrame.from_ndarray(painter.frame(index), format="yuv420p")
        yield np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)


def write_png(path: Path, pixels: Pixels) -> None:
    """Write a picture."""
    Image.fromarray(pixels).save(path, compress_level=1)
