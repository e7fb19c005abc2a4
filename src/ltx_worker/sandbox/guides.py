"""Nodes of the sandbox that hold a clip to pictures: in place, or as guides beside the clip."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ltx_worker.sandbox import latents as la
from ltx_worker.sandbox import values as v
from ltx_worker.sandbox.context import Context, Inputs, get
from ltx_worker.sandbox.footage import Footage, part_of

# What the file name of an IC-LoRA holds whose metadata say that its control is half as large.
_HALF_SIZE = "ref0.5"


def image_in_place(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVImgToVideoInplace: 8k+1 pictures become the first k+1 latents; others are dropped.

    Raises RuntimeError for more pictures than the clip has frames.
    """
    latent = get(inputs, "latent", la.VideoLatent)
    if inputs.get("bypass"):
        return (latent,)
    pictures, strength = get(inputs, "image", Footage), get(inputs, "strength", float)
    count = la.latents_of(pictures.frames)
    if count > latent.length:
        raise RuntimeError(
            f"The expanded size of the tensor ({latent.length}) must match the existing size "
            f"({count}) at non-singleton dimension 2."
        )
    given = la.Given(part_of(pictures, 0, la.frames_of(count)), 0, count, in_place=True)
    new = latent.frames - given.footage.frames
    note = "first frame given" if count == 1 else f"extended by {new} frames"
    return (latent.holding(given, 1 - strength).noted(note),)


def ic_lora_parameters(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """GetICLoRAParameters: those of the LoRA that was applied last, as ComfyUI 0.27 reads them."""
    loras = get(inputs, "iclora_model", v.Model).loras
    return (v.ICLoRAParameters(2 if loras and _HALF_SIZE in loras[-1][0] else 1),)


def add_guide(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVAddGuide: the pictures' latents behind those of the clip, and both conditionings told.

    Raises TypeError for a joint latent, ValueError for a size that the control's cannot divide,
    and AssertionError for pictures that go beyond the end.
    """
    latent = get(inputs, "latent", la.VideoLatent)
    get(inputs, "vae", v.Vae)
    parameters = inputs.get("iclora_parameters") or v.ICLoRAParameters(1)
    _require_divisible(latent, parameters.downscale_factor)
    positive = get(inputs, "positive", v.Conditioning)
    strength = get(inputs, "strength", float)
    own = latent.length - guide_latents(positive, latent)
    frame = get(inputs, "frame_idx", int)
    if frame < 0:
        frame = max(la.frames_of(own) + frame, 0)
    pictures, count = _encoded(get(inputs, "image", Footage), frame)
    if pictures.frames > 1 and frame:
        frame = (frame - 1) // la.FRAMES_PER_LATENT * la.FRAMES_PER_LATENT + 1
    if la.latent_of(frame) + count > latent.length:
        raise AssertionError("Conditioning frames exceed the length of the latent sequence.")
    control = inputs.get("iclora_parameters") is not None and pictures.frames > 1
    guide = v.Guide(pictures, frame, strength, count * latent.columns * latent.rows, control)
    longer = replace(
        latent,
        length=latent.length + count,
        mask=None if latent.mask is None else (*latent.mask, *(1.0,) * count),
    )
    given = la.Given(pictures, latent.length, count)
    return (
        *(_guided(inputs, name, guide) for name in ("positive", "negative")),
        longer.holding(given, max(0.0, 1 - strength)),
    )


def _require_divisible(latent: la.VideoLatent, factor: int) -> None:
    if latent.columns % factor or latent.rows % factor:
        raise ValueError(
            f"Latent spatial size {latent.columns}x{latent.rows} must be divisible by "
            f"reference_downscale_factor {factor} from the IC-LoRA parameters."
        )


def _encoded(pictures: Footage, frame: int) -> tuple[Footage, int]:
    """The pictures that a guide takes, and their latents.

    From frame 0 on, or alone, they are 8k+1; further on in the clip 8k.
    """
    if frame == 0 or pictures.frames <= la.FRAMES_PER_LATENT:
        count = la.latents_of(pictures.frames)
        return part_of(pictures, 0, la.frames_of(count)), count
    count = pictures.frames // la.FRAMES_PER_LATENT
    return part_of(pictures, 0, count * la.FRAMES_PER_LATENT), count


def _guided(inputs: Inputs, name: str, guide: v.Guide) -> v.Conditioning:
    conditioning = get(inputs, name, v.Conditioning)
    return replace(conditioning, guides=(*conditioning.guides, guide))


def guide_latents(conditioning: v.Conditioning, latent: la.VideoLatent) -> int:
    """How many of a latent's last frames are guides; at another size than that of the guides the
    number comes out wrong, as it does in ComfyUI."""
    tokens = sum(guide.tokens for guide in conditioning.guides)
    return tokens // (latent.columns * latent.rows)


def crop_guides(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """LTXVCropGuides: without the guides that the positive conditioning tells of."""
    latent = get(inputs, "latent", la.VideoLatent)
    told = [get(inputs, name, v.Conditioning) for name in ("positive", "negative")]
    count = guide_latents(told[0], latent)
    if not count:
        return *told, latent
    mask = latent.mask[:-count] if latent.mask else None
    cropped = replace(latent, length=latent.length - count, mask=mask)
    return *(replace(conditioning, guides=()) for conditioning in told), cropped
