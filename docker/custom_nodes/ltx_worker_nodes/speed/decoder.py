"""The video decoder with channels innermost and everything between two convolutions in one kernel.

ComfyUI's decoder streams too, but converts every activation to cuDNN's layout and back, copies it
to put cached frames in front, and adds each bias in a pass of its own: half of its time. Here a
block of frames goes through layers that read and write what cuDNN does. A decoder that does not fit
is ComfyUI's from the first frame to the last.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterator
from typing import Any

import comfy.ldm.lightricks.vae.causal_video_autoencoder as autoencoder
import comfy.model_management
import comfy.ops
import torch
from comfy.ldm.lightricks.vae.pixel_norm import PixelNorm

from .switches import switches

try:
    from . import decoder_kernels, kernels
    from .decoder_layers import Input, Layer, Output, Residual, Upsampling, through
    from .self_check import kernels_work
except ImportError:  # there is no Triton: ComfyUI's own decoder serves
    decoder_kernels = None

# A block of frames may have so many times the bytes that ComfyUI allows one. Each block costs
# the frames that it leaves to the next and a hundred launches.
_BLOCK = 2
_PIECE_FRAMES = 16
_KERNEL = (3, 3, 3)


def install() -> None:
    """Replace the decoder's method and its blocks'; the originals serve what does not fit."""
    if decoder_kernels is None:
        raise ImportError("Triton is missing")
    stock_decoder = autoencoder.Decoder.forward_orig
    stock_block = autoencoder.ResnetBlock3D.forward

    @functools.wraps(stock_decoder)
    def forward_orig(
        self: Any, sample: torch.Tensor, timestep: Any = None,
        output_buffer: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        if torch.is_grad_enabled() or not fits(self, sample):
            return stock_decoder(self, sample, timestep, output_buffer)
        shape = self.decode_output_shape(sample.shape)
        if output_buffer is None:
            device = comfy.model_management.intermediate_device()
            output_buffer = torch.empty(shape, dtype=sample.dtype, device=device)
        if output_buffer.shape != shape or not output_buffer.is_floating_point():
            return stock_decoder(self, sample, timestep, output_buffer)
        _decode_into(self, sample, output_buffer)
        return output_buffer

    @functools.wraps(stock_block)
    def forward(
        self: Any, input_tensor: torch.Tensor, causal: bool = True, timestep: Any = None
    ) -> torch.Tensor:
        if switches.decoder and _block_fits(self, input_tensor) and kernels_work("decoder"):
            return _block_forward(self, input_tensor, causal)
        return stock_block(self, input_tensor, causal, timestep)

    autoencoder.Decoder.forward_orig = forward_orig
    autoencoder.ResnetBlock3D.forward = forward


@torch.no_grad()
def decode_stream(vae: Any, latents: torch.Tensor) -> Iterator[torch.Tensor]:
    """What `VideoVAE.decode` returns, piece by piece as it is ready, in display order.

    `latents` is [batch, 128, frames, height, width] in the VAE's type and on its device, as
    `VideoVAE.decode` takes it (not yet un-normalised). Each piece is a tensor of its own,
    [batch, 3, at most 16 frames, height, width], about -1 to 1. A decoder that does not fit gives
    the whole clip in one piece.
    """
    if vae.timestep_conditioning or not fits(vae.decoder, latents):
        yield vae.decode(latents)
        return
    latents = vae.per_channel_statistics.un_normalize(latents)
    for pixels, bias in _decoded(vae.decoder, latents):
        yield _piece(vae.decoder, pixels, bias)


# The decoder


def _decode_into(decoder: Any, latents: torch.Tensor, output: torch.Tensor) -> None:
    """Fill [batch, 3, frames, height, width] of any float type, on any device."""
    start = 0
    for pixels, bias in _decoded(decoder, latents):
        frames = output[:, :, start : start + pixels.shape[1]]
        if frames.device == pixels.device:
            decoder_kernels.unpatchify(pixels, bias, decoder.patch_size, frames)
        else:
            frames.copy_(_piece(decoder, pixels, bias))
        start += pixels.shape[1]


def _piece(decoder: Any, pixels: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    batch, frames, height, width, channels = pixels.shape
    patch = decoder.patch_size
    out = pixels.new_empty(batch, channels // patch**2, frames, height * patch, width * patch)
    decoder_kernels.unpatchify(pixels, bias, patch, out)
    return out


def _decoded(decoder: Any, latents: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The last convolution's results, at most 16 frames each, and the bias they lack."""
    layers: list[Layer] = [Input(decoder.conv_in, decoder.causal)]
    for block in decoder.up_blocks:
        if isinstance(block, autoencoder.DepthToSpaceUpsample):
            layers.append(Upsampling(block, decoder.causal))
        else:
            layers += [Residual(inner, decoder.causal) for inner in block.res_blocks]
    output = Output(decoder, decoder.causal)
    layers.append(output)
    max_bytes = autoencoder.get_max_chunk_size(latents.device) * _BLOCK
    block = latents.permute(0, 2, 3, 4, 1).contiguous()
    for pixels in through(layers, 0, block, True, max_bytes):
        for part in pixels.split(_PIECE_FRAMES, 1):
            yield part, output.bias


