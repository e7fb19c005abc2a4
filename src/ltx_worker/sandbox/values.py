"""What flows along a graph's links in the sandbox: descriptions in place of tensors.

Every value is frozen and its `repr` is its identity: two values with the same `repr` decode to
the same picture and the same sound.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

# Geometry of the model's latents: of the video autoencoder and of the audio one.
PIXELS_PER_LATENT = 32
FRAMES_PER_LATENT = 8
AUDIO_LATENTS_PER_S = 25


@dataclass(frozen=True)
class Model:
    """A checkpoint with LoRAs on it: (name, strength), in the order they were applied."""

    checkpoint: str
    loras: tuple[tuple[str, float], ...] = ()

    def with_lora(self, name: str, strength: float) -> Model:
        """The same model with one more LoRA; strength 0 changes nothing, as in ComfyUI."""
        return Model(self.checkpoint, (*self.loras, (name, strength))) if strength else self


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder and the checkpoint whose projection it uses."""

    name: str
    checkpoint: str


@dataclass(frozen=True)
class Vae:
    """The video part of a checkpoint's autoencoder."""

    checkpoint: str


@dataclass(frozen=True)
class AudioVae:
    """The sound part of a checkpoint's autoencoder, and the rate of its vocoder in Hz."""

    checkpoint: str
    sample_rate: int


@dataclass(frozen=True)
class Upscaler:
    """A spatial upscaler for latents."""

    name: str


@dataclass(frozen=True)
class Conditioning:
    """An encoded text; `zeroed` stands for the empty guidance of ConditioningZeroOut."""

    encoder: TextEncoder
    text: str
    frame_rate: float | None = None
    zeroed: bool = False


@dataclass(frozen=True)
class Noise:
    """The seed of a pass's noise."""

    seed: int


@dataclass(frozen=True)
class Sampler:
    """A sampler by name."""

    name: str


@dataclass(frozen=True)
class Sigmas:
    """A noise schedule; a pass takes one step fewer than it has values."""

    values: tuple[float, ...]

    @property
    def steps(self) -> int:
        """The number of sampling steps."""
        return max(0, len(self.values) - 1)


@dataclass(frozen=True)
class Guider:
    """A model and what it is told."""

    model: Model
    positive: Conditioning
    negative: Conditioning
    cfg: float


@dataclass(frozen=True)
class Pass:
    """One run of a sampler: all that its result depends on but the latent."""

    noise: Noise
    sampler: Sampler
    sigmas: Sigmas
    guider: Guider


@dataclass(frozen=True)
class Still:
    """A picture: RGB, height x width x 3, 8 bits. Its digest stands for its pixels."""

    digest: str
    pixels: Pixels = field(repr=False, compare=False)

    @classmethod
    def of(cls, pixels: Pixels) -> Still:
        """A still of these pixels."""
        return cls(hashlib.sha256(pixels.tobytes()).hexdigest()[:16], pixels)

    @property
    def width(self) -> int:
        """Pixels across."""
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        """Pixels down."""
        return self.pixels.shape[0]


@dataclass(frozen=True)
class VideoLatent:
    """A video latent by its latent dimensions.

    `first` is the picture put in as frame 0, `strength` how much the clip keeps to it, 0 to 1.
    """

    columns: int
    rows: int
    length: int
    passes: tuple[Pass, ...] = ()
    first: Still | None = None
    strength: float = 0.0

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
        """Frames, once decoded: the first latent is one frame, each other one eight."""
        return (self.length - 1) * FRAMES_PER_LATENT + 1


@dataclass(frozen=True)
class AudioLatent:
    """A sound latent by its length."""

    length: int
    passes: tuple[Pass, ...] = ()

    @property
    def seconds(self) -> float:
        """How long it lasts, once decoded."""
        return self.length / AUDIO_LATENTS_PER_S


@dataclass(frozen=True)
class AVLatent:
    """A video and a sound latent sampled together."""

    video: VideoLatent
    audio: AudioLatent


@dataclass(frozen=True)
class Footage:
    """Decoded frames, drawn when they are saved."""

    width: int
    height: int
    frames: int
    passes: tuple[Pass, ...]
    first: Still | None = None
    strength: float = 1.0


@dataclass(frozen=True)
class Sound:
    """Decoded sound, made when it is saved."""

    seconds: float
    sample_rate: int
    passes: tuple[Pass, ...]


@dataclass(frozen=True)
class Clip:
    """Frames, a rate and perhaps sound: what SaveVideo writes."""

    footage: Footage
    fps: Fraction
    sound: Sound | None = None


def seed_of(value: Any) -> int:
    """A 64-bit number that depends on nothing but what a value stands for."""
    return int.from_bytes(hashlib.sha256(repr(value).encode()).digest()[:8], "big")
