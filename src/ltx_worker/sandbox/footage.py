"""Frames as the sandbox passes them on: where they come from, not their pixels.

Only a still holds its pixels. All other footage is read when a clip is written, a frame at a time,
so that a long clip needs no more memory than a short one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Footage:
    """Frames of one size: `width` x `height` pixels, `frames` of them."""

    width: int
    height: int
    frames: int


@dataclass(frozen=True)
class Still(Footage):
    """One picture: RGB, height x width x 3, 8 bits. Its digest stands for its pixels."""

    digest: str
    pixels: Pixels = field(repr=False, compare=False)

    @classmethod
    def of(cls, pixels: Pixels) -> Still:
        """A still of these pixels."""
        height, width = pixels.shape[:2]
        return cls(width, height, 1, hashlib.sha256(pixels.tobytes()).hexdigest()[:16], pixels)


@dataclass(frozen=True)
class FileFrames(Footage):
    """The frames of a video file, upright. The digest of the file stands for them."""

    digest: str
    quarter_turns: int
    path: Path = field(repr=False, compare=False)


@dataclass(frozen=True)
class Scaled(Footage):
    """Footage at another size: stretched, or with `crop` cut about its middle to the shape."""

    source: Footage
    method: str
    crop: bool


@dataclass(frozen=True)
class Part(Footage):
    """The frames of a footage from `start` on."""

    source: Footage
    start: int


@dataclass(frozen=True)
class Joined(Footage):
    """One footage and then another of the same size."""

    first: Footage
    second: Footage


def part_of(source: Footage, start: int, frames: int) -> Footage:
    """Frames `start` … `start + frames - 1`; the source itself when that is all of it."""
    if (start, frames) == (0, source.frames):
        return source
    return Part(source.width, source.height, frames, source, start)


def scaled_to(source: Footage, width: int, height: int, method: str, *, crop: bool) -> Footage:
    """A footage at another size; the source itself when it has that size."""
    if (source.width, source.height) == (width, height):
        return source
    return Scaled(width, height, source.frames, source, method, crop)


def sources_of(footage: Footage) -> Iterator[Footage]:
    """What a footage is cut, scaled and joined from, in order."""
    match footage:
        case Scaled(source=source) | Part(source=source):
            yield from sources_of(source)
        case Joined(first=first, second=second):
            yield from sources_of(first)
            yield from sources_of(second)
        case _:
            yield footage


def file_frames(path: Path) -> FileFrames:
    """The frames of a file's first video stream.

    They are counted by their packets. Raises what PyAV raises for a file that it cannot read, and
    ValueError for one without a frame.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    with av.open(path) as container:
        if not container.streams.video:
            raise ValueError(f"No video stream found in file '{path}'")
        stream = container.streams.video[0]
        packets = container.demux(stream)
        count = sum(1 for packet in packets if packet.size and not packet.is_discard)
        container.seek(0)
        first = next(container.decode(stream), None)
        if first is None:
            raise ValueError(f"No frames in file '{path}'")
        width, height, turns = first.width, first.height, first.rotation // 90 % 4
    if turns % 2:
        width, height = height, width
    return FileFrames(width, height, count, digest, turns, path)
