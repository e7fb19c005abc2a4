"""What each frame of a decoded latent shows: given pictures and waves, and how much of each.

A latent frame whose noise mask is below 1 is held: a pass leaves it as it was. A free one is drawn
anew, and the less noise a pass begins with, the more of what was there shows through. After
pictures in place a clip drifts away from the last of them; around a guide it fades into the
guide's picture and is exactly that picture at its frames; under a control it is drawn along it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ltx_worker.sandbox.footage import Footage
from ltx_worker.sandbox.latents import (
    FRAMES_PER_LATENT,
    Doubled,
    Given,
    Layer,
    Sampled,
    frames_of,
    latent_of,
)
from ltx_worker.sandbox.values import Guide

# How much of the picture that a clip drifts away from strength 1 keeps at the last frame.
_KEPT_AT_END = 0.5

# From this much noise on, a pass leaves nothing of what was there; one that begins with less keeps
# this much for each unit of noise squared that it lacks.
_FULL_NOISE = 0.99
_COVERED_BY_NOISE = 0.5

# How many frames away from a guide of strength 1 nothing of it is seen.
_FADE_FRAMES = 8


@dataclass(frozen=True)
class Shown:
    """A frame of a footage; `drift`, 0 to 1, is how far it has grown and slid."""

    footage: Footage
    index: int
    drift: float = 0.0


@dataclass(frozen=True)
class Followed:
    """Waves drawn along a frame of a control."""

    footage: Footage
    index: int


# Parts and their weights; what is missing to 1 is waves.
Mix = dict[Shown | Followed, float]


def kept_below(noise: float) -> float:
    """How much of what was there shows through a pass that begins with this sigma."""
    return 0.0 if noise >= _FULL_NOISE else 1 - _COVERED_BY_NOISE * noise * noise


def mix(layers: Sequence[Layer], frame: int) -> Mix:
    """What a frame shows of a latent with these layers."""
    if not layers:
        return {}
    below = layers[:-1]
    match layers[-1]:
        case Doubled():
            return mix(below, frame // 2)
        case Given() as given if given.start <= latent_of(frame) < given.start + given.latents:
            return {Shown(given.footage, _frame_in(given, frame)): 1.0}
        case Sampled() as sampled:
            return _sampled(below, sampled, frame)
        case _:
            return mix(below, frame)


def _frame_in(given: Given, frame: int) -> int:
    latent = latent_of(frame) - given.start
    # What a guide of 8k+1 frames appends decodes its first picture to eight frames.
    causal = given.footage.frames % FRAMES_PER_LATENT == 1
    if given.start == 0:
        index = frame
    elif causal and latent == 0:
        index = 0
    else:
        index = (latent - causal) * FRAMES_PER_LATENT + causal + (frame - 1) % FRAMES_PER_LATENT
    return min(index, given.footage.frames - 1)


def _sampled(below: Sequence[Layer], sampled: Sampled, frame: int) -> Mix:
    before = mix(below, frame)
    latent = latent_of(frame)
    if sampled.mask and sampled.mask[latent] < 1:
        return before
    new: Mix = _drifting(below, sampled, frame)
    guides = sampled.run.guider.positive.guides
    for guide in guides:
        if guide.control and (covered := _index_in(guide, frame)) is not None:
            followed: Mix = {Followed(guide.footage, covered): 1.0}
            new = followed
    result = _blend(new, before, sampled.kept)
    for guide in guides:
        if not guide.control and (near := _nearness(guide, frame)) > 0:
            nearest = min(max(0, frame - guide.frame), guide.footage.frames - 1)
            result = _blend(result, {Shown(guide.footage, nearest): 1.0}, near)
    return result


def _drifting(below: Sequence[Layer], sampled: Sampled, frame: int) -> Mix:
    """What is left of the pictures in place that a frame comes after."""
    if not sampled.mask:
        return {}
    for layer in reversed(below):
        if isinstance(layer, Given) and layer.in_place and sampled.mask[layer.latents - 1] < 1:
            break
    else:
        return {}
    start = frames_of(layer.latents) - 1
    progress = (frame - start) / max(1, sampled.frames - 1 - start)
    if not 0 < progress <= 1:
        return {}
    strength = 1 - sampled.mask[layer.latents - 1]
    share = (1 - _KEPT_AT_END * strength) * _eased(progress)
    return {Shown(layer.footage, min(start, layer.footage.frames - 1), progress): 1 - share}


def _index_in(guide: Guide, frame: int) -> int | None:
    index = frame - guide.frame
    return index if 0 <= index < guide.footage.frames else None


def _nearness(guide: Guide, frame: int) -> float:
    """1 at a guide's frames, 0 from some frames away on; of a weaker guide from fewer."""
    away = max(guide.frame - frame, frame - guide.frame - guide.footage.frames + 1, 0)
    reach = _FADE_FRAMES * min(1.0, guide.strength)
    return 1 - _eased(min(1.0, away / reach)) if reach else 0.0


def _eased(progress: float) -> float:
    return progress * progress * (3 - 2 * progress)


def _blend(one: Mix, other: Mix, share: float) -> Mix:
    """A mix with this share of another."""
    parts = [*one, *(part for part in other if part not in one)]
    weights = {
        part: one.get(part, 0.0) * (1 - share) + other.get(part, 0.0) * share for part in parts
    }
    return {part: weight for part, weight in weights.items() if weight > 0}
