"""A checked request: every default filled in, and what follows from its media once they are read.

`request_reader.py` makes one from a job's input.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ltx_worker.geometry import Size, size_for, snap_frames, snap_frames_down
from ltx_worker.request_fields import (
    Control,
    Fit,
    MediaSource,
    Mode,
    OutputOptions,
    Quality,
    Replace,
)

MAX_ASPECT_RATIO = 4.0


@dataclass(frozen=True)
class KeyframeUse:
    """A picture at a frame of the clip, counted from 0; `field` is where the caller gave it."""

    field: str
    source: MediaSource
    frame: int
    strength: float


@dataclass(frozen=True)
class ClipSpec:
    """What the finished file has to be."""

    size: Size
    num_frames: int
    fps: float
    has_audio: bool


@dataclass(frozen=True)
class GenerateRequest:
    """A checked request. Sizes are in pixels, on the grid of the workflow.

    `follow_image` names the resolution whose pixels the clip gets in its picture's own aspect
    ratio; `follow_sound` is true where the clip lasts as long as its sound, `follow_video` and
    `follow_video_length` where it has its source's rate and length: all for a caller who left it
    open. `retake` is from when to when in seconds; `expected` is what the file has to be where that
    does not follow from the other fields. `options` are the workflow's options that are on,
    `loras` (file name, strength) in order, `camera_lora` the catalogue role of a camera LoRA and
    its strength.
    """

    mode: Mode
    family: str
    quality: Quality
    prompt: str
    size: Size
    num_frames: int
    fps: float
    seed: int
    variant: str = ""
    passes: int = 2
    grid: int = 64
    negative_prompt: str | None = None
    image: MediaSource | None = None
    image_strength: float | None = None
    fit: Fit = "cover"
    audio: MediaSource | None = None
    video: MediaSource | None = None
    keyframes: tuple[KeyframeUse, ...] = ()
    replace: Replace = "both"
    retake: tuple[float, float] | None = None
    control: Control | None = None
    control_strength: float | None = None
    options: frozenset[str] = frozenset()
    loras: tuple[tuple[str, float], ...] = ()
    camera_lora: tuple[str, float] | None = None
    generate_audio: bool = True
    follow_image: str | None = None
    follow_sound: bool = False
    follow_video: bool = False
    follow_video_length: bool = False
    expected: ClipSpec | None = None
    output: OutputOptions = field(default_factory=OutputOptions)
    warnings: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        """Length of the clip in seconds."""
        return self.num_frames / self.fps

    @property
    def made(self) -> ClipSpec:
        """What the finished clip is, upscalers counted in."""
        if self.expected is not None:
            return self.expected
        size, frames, fps = self.size, self.num_frames, self.fps
        if "spatial_upscale" in self.options:
            size = size.times(2)
        if "temporal_upscale" in self.options:
            frames, fps = 2 * frames - 1, 2 * fps
        return ClipSpec(size, frames, fps, self.generate_audio)

    def fitted_to(self, image: Size) -> GenerateRequest:
        """The request with the picture's aspect ratio, where the caller left it open."""
        if self.follow_image is None:
            return self
        ratio = min(MAX_ASPECT_RATIO, max(1 / MAX_ASPECT_RATIO, image.ratio))
        return replace(self, size=size_for(self.follow_image, ratio, self.grid))

    def timed_by(self, sound_s: float, max_frames: int) -> GenerateRequest:
        """The request with the length of its sound in seconds, where the caller left it open."""
        if not self.follow_sound:
            return self
        frames = min(snap_frames(sound_s * self.fps), snap_frames_down(max_frames))
        return replace(self, num_frames=frames)

    def warned(self, *warnings: str) -> GenerateRequest:
        """The request with further warnings."""
        return replace(self, warnings=(*self.warnings, *warnings))
