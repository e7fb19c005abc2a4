"""The positions of a clip's tokens are computed once for a pass, not in each of its steps.

They follow from the sizes of the latents alone. ComfyUI's computation also copies small tensors to
the GPU, and each such copy waits until the step before is done.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import comfy.ldm.lightricks.av_model as av_model
import torch
from comfy.ldm.lightricks.symmetric_patchifier import latent_to_pixel_coords
from einops import rearrange

from .room import is_roomy
from .switches import switches

# The sizes whose positions a model keeps (0.2 GB for 121 frames of 1280x704): both passes of a job
# and of the job before; those of the pass that runs where memory is short.
_KEPT, _KEPT_WHERE_SHORT = 4, 1
_CACHE = "_ltx_worker_positions"


class Sizes(NamedTuple):
    """In place of the tokens' coordinates: what they follow from."""

    batch: int
    frames: int
    height: int
    width: int
    sound: int
    shift: int
    device: torch.device


def install() -> None:
    """Replace two methods of ComfyUI's class; what has tokens of its own keeps to the originals."""
    model = av_model.LTXAVModel
    process, prepare = model._process_input, model._prepare_positional_embeddings

    @functools.wraps(process)
    def _process_input(
        self: Any, x: Any, keyframe_idxs: Any, denoise_mask: Any, **options: Any
    ) -> Any:
        if switches.transformer and _is_plain(self, x, keyframe_idxs, options):
            return _tokens(self, x, denoise_mask)
        return process(self, x, keyframe_idxs, denoise_mask, **options)

    @functools.wraps(prepare)
    def _prepare_positional_embeddings(
        self: Any, pixel_coords: Any, frame_rate: Any, x_dtype: torch.dtype
    ) -> Any:
        if not isinstance(pixel_coords, Sizes):
            return prepare(self, pixel_coords, frame_rate, x_dtype)
        cache: dict[Any, Any] = self.__dict__.setdefault(_CACHE, {})
        key = (pixel_coords, float(frame_rate), x_dtype)
        found = cache.pop(key, None)
        if found is None:
            found = prepare(self, _coordinates(self, pixel_coords), frame_rate, x_dtype)
            kept = _KEPT if is_roomy() else _KEPT_WHERE_SHORT
            for oldest in list(cache)[: max(0, len(cache) - kept + 1)]:
                del cache[oldest]
        # The last one used is the last to go.
        cache[key] = found
        return found

    model._process_input = _process_input
    model._prepare_positional_embeddings = _prepare_positional_embeddings


def _is_plain(model: Any, x: Any, keyframe_idxs: Any, options: dict[str, Any]) -> bool:
    """Whether the tokens are a clip's and its sound's, without guides or references."""
    return (
        isinstance(x, (list, tuple))
        and len(x) == 2
        and x[1].numel() > 0
        and keyframe_idxs is None
        and options.get("ref_audio") is None
        and tuple(model.patchifier.patch_size) == (1, 1, 1)
    )


def _tokens(model: Any, x: Any, denoise_mask: torch.Tensor | None) -> Any:
    video, sound = x
    batch, _, frames, height, width = video.shape
    sizes = Sizes(
        batch, frames, height, width, sound.shape[2], model.a_patchifier.shift, video.device
    )
    tokens = [
        model.patchify_proj(rearrange(video, "b c f h w -> b (f h w) c")),
        model.audio_patchify_proj(rearrange(sound, "b c t f -> b t (c f)")),
    ]
    facts = {"orig_shape": list(video.shape), "has_spatial_mask": _is_spatial(denoise_mask)}
    return tokens, sizes, facts


def _is_spatial(denoise_mask: torch.Tensor | None) -> bool:
    """Whether a mask differs within a frame."""
    if denoise_mask is None or denoise_mask.numel() == 0:
        return False
    frames = denoise_mask[0, 0].flatten(1)
    return bool((frames.amin(1) != frames.amax(1)).any())


def _coordinates(model: Any, sizes: Sizes) -> list[torch.Tensor]:
    """As ComfyUI has them: of the video's tokens in pixels, of the sound's in seconds."""
    grid = model.patchifier.get_latent_coords(
        sizes.frames, sizes.height, sizes.width, sizes.batch, sizes.device
    )
    pixels = latent_to_pixel_coords(
        latent_coords=grid,
        scale_factors=model.vae_scale_factors,
        causal_fix=model.causal_temporal_positioning,
    )
    sound = torch.empty((sizes.batch, 1, sizes.sound, 1), device=sizes.device)
    return [pixels, model.a_patchifier.patchify(sound)[1]]
