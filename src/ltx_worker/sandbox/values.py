"""What flows along a graph's links in the sandbox: descriptions in place of tensors.

Every value is frozen and its `repr` is its identity: two values with the same `repr` decode to
the same picture and the same sound.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ltx_worker.sandbox.footage import Footage
from ltx_worker.sandbox.sound import Sound


@dataclass(frozen=True)
class Model:
    """A checkpoint with LoRAs on it, (name, strength) in the order they were applied.

    `windowed` says that it samples in context windows.
    """

    checkpoint: str
    loras: tuple[tuple[str, float], ...] = ()
    windowed: bool = False

    def with_lora(self, name: str, strength: float) -> Model:
        """The same model with one more LoRA; strength 0 changes nothing, as in ComfyUI."""
        if not strength:
            return self
        return Model(self.checkpoint, (*self.loras, (name, strength)), self.windowed)


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
    """An upscaler for latents."""

    name: str


@dataclass(frozen=True)
class ICLoRAParameters:
    """How many times smaller an IC-LoRA's control is than the clip, in each direction."""

    downscale_factor: int


@dataclass(frozen=True)
class Mask:
    """A mask of one value: 1 is free to change, 0 is kept."""

    value: float


@dataclass(frozen=True)
class Guide:
    """Pictures that a pass is held to from `frame` on.

    `tokens` is what the guide adds to the sequence at the size of its latent. A control is
    followed rather than shown.
    """

    footage: Footage
    frame: int
    strength: float
    tokens: int
    control: bool


@dataclass(frozen=True)
class Conditioning:
    """An encoded text; `zeroed` stands for the empty guidance of ConditioningZeroOut."""

    encoder: TextEncoder
    text: str
    frame_rate: float | None = None
    zeroed: bool = False
    guides: tuple[Guide, ...] = ()


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


@dataclass(frozen=True)
class CFGGuider(Guider):
    """One guidance scale for picture and sound."""

    cfg: float


@dataclass(frozen=True)
class Guidance:
    """The guidance of one modality, "VIDEO" or "AUDIO"."""

    modality: str
    cfg: float
    stg: float
    perturb_attn: bool
    rescale: float
    modality_scale: float
    skip_step: int
    cross_attn: bool


@dataclass(frozen=True)
class Guidances:
    """The guidance of each modality that has one."""

    each: tuple[Guidance, ...]


@dataclass(frozen=True)
class MultimodalGuider(Guider):
    """A guidance for each modality; `skip_blocks` are the blocks that STG perturbs."""

    guidances: Guidances
    skip_blocks: tuple[int, ...]


@dataclass(frozen=True)
class Pass:
    """One run of a sampler: all that its result depends on but the latent."""

    noise: Noise
    sampler: Sampler
    sigmas: Sigmas
    guider: Guider


@dataclass(frozen=True)
class VideoFile:
    """A video file that nothing has looked into yet."""

    path: Path


@dataclass(frozen=True)
class Clip:
    """Frames, a rate and perhaps sound: what SaveVideo writes."""

    footage: Footage
    fps: Fraction
    sound: Sound | None = None


def seed_of(value: Any) -> int:
    """A 64-bit number that depends on nothing but what a value stands for."""
    return int.from_bytes(hashlib.sha256(repr(value).encode()).digest()[:8], "big")
