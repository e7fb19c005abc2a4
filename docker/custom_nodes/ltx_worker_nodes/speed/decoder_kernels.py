"""Fused kernels of the video decoder, in Triton.

A decoder keeps its activations as [batch, frames, height, width, channels], contiguous but for the
batch: the layout that cuDNN's convolutions read and write without converting. What lies between two
convolutions is one kernel: bias, normalisation and activation, and the frames and borders that the
next convolution reads beside its own. Arithmetic is float32 and rounded once, at the store.

A number of channels is a constant of its kernel and strides count positions, so that the compiler
sees that rows are aligned. Importing this module needs Triton; its kernels need a GPU (or
`TRITON_INTERPRET=1`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

# Every convolution here is 3x3x3: it reads two frames more than it writes.
REACH = 2
_ELEMENTS = 4096  # of one program


@dataclass(frozen=True)
class Edges:
    """What a convolution reads beside the frames of a block.

    `before` is [batch, 2, height, width, channels], the last frames of the block before, as its
    convolution read them; None at the first block, whose first frame is repeated `front` times.
    Behind the last block its last frame is repeated `end` times. With `border` each frame is
    mirrored by one position at its edges.
    """

    before: torch.Tensor | None
    front: int
    end: int
    border: bool


@triton.jit
def _mirrored(index, size):
    index = tl.abs(index)
    return tl.where(index >= size, 2 * (size - 1) - index, index)


# What differs from one clip size to the next must not make a new variant of a kernel.
@triton.jit(
    do_not_specialize=[
        "frames", "total", "kept", "front", "keep_from", "height", "width", "stride_batch",
    ]
)  # fmt: skip
def _surround_kernel(
    x, bias, before, out, after, frames, total, kept, front, keep_from, height, width,
    stride_batch, eps,
    channels: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
    BORDER: tl.constexpr, HAS_BIAS: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    batch = (tl.program_id(1) // total).to(tl.int64)
    frame = tl.program_id(1) % total
    plane = (height + 2 * BORDER) * (width + 2 * BORDER)
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    channel = tl.arange(0, CHANNELS)
    inside = (position < plane)[:, None] & (channel < channels)[None, :]
    target = position[:, None].to(tl.int64) * channels + channel[None, :]
    if frame < kept:
        kept_rows = before + (batch * 2 + frame) * plane * channels
        value = tl.load(kept_rows + target, inside, 0.0).to(tl.float32)
    else:
        at = position
        if BORDER:
            row = _mirrored(position // (width + 2) - 1, height)
            at = row * width + _mirrored(position % (width + 2) - 1, width)
        source = tl.minimum(tl.maximum(frame - front, 0), frames - 1).to(tl.int64)
        row = batch * stride_batch + source * height * width + at
        value = tl.load(x + row[:, None] * channels + channel[None, :], inside, 0.0)
        value = value.to(tl.float32)
        if HAS_BIAS:
            value += tl.load(bias + channel, channel < channels, 0.0).to(tl.float32)[None, :]
        if NORM:
            value *= tl.rsqrt(tl.sum(value * value, 1) / channels + eps)[:, None]
            value *= tl.sigmoid(value)
    rounded = value.to(out.dtype.element_ty)
    tl.store(out + (batch * total + frame) * plane * channels + target, rounded, inside)
    if frame >= keep_from:
        next_rows = after + (batch * 2 + frame - keep_from) * plane * channels
        tl.store(next_rows + target, rounded, inside)


def surround(
    x: torch.Tensor, edges: Edges, last: bool, bias: torch.Tensor | None, eps: float | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a convolution reads for a block of frames, and what the next block needs of it.

    `x` is [batch, frames, height, width, channels]. The first result holds the frames before, the
    block's and, behind the last block, the repeated one, each with `bias` [channels] added and,
    with `eps`, as silu(x / sqrt(mean over channels of x^2 + eps)). The second is its last two
    frames, None for the last block.
    """
    batch, frames, height, width, channels = x.shape
    kept = 0 if edges.before is None else REACH
    front = kept or edges.front
    total = front + frames + (edges.end if last else 0)
    high, wide = height + 2 * edges.border, width + 2 * edges.border
    out = x.new_empty(batch, total, high, wide, channels)
    after = None if last else x.new_empty(batch, REACH, high, wide, channels)
    block = triton.next_power_of_2(channels)
    positions = max(1, _ELEMENTS // block)
    _surround_kernel[(triton.cdiv(high * wide, positions), batch * total)](
        x, x if bias is None else bias, x if edges.before is None else edges.before,
        out, out if after is None else after, frames, total, kept, front,
        total if last else total - REACH, height, width, x.stride(0) // channels,
        0.0 if eps is None else eps,
        channels=channels, CHANNELS=block, POSITIONS=positions, BORDER=int(edges.border),
        HAS_BIAS=bias is not None, NORM=eps is not None, num_warps=4,
    )  # fmt: skip
    return out, after


@triton.jit(do_not_specialize=["frames", "waiting", "plane", "stride_batch"])
def _add_kernel(
    hidden, bias, held, x, frames, waiting, plane, stride_batch,
    channels: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    batch = (tl.program_id(1) // frames).to(tl.int64)
    frame = tl.program_id(1) % frames
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    channel = tl.arange(0, CHANNELS)
    inside = (position < plane)[:, None] & (channel < channels)[None, :]
    within = position[:, None].to(tl.int64) * channels + channel[None, :]
    if frame < waiting:
        at = (batch * waiting + frame) * plane * channels
        value = tl.load(held + at + within, inside, 0.0).to(tl.float32)
    else:
        at = (batch * stride_batch + (frame - waiting).to(tl.int64) * plane) * channels
        value = tl.load(x + at + within, inside, 0.0).to(tl.float32)
    value += tl.load(bias + channel, channel < channels, 0.0).to(tl.float32)[None, :]
    rows = hidden + (batch * frames + frame) * plane * channels + within
    value += tl.load(rows, inside, 0.0).to(tl.float32)
    tl.store(rows, value.to(hidden.dtype.element_ty), inside)


def add(
    hidden: torch.Tensor, bias: torch.Tensor, held: torch.Tensor | None, x: torch.Tensor
) -> None:
    """hidden += bias + the first frames of `held` followed by `x`, in place.

    `hidden` is [batch, frames, height, width, channels], contiguous; `held` likewise, with the
    residual's frames that waited, and `x` with those that came.
    """
    batch, frames, height, width, channels = hidden.shape
    block = triton.next_power_of_2(channels)
    positions = max(1, _ELEMENTS // block)
    _add_kernel[(triton.cdiv(height * width, positions), batch * frames)](
        hidden, bias, x if held is None else held, x, frames, 0 if held is None else held.shape[1],
        height * width, x.stride(0) // channels,
        channels=channels, CHANNELS=block, POSITIONS=positions, num_warps=4,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=["frames", "waiting", "height", "width", "stride_batch", "out_frames", "drop"]
)
def _depth_to_space_kernel(
    y, bias, held, x, out, frames, waiting, height, width, stride_batch, out_frames, drop,
    channels: tl.constexpr, repeated: tl.constexpr, CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr, TIMES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    RESIDUAL: tl.constexpr,
):  # fmt: skip
    parts: tl.constexpr = TIMES * ROWS * COLUMNS
    batch = (tl.program_id(1) // frames).to(tl.int64)
    frame = tl.program_id(1) % frames
    plane = height * width
    item = tl.arange(0, POSITIONS * CHANNELS)
    position = tl.program_id(0) * POSITIONS + item // CHANNELS
    channel = item % CHANNELS
    part = tl.arange(0, parts)[None, :]
    inside = ((position < plane) & (channel < channels))[:, None] & (part >= 0)
    row = (batch * frames + frame) * plane + position
    value = tl.load(
        y + row[:, None] * (channels * parts) + channel[:, None] * parts + part, inside, 0.0
    ).to(tl.float32)
    value += tl.load(bias + channel[:, None] * parts + part, inside, 0.0).to(tl.float32)
    if RESIDUAL:
        source = (channel % repeated)[:, None] * parts + part
        if frame < waiting:
            at = ((batch * waiting + frame) * plane + position)[:, None] * (repeated * parts)
            value += tl.load(held + at + source, inside, 0.0).to(tl.float32)
        else:
            at = batch * stride_batch + (frame - waiting).to(tl.int64) * plane
            at = (at + position)[:, None] * (repeated * parts)
            value += tl.load(x + at + source, inside, 0.0).to(tl.float32)
    out_frame = frame * TIMES + part // (ROWS * COLUMNS) - drop
    target = (batch * out_frames + out_frame) * (plane * ROWS * COLUMNS)
    out_row = (position // width * ROWS)[:, None] + part // COLUMNS % ROWS
    target += out_row * (width * COLUMNS) + (position % width * COLUMNS)[:, None] + part % COLUMNS
    tl.store(
        out + target * channels + channel[:, None],
        value.to(out.dtype.element_ty), inside & (out_frame >= 0),
    )  # fmt: skip


def depth_to_space(
    y: torch.Tensor, bias: torch.Tensor, held: torch.Tensor | None, x: torch.Tensor | None,
    stride: tuple[int, int, int], drop: int,
) -> torch.Tensor:  # fmt: skip
    """Spread channels over time and space, and add the input spread likewise.

    `y` is [batch, frames, height, width, channels * parts], a convolution's result without its
    `bias`, with the parts of `stride` (time, height, width; powers of two) innermost. The result is
    [batch, frames * time - drop, height * h, width * w, channels], less the first `drop` frames.
    `x`, the convolution's input, is spread the same way and repeated over the channels; its first
    frames are in `held`. Without `x` nothing is added.
    """
    batch, frames, height, width, wide = y.shape
    parts = math.prod(stride)
    channels = wide // parts
    out_frames = frames * stride[0] - drop
    out = y.new_empty(batch, out_frames, height * stride[1], width * stride[2], channels)
    repeated = channels if x is None else x.shape[4] // parts
    block = triton.next_power_of_2(channels)
    positions = max(1, _ELEMENTS // (block * parts))
    _depth_to_space_kernel[(triton.cdiv(height * width, positions), batch * frames)](
        y, bias, y if held is None else held, y if x is None else x, out,
        frames, 0 if held is None else held.shape[1], height, width,
        0 if x is None else x.stride(0) // x.shape[4], out_frames, drop,
        channels=channels, repeated=repeated, CHANNELS=block, POSITIONS=positions,
        TIMES=stride[0], ROWS=stride[1], COLUMNS=stride[2], RESIDUAL=x is not None, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit(
    do_not_specialize=[
        "frames", "height", "width", "colours", "stride_batch",
        "out_batch", "out_colour", "out_frame", "out_row", "out_column",
    ]
)  # fmt: skip
def _unpatchify_kernel(
    y, bias, out, frames, height, width, colours, stride_batch,
    out_batch, out_colour, out_frame, out_row, out_column,
    channels: tl.constexpr, PATCH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    colour = tl.program_id(1) % colours
    frame = (tl.program_id(1) // colours % frames).to(tl.int64)
    batch = (tl.program_id(1) // colours // frames).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    line = pixel // (width * PATCH)
    column = pixel % (width * PATCH)
    inside = line < height * PATCH
    channel = (colour * PATCH + column % PATCH) * PATCH + line % PATCH
    row = batch * stride_batch + (frame * height + line // PATCH) * width + column // PATCH
    value = tl.load(y + row * channels + channel, inside, 0.0).to(tl.float32)
    value += tl.load(bias + channel, inside, 0.0).to(tl.float32)
    target = batch * out_batch + colour.to(tl.int64) * out_colour + frame * out_frame
    target += line.to(tl.int64) * out_row + column.to(tl.int64) * out_column
    tl.store(out + target, value.to(out.dtype.element_ty), inside)


def unpatchify(y: torch.Tensor, bias: torch.Tensor, patch: int, out: torch.Tensor) -> None:
    """Write pixels: `out` is [batch, colours, frames, height * patch, width * patch], any strides.

    `y` is [batch, frames, height, width, colours * patch * patch], the last convolution's result
    without its `bias`; a patch's columns lie outside its rows.
    """
    batch, frames, height, width, channels = y.shape
    grid = (triton.cdiv(height * width * patch**2, 1024), batch * frames * out.shape[1])
    _unpatchify_kernel[grid](
        y, bias, out, frames, height, width, out.shape[1], y.stride(0) // channels, *out.stride(),
        channels=channels, PATCH=patch, BLOCK=1024, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["positions"])
def _pixel_norm_silu_kernel(
    x, out, positions, stride_batch, stride_channel, eps,
    channels: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0).to(tl.int64) * POSITIONS + tl.arange(0, POSITIONS)
    channel = tl.arange(0, CHANNELS).to(tl.int64)
    is_position = position < positions
    source = x + batch * stride_batch + position[None, :]
    target = out + batch * channels * positions + position[None, :]
    squares = tl.zeros((CHANNELS, POSITIONS), tl.float32)
    for start in range(0, channels, CHANNELS):
        at = (start + channel)[:, None]
        value = tl.load(source + at * stride_channel, is_position[None, :], 0.0).to(tl.float32)
        squares += value * value
    scale = tl.rsqrt(tl.sum(squares, 0) / channels + eps)[None, :]
    for start in range(0, channels, CHANNELS):
        at = (start + channel)[:, None]
        value = tl.load(source + at * stride_channel, is_position[None, :], 0.0).to(tl.float32)
        value *= scale
        value *= tl.sigmoid(value)
        tl.store(target + at * positions, value.to(out.dtype.element_ty), is_position[None, :])


def pixel_norm_silu(x: torch.Tensor, eps: float) -> torch.Tensor:
    """silu(x / sqrt(mean over channels of x^2 + eps)), for ComfyUI's own blocks.

    `x` is [batch, channels, frames, height, width] whose last three axes lie together
    (`has_planes`); the number of channels is a multiple of 32. The result is contiguous.
    """
    batch, channels, *extent = x.shape
    positions = extent[0] * extent[1] * extent[2]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _pixel_norm_silu_kernel[(triton.cdiv(positions, 128), batch)](
        x, out, positions, x.stride(0), x.stride(1), eps,
        channels=channels, CHANNELS=32, POSITIONS=128, num_warps=4,
    )  # fmt: skip
    return out


def has_planes(x: torch.Tensor) -> bool:
    """Whether the frames of one channel lie behind each other, row after row."""
    _, channels, _, height, width = x.shape
    return channels % 32 == 0 and x.stride()[2:] == (height * width, width, 1)