# What fits


def fits(decoder: Any, latents: torch.Tensor) -> bool:
    return (
        switches.decoder
        and decoder_kernels is not None
        and kernels.run_on(latents)
        and latents.dim() == 5
        and latents.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and latents.numel() > 0
        and not decoder.training
        and not decoder.timestep_conditioning
        and not comfy.ops.NVIDIA_MEMORY_CONV_BUG_WORKAROUND
        and _is_pixel_norm(decoder.conv_norm_out)
        and all(_layer_fits(block) for block in decoder.up_blocks)
        and all(_module_fits(module, latents) for module in decoder.modules())
        and kernels_work("decoder")
    )


def _layer_fits(block: Any) -> bool:
    if isinstance(block, autoencoder.UNetMidBlock3D):
        return not block.timestep_conditioning and all(map(_is_plain, block.res_blocks))
    if not isinstance(block, autoencoder.DepthToSpaceUpsample):
        return False
    parts = math.prod(block.stride)
    return (
        all(step in (1, 2) for step in block.stride)
        and block.conv.out_channels % parts == 0
        and (not block.residual or block.conv.in_channels % parts == 0)
    )


def _is_plain(block: Any) -> bool:
    return (
        _is_pixel_norm(block.norm1)
        and _is_pixel_norm(block.norm2)
        and not block.timestep_conditioning
        and not block.inject_noise
        and isinstance(block.conv_shortcut, torch.nn.Identity)
    )


def _is_pixel_norm(norm: Any) -> bool:
    return isinstance(norm, PixelNorm) and norm.dim == 1


def _module_fits(module: Any, latents: torch.Tensor) -> bool:
    """Whether no other node changed what it does, and a convolution is of the usual kind."""
    if "forward" in vars(module):
        return False
    if isinstance(module, autoencoder.CausalConv3d):
        return isinstance(module.conv, torch.nn.Conv3d)
    if not isinstance(module, torch.nn.Conv3d):
        return True
    mirrors = module.padding_mode == "reflect" and min(latents.shape[3:]) > 1
    return (
        module.kernel_size == _KERNEL
        and module.stride == module.dilation == (1, 1, 1)
        and module.padding == (0, 1, 1)
        and module.groups == 1
        and module.bias is not None
        and (module.padding_mode == "zeros" or mirrors)
    )


# ComfyUI's own blocks, of the encoder and of decoders that do not fit


def _block_fits(block: Any, x: torch.Tensor) -> bool:
    return (
        kernels.run_on(x)
        and x.dim() == 5
        and x.shape[2] > 0
        and _is_plain(block)
        and not block.training
    )


def _block_forward(block: Any, x: torch.Tensor, causal: bool) -> torch.Tensor:
    hidden = block.conv1(_activated(block.norm1, x), causal=causal)
    hidden = block.conv2(_activated(block.norm2, hidden), causal=causal)
    # The convolutions hold frames back until their neighbours come: the residual waits with them.
    waiting = block.temporal_cache_state
    thread = threading.get_ident()
    waiting[thread] = autoencoder.add_exchange_cache(hidden, waiting.get(thread), x, dim=2)
    return hidden


def _activated(norm: PixelNorm, x: torch.Tensor) -> torch.Tensor:
    if x.shape[2] == 0:
        return x
    if not decoder_kernels.has_planes(x):
        x = x.contiguous()
    if x.shape[1] % 32:
        return torch.nn.functional.silu(norm(x))
    return decoder_kernels.pixel_norm_silu(x, norm.eps)
