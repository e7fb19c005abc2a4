"""Nodes of the sandbox that say what guides a pass, and sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from ltx_worker.sandbox import latents as la
from ltx_worker.sandbox import values as v
from ltx_worker.sandbox.context import Context, Inputs, get
from ltx_worker.sandbox.footage import Footage, part_of
from ltx_worker.sandbox.generation import family
from ltx_worker.sandbox.guides import guide_latents
from ltx_worker.sandbox.mixing import kept_below

# How much of a guiding latent LTXVLoopingSampler keeps at guiding strength 1.
_KEPT_OF_GUIDING = 0.85


def cfg_guider(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """CFGGuider."""
    return (v.CFGGuider(*_told(inputs), get(inputs, "cfg", float)),)


def guider_parameters(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """GuiderParameters: one modality's, beside those of the other.

    Raises ValueError for a modality that has some already.
    """
    others: tuple[v.Guidance, ...] = ()
    if inputs.get("parameters") is not None:
        others = get(inputs, "parameters", v.Guidances).each
    modality = get(inputs, "modality", str)
    if any(other.modality == modality for other in others):
        raise ValueError(f"Modality {modality} already exists in parameters")
    numbers = {
        name: get(inputs, name, float) for name in ("cfg", "stg", "rescale", "modality_scale")
    }
    switches = {name: bool(inputs[name]) for name in ("perturb_attn", "cross_attn")}
    guidance = v.Guidance(modality, skip_step=get(inputs, "skip_step", int), **numbers, **switches)
    return (v.Guidances((*others, guidance)),)


def multimodal_guider(inputs: Inputs, _context: Context) -> tuple[Any, ...]:
    """MultimodalGuider. Raises ValueError for blocks that are no numbers."""
    blocks = tuple(int(part) for part in get(inputs, "skip_blocks", str).split(",") if part.strip())
    return (v.MultimodalGuider(*_told(inputs), get(inputs, "parameters", v.Guidances), blocks),)


def _told(inputs: Inputs) -> tuple[v.Model, v.Conditioning, v.Conditioning]:
    positive, negative = (get(inputs, name, v.Conditioning) for name in ("positive", "negative"))
    return get(inputs, "model", v.Model), positive, negative


def sample(inputs: Inputs, context: Context) -> tuple[Any, ...]:
    """SamplerCustomAdvanced: one more pass over a latent; both slots hold the result.

    Raises RuntimeError when the text was encoded for a model of another family, and what
    MultimodalGuider fails with.
    """
    run = _pass(inputs)
    latent = inputs["latent_image"]
    if not isinstance(latent, la.AVLatent):
        latent = get(inputs, "latent_image", la.VideoLatent)
    _require_one_family(run.guider)
    steps = run.sigmas.steps
    if not steps:
        return latent, latent
    if isinstance(run.guider, v.MultimodalGuider):
        _require_multimodal(run.guider, latent)
    for step in range(steps):
        context.step(step + 1, steps)
    sampled = (
        _sampled_together(latent, run) if isinstance(latent, la.AVLatent) else _sampled(latent, run)
    )
    return sampled, sampled


def _pass(inputs: Inputs) -> v.Pass:
    return v.Pass(
        get(inputs, "noise", v.Noise),
        get(inputs, "sampler", v.Sampler),
        get(inputs, "sigmas", v.Sigmas),
        get(inputs, "guider", v.Guider),
    )


def _require_one_family(guider: v.Guider) -> None:
    model = guider.model.checkpoint
    for conditioning in (guider.positive, guider.negative):
        encoder = conditioning.encoder.checkpoint
        if len({family(model), family(encoder)} - {None}) > 1:
            raise RuntimeError(f"{model} cannot read a text that was encoded for {encoder}")


def _require_multimodal(guider: v.MultimodalGuider, latent: la.AVLatent | la.VideoLatent) -> None:
    if isinstance(latent, la.VideoLatent):
        raise ValueError("not enough values to unpack (expected 2, got 1)")  # noqa: TRY004  as it does
    # A modality without guidance of its own is perturbed along with the other.
    perturbs_video = all(
        each.perturb_attn for each in guider.guidances.each if each.modality == "VIDEO"
    )
    uses_stg = any(each.stg for each in guider.guidances.each) and guider.skip_blocks
    if uses_stg and perturbs_video and any(g.strength < 1 for g in guider.positive.guides):
        video = latent.video
        tokens = video.columns * video.rows * video.length
        own = tokens - sum(guide.tokens for guide in guider.positive.guides)
        raise RuntimeError(
            f"The expanded size of the tensor ({own}) must match the existing size ({tokens}) at "
            "non-singleton dimension 1."
        )


def _sampled_together(latent: la.AVLatent, run: v.Pass) -> la.AVLatent:
    video, audio = _sampled(latent.video, run), latent.audio
    if audio.is_kept:
        video = video.noted("sound given")
    return la.AVLatent(video, replace(audio, passes=(*audio.passes, (run, audio.mask))))


def _sampled(latent: la.VideoLatent, run: v.Pass, kept: float | None = None) -> la.VideoLatent:
    frames = la.frames_of(latent.length - guide_latents(run.guider.positive, latent))
    if kept is None:
        kept = kept_below(run.sigmas.values[0])
    sampled = la.Sampled(run, latent.mask, frames, kept)
    noted = latent.noted(*_notes(latent, run, kept))
    return replace(noted, layers=(*latent.layers, sampled))


def _notes(latent: la.VideoLatent, run: v.Pass, kept: float) -> Iterator[str]:
    """What a pass does that t2v does not."""
    guides = run.guider.positive.guides
    frames = [guide.frame for guide in guides if guide.footage.frames == 1]
    if frames:
        yield f"keyframes at {', '.join(str(frame) for frame in frames)}"
    for guide in guides:
        if guide.footage.frames > 1:
            last = guide.frame + guide.footage.frames - 1
            yield "control" if guide.control else f"frames {guide.frame}-{last} given"
    if latent.layers and not (latent.passes or latent.mask or latent.notes) and kept:
        yield "restyle"
    if isinstance(run.guider, v.MultimodalGuider):
        yield "multimodal guidance"
    if run.guider.model.windowed:
        yield "context windows"
    for name, _ in run.guider.model.loras:
        if "distilled" not in name:
            yield PurePosixPath(name).stem


def sample_looping(inputs: Inputs, context: Context) -> tuple[Any, ...]:
    """LTXVLoopingSampler: all tiles' steps, one tile after another; a video latent without a mask.

    Raises ValueError for a joint latent, and AssertionError when the guiding latents are fewer or
    more than the latents.
    """
    if isinstance(inputs["latents"], la.AVLatent):
        raise ValueError("LTXVLoopingSampler takes a video latent, not a joint one")  # noqa: TRY004  as it does
    run = _pass(inputs)
    _require_one_family(run.guider)
    latent = get(inputs, "latents", la.VideoLatent)
    guiding = inputs.get("optional_guiding_latents")
    note, kept = "looped", None
    if guiding is not None:
        guiding = get(inputs, "optional_guiding_latents", la.VideoLatent)
        assert guiding.length == latent.length, "the guiding latents are not as many as the latents"
        note, kept = "detailer", _KEPT_OF_GUIDING * get(inputs, "guiding_strength", float)
        latent = replace(latent, layers=guiding.layers, notes=(*guiding.notes, *latent.notes))
    latent = replace(latent.noted(note), mask=None)
    if inputs.get("optional_cond_images") is not None:
        pictures = get(inputs, "optional_cond_images", Footage)
        first = la.Given(part_of(pictures, 0, 1), 0, 1, in_place=True)
        latent = latent.holding(first, 1 - get(inputs, "cond_image_strength", float))
    for _ in range(_tiles(inputs, latent.length)):
        for step in range(run.sigmas.steps):
            context.step(step + 1, run.sigmas.steps)
    return (replace(_sampled(latent, run, kept), mask=None),)


def _tiles(inputs: Inputs, length: int) -> int:
    """How many tiles are sampled; in time they overlap."""
    size, overlap = (
        get(inputs, name, int) // la.FRAMES_PER_LATENT
        for name in ("temporal_tile_size", "temporal_overlap")
    )
    ends = range(size, length + size - overlap, size - overlap)
    return len(ends) * get(inputs, "horizontal_tiles", int) * get(inputs, "vertical_tiles", int)
