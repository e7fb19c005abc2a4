# pyright: basic, reportMissingImports=false
"""Natural-like frames in place of those that random weights decode to.

The decoder does all its work; what its last convolution returns is then replaced, so that any way
of reading the decoder (whole, in chunks, in tiles, streamed) gets these frames. Each clip has
textures that are sums of moving sinusoids at several scales, sharp-edged rectangles that pan, and
grain of standard deviation 0.02. What moves where depends on the latent: each seed has its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import comfy.ldm.lightricks.vae.causal_video_autoencoder as autoencoder
import comfy.sd
import torch

GRAIN = 0.02
# Textures: wavelengths in pixels, and how much each channel swings with each.
WAVELENGTHS = (900.0, 620.0, 410.0, 230.0, 140.0, 75.0, 38.0, 21.0)
RECTANGLES = 6
_PARAMETERS = 256
# Frames made at a time: bounds what the arithmetic takes beside the result.
_BATCH = 16


def install() -> None:
    """Hook every decoder that is built from now on."""
    build = autoencoder.Decoder.__init__

    @functools.wraps(build)
    def build_and_hook(self: Any, *args: Any, **options: Any) -> None:
        build(self, *args, **options)
        clip = DecodedClip(self.patch_size)
        self.conv_in.register_forward_pre_hook(clip.begin)
        self.conv_out.register_forward_hook(clip.replace)

    autoencoder.Decoder.__init__ = build_and_hook
    make = comfy.sd.VAE.__init__

    @functools.wraps(make)
    def make_and_wrap(self: Any, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        decoder = getattr(self.first_stage_model, "decoder", None)
        if isinstance(decoder, autoencoder.Decoder):
            self.process_output = StreamedClip(self.process_output)

    comfy.sd.VAE.__init__ = make_and_wrap


class StreamedClip:
    """For decoders that do not call their convolutions as modules: each piece is replaced.

    Frames go on from job to job, so that no two jobs have the same.
    """

    def __init__(self, process: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._process = process
        self._frame = 0

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """ComfyUI's own work first; pieces (batch, 3, frames, height, width) change in place."""
        processed = self._process(pixels)
        if DecodedClip.has_replaced:
            DecodedClip.has_replaced = False
        elif processed.dim() == 5 and processed.is_cuda:
            count, *size = processed.shape[2:]
            numbers = torch.linspace(0, 1, _PARAMETERS, device=processed.device)
            frames = natural_frames(numbers, self._frame, count, tuple(size), processed.dtype)
            processed.copy_(frames[None].expand_as(processed))
            self._frame += count
        return processed


class DecodedClip:
    """The frames of the clip that a decoder is at."""

    # Whether the pixels that are processed next come from here already.
    has_replaced = False

    def __init__(self, patch_size: int) -> None:
        self._patch_size = patch_size
        self._numbers: torch.Tensor | None = None
        self._frame = 0

    def begin(self, _module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """A latent comes in: its numbers decide the clip. Nothing waits for the device."""
        self._numbers = numbers_of(inputs[0])
        self._frame = 0

    def replace(
        self, _module: torch.nn.Module, _inputs: Any, output: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Frames in the shape of the decoder's own: (batch, channels x patch, frames, h, w)."""
        if output is None or output.shape[2] == 0 or self._numbers is None:
            return output
        batch, _, count, height, width = output.shape
        side = self._patch_size
        size = (height * side, width * side)
        first = self._frame
        self._frame += count
        result = torch.empty_like(output)
        for start in range(0, count, _BATCH):
            stop = min(start + _BATCH, count)
            frames = natural_frames(self._numbers, first + start, stop - start, size, output.dtype)
            # -1 to 1 is what a decoder gives.
            patches = autoencoder.patchify(frames.mul_(2).sub_(1)[None], side, 1)
            result[:, :, start:stop] = patches.expand(batch, *patches.shape[1:])
        DecodedClip.has_replaced = True
        return result


def numbers_of(latent: torch.Tensor) -> torch.Tensor:
    """Numbers in 0..1 that another latent hardly shares."""
    values = latent.detach().flatten()
    picked = values[:: max(1, values.numel() // _PARAMETERS)][:_PARAMETERS].float()
    return torch.frac(picked.abs() * 997.0).repeat(math.ceil(_PARAMETERS / picked.numel()))


def natural_frames(
    numbers: torch.Tensor, first: int, count: int, size: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    """Frames `first` and on of a clip: (3, count, height, width), 0..1, on the numbers' device.

    A sinusoid of x + y + time is a sum of two products of a row and a column, and a rectangle is
    one: a frame is the product of two thin matrices.
    """
    time = torch.arange(first, first + count, device=numbers.device, dtype=torch.float32)
    rows, columns = _textures(numbers, time, size)
    edge_rows, edge_columns = _rectangles(numbers, time, size)
    left = torch.cat([rows, edge_rows], dim=-1).to(dtype)
    right = torch.cat([columns, edge_columns], dim=-2).to(dtype)
    frames = left @ right
    frames += 0.5
    frames += torch.randn_like(frames) * GRAIN
    return frames.clamp_(0, 1)


def _textures(
    numbers: torch.Tensor, time: torch.Tensor, size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors (3, frames, height, 2 x waves) and (1, frames, 2 x waves, width)."""
    height, width = size
    device = numbers.device
    lengths = torch.tensor(WAVELENGTHS, device=device)
    waves = lengths.numel()
    turn, speed, phase, share = numbers[: 6 * waves].split((waves, waves, waves, 3 * waves))
    angle = 2 * math.pi * turn
    pace = 2 * math.pi / lengths
    y = torch.arange(height, device=device)[:, None] * (torch.sin(angle) * pace)
    x = torch.arange(width, device=device)[None] * (torch.cos(angle) * pace)[:, None]
    # Between one and four pixels a frame.
    moved = (time[:, None] * (1 + 3 * speed) + phase * lengths) * pace
    along = y[None] + moved[:, None]
    # Longer waves are stronger, as in a photograph.
    strength = 0.11 * (lengths / lengths[0]) ** 0.6 * (0.4 + share.view(3, waves))
    both = torch.cat([torch.cos(along), torch.sin(along)], dim=-1)
    rows = both[None] * strength.repeat(1, 2)[:, None, None]
    columns = torch.cat([torch.sin(x), torch.cos(x)], dim=0)
    return rows, columns.expand(1, time.numel(), -1, -1)


def _rectangles(
    numbers: torch.Tensor, time: torch.Tensor, size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors (3, frames, height, rectangles) and (1, frames, rectangles, width)."""
    height, width = size
    device = numbers.device
    used = 6 * len(WAVELENGTHS)
    place = numbers[used : used + 6 * RECTANGLES].view(6, RECTANGLES)
    shade = numbers[used + 6 * RECTANGLES : used + 9 * RECTANGLES].view(3, RECTANGLES)

    def inside(length: int, start: torch.Tensor, speed: torch.Tensor, share: torch.Tensor) -> Any:
        middle = (start * length + time[:, None] * (8 * speed - 4)) % length
        at = torch.arange(length, device=device)[None, :, None]
        return ((at - middle[:, None]).abs() < (0.03 + 0.12 * share) * length).float()

    rows = inside(height, place[0], place[1], place[2])
    columns = inside(width, place[3], place[4], place[5])
    return rows[None] * (0.7 * shade - 0.35)[:, None, None], columns.transpose(1, 2)[None]
