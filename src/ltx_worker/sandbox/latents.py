"""Latents in the sandbox: their size, what was put into them and sampled, and their noise mask.

A latent keeps its history as layers, the newest last. `mixing` tells what each frame shows of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ltx_worker.sandbox.footage import Footage
from ltx_worker.sandbox.sound import Sound
from ltx_worker.sandbox.values import Pass

# Geometry of the model's latents: of the video autoencoder and of the audio one.
PIXELS_PER_LATENT = 32
FRAMES_PER_LATENT = 8
AUDIO_LATENTS_PER_S = 25

# The noise of each latent frame, 1 for all that may change; None is all 1.
NoiseMask = tuple[float, ...] | None


def latents_of(frames: int) -> int:
    """How many latent frames hold this many frames: the first holds one, each other one eight."""
    return (frames - 1) // FRAMES_PER_LATENT + 1


def frames_of(latents: int) -> int:
    """How many frames this many latent frames decode to."""
    return (latents - 1) * FRAMES_PER_LATENT + 1


def latent_of(frame: int) -> int:
    """The latent frame that holds a frame."""
    return (frame + FRAMES_PER_LATENT - 1) // FRAMES_PER_LATENT


@dataclass(frozen=True)
class Given:
    """Pictures in the latent frames from `start` on; `in_place` when a clip is to go on from them.

    A single picture fills all its frames.
    """

    footage: Footage
    start: int
    latents: int
    in_place: bool = False


@dataclass(frozen=True)
class Sampled:
    """A pass over a clip of `frames` frames, guides not counted.

    `kept` is how much of what was there shows through where the mask is 1.
    """

    run: Pass
    mask: NoiseMask
    frames: int
    kept: float


@dataclass(frozen=True)
class Doubled:
    """Twice as many frames: each but the last is followed by one in between."""


Layer = Given | Sampled | Doubled


@dataclass(frozen=True)
class VideoLatent:
    """A video latent by its latent dimensions. `notes` say in words what was done to it."""

    columns: int
    rows: int
    length: int
    layers: tuple[Layer, ...] = ()
    mask: NoiseMask = None
    notes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Pixels across, once decoded."""
        return self.columns * PIXELS_PER_LATENT

    @property
    def height(self) -> int:
        """Pixels down, once decoded."""
        return self.rows * PIXELS_PER_LATENT

    @property
    def frames(self) -> int:
        """Frames, once decoded."""
        return frames_of(self.length)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The passes that it went through."""
        return tuple(layer.run for layer in self.layers if isinstance(layer, Sampled))

    def holding(self, given: Given, noise: float) -> VideoLatent:
        """The same latent with pictures put in, and this much noise for their latent frames."""
        mask = list(self.mask or (1.0,) * self.length)
        mask[given.start : given.start + given.latents] = [noise] * given.latents
        return replace(self, layers=(*self.layers, given), mask=tuple(mask))

    def noted(self, *notes: str) -> VideoLatent:
        """The same latent with more said about it."""
        return replace(self, notes=(*self.notes, *notes))


@dataclass(frozen=True)
class AudioLatent:
    """A sound latent by its length: an encoded sound, if any, and the passes with their masks."""

    length: int
    source: Sound | None = None
    passes: tuple[tuple[Pass, NoiseMask], ...] = ()
    mask: NoiseMask = None

    @property
    def is_kept(self) -> bool:
        """Whether no part of it may change."""
        return self.mask is not None and all(noise < 1 for noise in self.mask)

    def is_free(self, index: int) -> bool:
        """Whether any pass has drawn a latent frame anew."""
        return any(mask is None or mask[index] >= 1 for _, mask in self.passes)


@dataclass(frozen=True)
class AVLatent:
    """A video and a sound latent sampled together."""

    video: VideoLatent
    audio: AudioLatent


@dataclass(frozen=True)
class Drawn(Footage):
    """The frames that a latent decodes to."""

    latent: VideoLatent

    @classmethod
    def of(cls, latent: VideoLatent) -> Drawn:
        """A latent's frames."""
        return cls(latent.width, latent.height, latent.frames, latent)
