"""Fused row kernels of the LTX-2 transformer, in Triton.

Between its matrix products a transformer block only reads and writes rows: add a gated residual,
normalise, scale and shift, rotate. Done one operation at a time that is a quarter of the second
pass on a Hopper GPU; each kernel here reads every operand once and writes every result once.
Arithmetic is float32 and rounded once, at the store, so results differ from the unfused ones by
bfloat16 rounding.

Importing this module needs Triton; its kernels need a GPU (or `TRITON_INTERPRET=1`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

# Constants that kernels read must say so.
_GELU_SLOPE = tl.constexpr(0.7978845608028654)  # the square root of 2 / pi
_GELU_CUBE = tl.constexpr(0.044715)
_FP8_MOST = tl.constexpr(448.0)  # float8_e4m3fn's largest
_QUANTISE_BLOCK = 4096

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def run_on(x: torch.Tensor) -> bool:
    """Whether the kernels run where this tensor lies."""
    return x.is_cuda or _INTERPRETED


@dataclass(frozen=True)
class Parameters:
    """What a timestep gives a block: scales, shifts and gates, told apart by their index.

    `table` is the block's own, [parameters, width]. `rows` is the embedded timestep, [batch, n,
    parameters * width]: row j holds for the j-th of n equal runs of tokens (n is 1, the frames or
    the tokens). A parameter is the sum of its parts of both.
    """

    table: torch.Tensor
    rows: torch.Tensor


@triton.jit
def _parameter(table, rows, index, width, columns, inside):
    """table + rows at one token, float32."""
    at = index * width + columns
    from_table = tl.load(table + at, inside, 0.0).to(tl.float32)
    return from_table + tl.load(rows + at, inside, 0.0).to(tl.float32)


# What differs from one clip size or place to the next must not make a new variant of a kernel.
@triton.jit(
    do_not_specialize=[
        "tokens", "gate_run", "gate", "run1", "scale1", "shift1", "run2", "scale2", "shift2",
    ]
)  # fmt: skip
def _add_norm_kernel(
    x, branch, gate_table, gate_rows, gate_run, gate_stride, gate,
    first, table1, rows1, run1, stride1, scale1, shift1,
    second, table2, rows2, run2, stride2, scale2, shift2,
    tokens, width, eps,
    HAS_BRANCH: tl.constexpr, HAS_GATE: tl.constexpr, OUTPUTS: tl.constexpr,
    MODULATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = index * width + columns
    row = tl.load(x + at, inside, 0.0).to(tl.float32)
    if HAS_BRANCH:
        added = tl.load(branch + at, inside, 0.0).to(tl.float32)
        if HAS_GATE:
            here = gate_rows + (index // gate_run) * gate_stride
            added *= _parameter(gate_table, here, gate, width, columns, inside)
        rounded = (row + added).to(x.dtype.element_ty)
        tl.store(x + at, rounded, inside)
        row = rounded.to(tl.float32)
    if OUTPUTS > 0:
        normed = row * tl.rsqrt(tl.sum(row * row, 0) / width + eps)
        result = normed
        if MODULATED:
            here = rows1 + (index // run1) * stride1
            scale = _parameter(table1, here, scale1, width, columns, inside)
            result = normed * (1.0 + scale) + _parameter(
                table1, here, shift1, width, columns, inside
            )
        tl.store(first + at, result.to(first.dtype.element_ty), inside)
        if OUTPUTS > 1:
            here = rows2 + (index // run2) * stride2
            scale = _parameter(table2, here, scale2, width, columns, inside)
            result = normed * (1.0 + scale) + _parameter(
                table2, here, shift2, width, columns, inside
            )
            tl.store(second + at, result.to(second.dtype.element_ty), inside)


def add_norm(
    x: torch.Tensor,
    branch: torch.Tensor | None = None,
    gate: tuple[Parameters, int] | None = None,
    modulations: tuple[tuple[Parameters, int, int], ...] | None = (),
    eps: float = 1e-6,
) -> tuple[torch.Tensor, ...]:
    """Add a branch to the residual stream in place, and normalise the sum.

    `x` and `branch` are [batch, tokens, width], contiguous; x += branch * gate. For each of
    `modulations`, at most two, whose numbers are the indices of scale and shift, the result is
    rms_norm(x) * (1 + scale) + shift; with none of them it is rms_norm(x); with `modulations` None
    nothing is normalised.
    """
    batch, tokens, width = x.shape
    pairs = modulations or ()
    outputs = 0 if modulations is None else max(1, len(pairs))
    results = tuple(torch.empty_like(x) for _ in range(outputs))
    gated = (x, x, 1, 0, 0) if gate is None else (*_arguments(gate[0], tokens), gate[1])
    blocks = [(x, x, x, 1, 0, 0, 0)] * 2
    for index, out in enumerate(results):
        blocks[index] = (out, x, x, 1, 0, 0, 0)
        if index < len(pairs):
            parameters, scale, shift = pairs[index]
            blocks[index] = (out, *_arguments(parameters, tokens), scale, shift)
    _add_norm_kernel[(batch * tokens,)](
        x, x if branch is None else branch, *gated, *blocks[0], *blocks[1], tokens, width, eps,
        HAS_BRANCH=branch is not None, HAS_GATE=gate is not None, OUTPUTS=outputs,
        MODULATED=bool(pairs), BLOCK=triton.next_power_of_2(width), num_warps=8,
    )  # fmt: skip
    return results


def _arguments(parameters: Parameters, tokens: int) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    # Rows of all batches lie behind each other, and so do the tokens.
    rows = parameters.rows
    return parameters.table, rows, tokens // rows.shape[1], rows.shape[2]


@triton.jit(do_not_specialize=["tokens"])
def _norm_rotate_kernel(
    x, out, weight, cos, sin, tokens, heads, half, eps,
    stride_batch, stride_head, stride_token, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    batch = index // tokens
    token = index % tokens
    columns = tl.arange(0, BLOCK)
    inside = columns < heads * half
    head = columns // half
    within = columns % half
    first = head * (2 * half) + within
    second = first + half
    row = index * (heads * half * 2)
    a = tl.load(x + row + first, inside, 0.0).to(tl.float32)
    b = tl.load(x + row + second, inside, 0.0).to(tl.float32)
    scale = tl.rsqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / (heads * half * 2) + eps)
    a = a * scale * tl.load(weight + first, inside, 0.0).to(tl.float32)
    b = b * scale * tl.load(weight + second, inside, 0.0).to(tl.float32)
    angle = batch * stride_batch + token * stride_token + head * stride_head + within
    c = tl.load(cos + angle, inside, 0.0).to(tl.float32)
    s = tl.load(sin + angle, inside, 0.0).to(tl.float32)
    tl.store(out + row + first, (a * c - b * s).to(out.dtype.element_ty), inside)
    tl.store(out + row + second, (b * c + a * s).to(out.dtype.element_ty), inside)


def norm_rotate(
    x: torch.Tensor, weight: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, eps: float
) -> torch.Tensor:
    """RMS-normalise rows and rotate each head's halves by its position (split rotary embedding).

    `x` is [batch, tokens, heads * 2 * half], contiguous; `weight` [heads * 2 * half]; `cos` and
    `sin` are [1 or batch, heads, tokens, half] with the last axis contiguous.
    """
    batch, tokens, width = x.shape
    heads, half = cos.shape[1], cos.shape[3]
    out = torch.empty_like(x)
    _norm_rotate_kernel[(batch * tokens,)](
        x, out, weight, cos, sin, tokens, heads, half, eps,
        cos.stride(0) if cos.shape[0] > 1 else 0, cos.stride(1), cos.stride(2),
        BLOCK=triton.next_power_of_2(width // 2), num_warps=8,
    )  # fmt: skip
    return out


# `total` is specialised: as a multiple of 16 it lets a thread load and store many at a time.
@triton.jit
def _quantise_kernel(x, out, scale, total, GELU: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < total
    value = tl.load(x + at, inside, 0.0).to(tl.float32)
    if GELU:
        inner = _GELU_SLOPE * (value + _GELU_CUBE * value * value * value)
        value = value / (1.0 + tl.exp(-2.0 * inner))
    value = value * (1.0 / tl.load(scale))
    value = tl.minimum(tl.maximum(value, -_FP8_MOST), _FP8_MOST)
    tl.store(out + at, value.to(out.dtype.element_ty), inside)


def quantise(x: torch.Tensor, scale: torch.Tensor, *, gelu: bool = False) -> torch.Tensor:
    """Divide by a scale (float32, one element) and round to float8_e4m3fn, no further than 448.

    `x` is contiguous, of any shape. With `gelu`, of GELU(x) in its approximation by tanh.
    """
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    total = x.numel()
    _quantise_kernel[(triton.cdiv(total, _QUANTISE_BLOCK),)](
        x, out, scale, total, GELU=gelu, BLOCK=_QUANTISE_BLOCK, num_warps=8
    )
    return out
