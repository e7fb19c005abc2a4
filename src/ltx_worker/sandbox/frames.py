"""Reading footage a frame at a time: from stills, from files, from what cuts and joins them, and
from latents, whose frames are drawn.

A frame depends on the footage, the rate and its number alone: read twice it is the same. Reading
in order is cheap; going back opens a file again.
"""

# PyAV's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Protocol

import av
import numpy as np
from PIL import Image

from ltx_worker.sandbox import draw
from ltx_worker.sandbox.draw import Planes
from ltx_worker.sandbox.footage import FileFrames, Footage, Joined, Part, Pixels, Scaled, Still
from ltx_worker.sandbox.latents import Drawn, VideoLatent
from ltx_worker.sandbox.mixing import Followed, Shown, mix
from ltx_worker.sandbox.values import seed_of

# A remainder of weight that is rounding only.
_NOTHING = 1e-6

_TURNS = {
    1: Image.Transpose.ROTATE_90,
    2: Image.Transpose.ROTATE_180,
    3: Image.Transpose.ROTATE_270,
}


class Frames(Protocol):
    """Frames by their number, from 0."""

    def planes(self, index: int) -> Planes:
        """One frame."""
        ...


def open_frames(footage: Footage, fps: Fraction) -> Frames:
    """A reader of a footage that is played at `fps`."""
    match footage:
        case Still():
            return _Picture(footage.pixels)
        case FileFrames():
            return _File(footage)
        case Scaled():
            return _resized(footage, fps)
        case Part(source=source, start=start):
            return _Part(open_frames(source, fps), start)
        case Joined(first=first, second=second):
            return _Chain(open_frames(first, fps), first.frames, open_frames(second, fps))
        case Drawn(latent=latent):
            return _Drawing(latent, fps)
        case _:
            raise TypeError(f"no way to read a {type(footage).__name__}")


class _Picture:
    def __init__(self, pixels: Pixels) -> None:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        self._planes = draw.to_planes(frame)

    def planes(self, index: int) -> Planes:
        return self._planes


class _File:
    """Frames decoded in order; a file that ends early repeats its last one."""

    def __init__(self, footage: FileFrames) -> None:
        self._footage = footage
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._index = -1
        self._frame: av.VideoFrame | None = None
        self._decoded: Planes | None = None

    def planes(self, index: int) -> Planes:
        if self._decoded and index == self._index:
            return self._decoded
        if not self._frame or index < self._index:
            self._open()
        while self._index < index:
            self._frame = next(self._frames, self._frame)
            self._index += 1
        assert self._frame is not None, "a file without frames is refused when it is loaded"
        self._decoded = self._upright(draw.to_planes(self._frame))
        return self._decoded

    def _open(self) -> None:
        self._frames = _decoded(self._footage)
        self._frame, self._index = None, -1

    def _upright(self, planes: Planes) -> Planes:
        if not self._footage.quarter_turns:
            return planes
        turn = _TURNS[self._footage.quarter_turns]
        luma, blue, red = (plane.transpose(turn) for plane in planes)
        return luma, blue, red


def _decoded(footage: FileFrames) -> Iterator[av.VideoFrame]:
    with av.open(footage.path) as container:
        yield from container.decode(video=0)


class _Resized:
    def __init__(self, source: Frames, scaled: Scaled) -> None:
        self._source, self._scaled = source, scaled

    def planes(self, index: int) -> Planes:
        to = self._scaled
        source = self._source.planes(index)
        return draw.resized(source, to.width, to.height, to.method, crop=to.crop)


def _resized(scaled: Scaled, fps: Fraction) -> Frames:
    to = scaled
    if isinstance(to.source, Still):
        return _Picture(draw.fit(to.source.pixels, to.width, to.height, to.method, crop=to.crop))
    return _Resized(open_frames(to.source, fps), to)


class _Part:
    def __init__(self, source: Frames, start: int) -> None:
        self._source, self._start = source, start

    def planes(self, index: int) -> Planes:
        return self._source.planes(self._start + index)


class _Chain:
    def __init__(self, first: Frames, count: int, second: Frames) -> None:
        self._first, self._count, self._second = first, count, second

    def planes(self, index: int) -> Planes:
        if index < self._count:
            return self._first.planes(index)
        return self._second.planes(index - self._count)


class _Drawing:
    """A latent's frames: the pictures that `mixing` says, and waves for the rest."""

    def __init__(self, latent: VideoLatent, fps: Fraction) -> None:
        self._latent, self._fps = latent, fps
        passes = latent.passes
        size = latent.width, latent.height
        self._grey = draw.grey(*size)
        self._waves = draw.Waves(seed_of(passes), *size) if passes else None
        self._sources: dict[Footage, Frames] = {}

    def planes(self, index: int) -> Planes:
        parts = mix(self._latent.layers, index)
        rest = 1 - sum(parts.values())
        needs_waves = rest > _NOTHING or any(isinstance(part, Followed) for part in parts)
        waves = self._grey
        if self._waves and needs_waves:
            waves = self._waves.planes(float(index / self._fps))
        picture, weight = waves, max(0.0, rest)
        for part, share in parts.items():
            weight += share
            picture = draw.blended(picture, self._part(part, waves), min(1.0, share / weight))
        return picture

    def _part(self, part: Shown | Followed, waves: Planes) -> Planes:
        if part.footage not in self._sources:
            size = self._latent.width, self._latent.height
            # As the nodes that take pictures fit them to a latent.
            fitted = Scaled(*size, part.footage.frames, part.footage, "bilinear", crop=True)
            same = (part.footage.width, part.footage.height) == size
            self._sources[part.footage] = open_frames(part.footage if same else fitted, self._fps)
        planes = self._sources[part.footage].planes(part.index)
        if isinstance(part, Followed):
            return draw.along(waves, planes)
        if part.drift and self._waves:
            return draw.grown(planes, part.drift, self._waves.aim)
        return planes
