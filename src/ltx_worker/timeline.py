"""Which frames of a source clip a job takes, frees and adds. Pure arithmetic on the 8k+1 grid.

Latent 0 is frame 0, latent i is frames 8i-7 to 8i; what is freed or added is whole latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ltx_worker.geometry import FRAMES_PER_LATENT, MIN_FRAMES, snap_frames_down

# How much of the source an extension sees, in frames: 25 forward (in place), 16 backward (a guide).
_MOST_CONTEXT = 25
_BACKWARD_CONTEXT = 16


@dataclass(frozen=True)
class Extension:
    """New frames at the end (or the start) of a source; all counts in frames.

    `num_frames` are sampled: the context and the new ones. `total` is what the clip has in the end.
    """

    source: int
    context: int
    new: int
    forward: bool

    @property
    def num_frames(self) -> int:
        """Frames to sample: 8k+1."""
        return self.context + self.new

    @property
    def total(self) -> int:
        """Frames of the finished clip."""
        return self.source + self.new


def extend(source: int, wanted_new: float, *, forward: bool) -> Extension | None:
    """The extension by about `wanted_new` frames; None when the source is too short to go on from.

    Forward adds 8k frames after a context of 8k+1, backward adds 8k+1 before a context of 8k.
    """
    steps = max(1, math.floor(wanted_new / FRAMES_PER_LATENT + 0.5))
    new = FRAMES_PER_LATENT * steps
    if forward:
        context = min(_MOST_CONTEXT, snap_frames_down(source))
        return Extension(source, context, new, True) if source >= MIN_FRAMES else None
    context = min(_BACKWARD_CONTEXT, source // FRAMES_PER_LATENT * FRAMES_PER_LATENT)
    return Extension(source, context, new + 1, False) if context else None


@dataclass(frozen=True)
class Window:
    """Frames `start` up to, not including, `end` of a clip of `num_frames`."""

    start: int
    end: int
    num_frames: int

    @property
    def length(self) -> int:
        """Frames in the window."""
        return self.end - self.start

    @property
    def has_head(self) -> bool:
        """Whether there are frames before the window."""
        return self.start > 0

    @property
    def has_tail(self) -> bool:
        """Whether there are frames after the window."""
        return self.end < self.num_frames


def window(start_s: float, end_s: float, fps: float, num_frames: int) -> Window | None:
    """The smallest window of whole latents that covers these seconds; None outside the clip.

    ComfyUI rounds a window inwards, and one inside a single latent frees nothing and succeeds.
    """
    first = round(start_s * fps)
    last = min(round(end_s * fps), num_frames) - 1
    if not 0 <= first <= last:
        return None
    first_latent, last_latent = (math.ceil(f / FRAMES_PER_LATENT) for f in (first, last))
    start = max(0, FRAMES_PER_LATENT * first_latent - (FRAMES_PER_LATENT - 1))
    return Window(start, FRAMES_PER_LATENT * last_latent + 1, num_frames)
