"""The model's grid: which frame counts and sizes LTX-2 can make, and the nearest ones to a wish.

LTX-2's video VAE packs 8 frames after the first and 32x32 pixels into one latent, so a clip has
8k+1 frames and sides that are multiples of 32; two-pass workflows start at half size and need
multiples of 64 (source: the official pipelines' resolution check). ComfyUI floors silently, hence
the snapping here, before the graph is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FRAMES_PER_LATENT = 8
PIXELS_PER_LATENT = 32
# Audio latents per second: 16 kHz mel frames, hop 160, packed by 4 (source: LTX-2's audio VAE).
AUDIO_LATENTS_PER_SECOND = 25
MIN_FRAMES = FRAMES_PER_LATENT + 1
# The first pass of a two-pass workflow needs at least 64 pixels a side (EmptyLTXVLatentVideo).
MIN_SIDE = 128
MAX_SIDE = 4096
MAX_PIXELS = 3840 * 2176

# 16:9 sizes on the 64 grid (540p, 720p and 1080p as LTX-Desktop makes them).
RESOLUTIONS = {
    "540p": (1024, 576),
    "720p": (1280, 704),
    "1080p": (1920, 1088),
    "1440p": (2560, 1408),
}


@dataclass(frozen=True)
class Size:
    """Width and height in pixels."""

    width: int
    height: int

    @property
    def ratio(self) -> float:
        """The aspect ratio, width / height."""
        return self.width / self.height

    def times(self, factor: int) -> Size:
        """The size with both sides `factor` times as long."""
        return Size(self.width * factor, self.height * factor)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def snap_frames(frames: float) -> int:
    """The count 8k+1 nearest to `frames`, ties upwards, at least 9."""
    return max(MIN_FRAMES, FRAMES_PER_LATENT * _round((frames - 1) / FRAMES_PER_LATENT) + 1)


def snap_frames_down(frames: int) -> int:
    """The largest count 8k+1 that is not above `frames`."""
    return (frames - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1


def snap_size(size: Size, grid: int) -> Size:
    """The size nearest to `size` whose sides are multiples of `grid` pixels."""
    return Size(_snap_side(size.width, grid), _snap_side(size.height, grid))


def size_for(resolution: str, ratio: float, grid: int) -> Size:
    """The size for a named resolution and an aspect ratio (width / height), on the grid.

    16:9 and 9:16 are the named sizes; any other ratio gets as many pixels as they have.
    """
    width, height = RESOLUTIONS[resolution]
    if math.isclose(ratio, 16 / 9, rel_tol=0.01):
        return snap_size(Size(width, height), grid)
    if math.isclose(ratio, 9 / 16, rel_tol=0.01):
        return snap_size(Size(height, width), grid)
    area = width * height
    return snap_size(Size(round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))), grid)


def audio_clock(num_frames: int, fps: float) -> tuple[int, int]:
    """Frames and whole frames per second that give an audio latent as long as the clip.

    ComfyUI's audio latent takes an integer rate: a fractional one would be cut (23.976 to 23) and
    the sound would outlast the picture. For those the clip's length is counted in audio latents.
    """
    if float(fps).is_integer():
        return num_frames, int(fps)
    return math.ceil(num_frames / fps * AUDIO_LATENTS_PER_SECOND), AUDIO_LATENTS_PER_SECOND


def _snap_side(side: int, grid: int) -> int:
    return min(MAX_SIDE, max(MIN_SIDE, grid * _round(side / grid)))


def _round(value: float) -> int:
    """Round half up; Python's own rounds half to even."""
    return math.floor(value + 0.5)
