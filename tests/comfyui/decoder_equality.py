# pyright: basic, reportMissingImports=false
"""Compare the fused video decoder with ComfyUI's own, on tiny random weights.

Run with ComfyUI's own Python in ComfyUI's folder; prints one JSON object:

    python decoder_equality.py [CASE ...]

Without Triton only what falls back is compared. Else kernels run in its interpreter
(`TRITON_INTERPRET=1`), and each case is decoded by both.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import comfyui_on_cpu

# isort: split
import comfy.ldm.lightricks.vae.causal_video_autoencoder as autoencoder
import speed
import tiny_sizes
import torch

speed.install()
from speed import decoder  # noqa: E402 - installed by then

_TOP: list[Any] = ["res_x", {"num_layers": 1, "inject_noise": False}]
_BOTTOM: list[Any] = ["res_x", {"num_layers": 2, "inject_noise": False}]
RESIDUAL: list[Any] = [_BOTTOM, *[["compress_all", {"residual": True, "multiplier": 2}]] * 3, _TOP]
# The order of blocks is the encoder's: the decoder runs them from the end.
MIXED: list[Any] = [
    _BOTTOM,
    ["compress_space", {"multiplier": 2}],
    ["res_x", {"num_layers": 1}],
    ["compress_time", {"multiplier": 2}],
    ["compress_all", {"multiplier": 1}],
    ["compress_all", {"multiplier": 2}],
    _TOP,
]
WIDENING: list[Any] = [["res_x_y", 1], *RESIDUAL]


@dataclass(frozen=True)
class Case:
    """A clip of `latents` [batch, frames, height, width], decoded in blocks of `chunk_bytes`."""

    latents: tuple[int, int, int, int] = (1, 3, 1, 2)
    chunk_bytes: int = 2**14
    dtype: torch.dtype = torch.float32
    changes: tuple[tuple[str, Any], ...] = ()
    blocks: str = "residual"
    buffer: torch.dtype | None = None
    stream: bool = False


_MIRRORED = (("spatial_padding_mode", "reflect"),)
_CAUSAL = (("causal_decoder", True),)
CASES = {
    "whole": Case(chunk_bytes=2**30),
    "in blocks": Case(latents=(1, 3, 2, 3), chunk_bytes=2**13, stream=True),
    "frame by frame": Case(chunk_bytes=1, stream=True),
    "one frame": Case((1, 1, 2, 1)),
    "nine frames": Case((1, 2, 3, 1)),
    "121 frames": Case((1, 16, 1, 1), stream=True),
    "two clips": Case((2, 3, 1, 2), 2**13, stream=True),
    "mirrored": Case((1, 3, 2, 2), 2**13, changes=_MIRRORED),
    "mirrored, whole": Case((2, 2, 2, 3), 2**30, changes=_MIRRORED),
    "causal": Case(changes=_CAUSAL),
    "causal, frame by frame": Case(chunk_bytes=1, changes=_CAUSAL),
    "mixed": Case(blocks="mixed"),
    "mixed, two whole clips": Case((2, 2, 1, 2), 2**30, blocks="mixed"),
    "mixed, frame by frame": Case(chunk_bytes=1, blocks="mixed"),
    "bfloat16": Case(dtype=torch.bfloat16),
    "bfloat16, mirrored": Case((1, 2, 2, 2), dtype=torch.bfloat16, changes=_MIRRORED),
    "bfloat16, mixed": Case(dtype=torch.bfloat16, blocks="mixed"),
    "float32 buffer": Case(dtype=torch.bfloat16, buffer=torch.float32),
}
# ComfyUI's own decoder must serve these, whatever there is.
MISFITS = {
    "widening": Case((1, 2, 1, 1), blocks="widening", stream=True),
    "circular": Case((1, 2, 2, 2), changes=(("spatial_padding_mode", "circular"),)),
    "timestep": Case((1, 2, 1, 1), changes=(("timestep_conditioning", True),), stream=True),
    "layer norm": Case((1, 2, 1, 1), changes=(("norm_layer", "layer_norm"),)),
}
BLOCKS = {"residual": RESIDUAL, "mixed": MIXED, "widening": WIDENING}


def make(case: Case) -> Any:
    """A VAE with weights that keep the scale of what goes through, and biases that matter."""
    config = tiny_sizes.VIDEO_VAE | {"decoder_blocks": BLOCKS[case.blocks]} | dict(case.changes)
    vae = autoencoder.VideoVAE(config=config).to(case.dtype).eval()
    generator = torch.Generator().manual_seed(1)
    for name, values in [*vae.named_parameters(), *vae.named_buffers()]:
        if "std-of-means" in name:
            values.data.fill_(1.5)
        elif values.dim() > 1:
            scale = values[0].numel() ** -0.5
            drawn = torch.randn(values.shape, generator=generator) * scale
            values.data = drawn.to(values.dtype)
        elif values.dim() == 1:
            values.data.copy_(torch.randn(values.shape, generator=generator) * 0.3)
    return vae


def compare(case: Case) -> dict[str, Any]:
    """How far the two results are apart, and which decoder would serve."""
    vae = make(case)
    batch, frames, height, width = case.latents
    shape = (batch, 128, frames, height, width)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(case.dtype)
    autoencoder.get_max_chunk_size = lambda device: case.chunk_bytes

    def decoded(fused: bool) -> torch.Tensor:
        torch.manual_seed(3)  # a timestep's noise
        speed.switches.decoder = fused
        if case.buffer is None:
            return vae.decode(latents)
        buffer = torch.full(vae.decode_output_shape(shape), torch.nan, dtype=case.buffer)
        vae.decode(latents, output_buffer=buffer)
        return buffer

    stock, ours = decoded(False), decoded(True)
    pieces = streamed(vae, latents) if case.stream else [ours]
    caches = [m.temporal_cache_state for m in vae.modules() if hasattr(m, "temporal_cache_state")]
    return {
        "fits": decoder.fits(vae.decoder, latents),
        "precision": str(case.dtype),
        "shapes": [list(stock.shape), list(ours.shape)],
        "types": [str(stock.dtype), str(ours.dtype)],
        "error": error(ours, stock),
        "stream_error": error(torch.cat(pieces, 2), stock),
        "pieces": [piece.shape[2] for piece in pieces] if case.stream else None,
        "caches_left": sum(map(bool, caches)),
    }


def streamed(vae: Any, latents: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(3)
    return list(decoder.decode_stream(vae, latents))


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the expected values; infinite for another shape."""
    if found.shape != expected.shape:
        return float("inf")
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def main() -> None:
    torch.set_num_threads(1)
    result: dict[str, Any] = {"triton": decoder.decoder_kernels is not None, "cases": {}}
    cases = CASES | MISFITS
    with torch.inference_mode():
        for name in comfyui_on_cpu.ARGUMENTS or cases:
            start = time.perf_counter()
            result["cases"][name] = compare(cases[name])
            print(name, f"{time.perf_counter() - start:.1f} s", file=sys.stderr)  # noqa: T201
    print(json.dumps(result))  # noqa: T201


if __name__ == "__main__":
    main()
