# pyright: basic, reportMissingImports=false
"""Compare the transformer with its speed-ups and without, on tiny random weights of both models.

Run with ComfyUI's own Python in ComfyUI's folder; prints one JSON object:

    python transformer_equality.py

Each case runs two steps of one pass, so that what is kept from the first is used. Without Triton
only the positions are ours; else kernels run in its interpreter (`TRITON_INTERPRET=1`).
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import comfyui_on_cpu  # noqa: F401 - sets up ComfyUI

# isort: split
import comfy.ldm.lightricks.av_model as av_model
import comfy.ops
import speed
import tiny_sizes
import torch

speed.install()
from speed import positions  # noqa: E402 - installed by then

try:
    from speed import transformer
except ImportError:
    transformer = None

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
STEPS = (0.9, 0.6)
# Latents [frames, height, width] and which of their frames or parts are kept as they are.
CLIPS: dict[str, tuple[tuple[int, int, int], str]] = {
    "clip": ((3, 4, 5), ""),
    "longer clip": ((5, 4, 5), ""),
    "first frame kept": ((3, 4, 5), "frame"),
    "part of a frame kept": ((3, 4, 5), "part"),
}


def model_of(config: dict[str, Any], dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    model = av_model.LTXAVModel(
        **config, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init
    )
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 400
            parameter.normal_(0, fan_in**-0.5)
    return model.to(dtype).eval()


def mask_of(extent: tuple[int, int, int], kept: str) -> torch.Tensor | None:
    if not kept:
        return None
    mask = torch.ones(1, 1, *extent)
    mask[:, :, 0, : 2 if kept == "part" else None] = 0
    return mask


@torch.no_grad()
def passed(model: Any, extent: tuple[int, int, int], kept: str, fast: bool) -> list[torch.Tensor]:
    """Video and sound after the steps of one pass."""
    speed.switches.transformer = fast
    dtype = next(model.parameters()).dtype
    draw = torch.Generator().manual_seed(1)
    width = model.caption_channels * 2
    if model.caption_proj_before_connector:
        width = model.inner_dim + model.audio_inner_dim
    latents = [
        torch.randn(1, 128, *extent, generator=draw).to(dtype),
        torch.randn(1, 8, 20, 16, generator=draw).to(dtype),
    ]
    text = torch.randn(1, 32, width, generator=draw).to(dtype)
    mask = mask_of(extent, kept)
    options = {"uuids": [uuid.uuid4()]}
    for sigma in STEPS:
        times: Any = torch.tensor([sigma])
        if mask is not None:
            times = (
                model.patchifier.patchify(mask * sigma)[0],
                torch.full((1, 20), sigma),
            )
        # ComfyUI, too, hands over a new tensor of the text in each step.
        velocities = model(
            [latent.clone() for latent in latents], times, text.clone(), None, 24.0, dict(options),
            denoise_mask=mask,
        )  # fmt: skip
        latents = [
            latent - 0.2 * velocity for latent, velocity in zip(latents, velocities, strict=True)
        ]
    return latents


def compared(model: Any, extent: tuple[int, int, int], kept: str) -> dict[str, Any]:
    stock, ours = (passed(model, extent, kept, fast) for fast in (False, True))
    errors = [
        float((a.float() - b.float()).norm() / b.float().norm())
        for a, b in zip(ours, stock, strict=True)
    ]
    kept_positions = len(model.__dict__.get(positions._CACHE, {}))
    return {"errors": errors, "kept_positions": kept_positions}


def cases() -> Iterator[tuple[str, dict[str, Any], torch.dtype, str]]:
    """All of them; with the interpreter, which is slow, what differs between the kernels' uses."""
    for family, config in (
        ("ltx-2", tiny_sizes.TRANSFORMER),
        ("ltx-2.3", tiny_sizes.TRANSFORMER_23),
    ):
        for dtype in (torch.float32, torch.bfloat16):
            for clip in CLIPS:
                if not IS_INTERPRETED or clip == "first frame kept":
                    yield f"{family}, {dtype}, {clip}", config, dtype, clip


def main() -> None:
    if transformer is not None:
        # On a CPU nothing would be kept.
        transformer.is_roomy = lambda: True
    results = {
        name: compared(model_of(config, dtype), *CLIPS[clip])
        for name, config, dtype, clip in cases()
    }
    sys.stdout.write(json.dumps({"triton": transformer is not None, "cases": results}))


if __name__ == "__main__":
    main()
