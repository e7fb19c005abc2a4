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

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def run_on(x: torch.Tensor) -> bool:
    """Whether the kernels run where this tensor lies."""
    return x.is_cuda or _INTERPRETED


@dataclass(frozen=True)
class Modulation:
    """One of the parameters that a timestep gives every block, e.g. a scale, a shift or a gate.

    `table` is the block's own row, [width]. `rows` is [batch, n, width], a view into the embedded
    timestep: row j holds for the j-th of n equal runs of tokens (n is 1, the frames or the tokens).
    The parameter is their sum.
    """

    table: torch.Tensor
    rows: torch.Tensor


@triton.jit
def _parameter(table, rows, batch, token, run, stride_batch, stride_row, columns, inside):
    """table + rows at one token, float32."""
    row = rows + batch * stride_batch + (token // run) * stride_row
    return tl.load(table + columns, inside, 0.0).to(tl.float32) + tl.load(
        row + columns, inside, 0.0
    ).to(tl.float32)


@triton.jit
def _modulated(
    normed, scale_table, scale_rows, shift_table, shift_rows, batch, token, run,
    stride_batch, stride_row, columns, inside,
):  # fmt: skip
    scale = _parameter(
        scale_table, scale_rows, batch, token, run, stride_batch, stride_row, columns, inside
    )
    shift = _parameter(
        shift_table, shift_rows, batch, token, run, stride_batch, stride_row, columns, inside
    )
    return normed * (1.0 + scale) + shift


# What differs from one clip size to the next must not make a new variant of a kernel.
@triton.jit(do_not_specialize=["tokens", "gate_run", "run1", "run2"])
def _add_norm_kernel(
    x, branch, gate_table, gate_rows, gate_run, gate_stride_batch, gate_stride_row,
    first, scale1_table, scale1_rows, shift1_table, shift1_rows, run1, stride1_batch, stride1_row,
    second, scale2_table, scale2_rows, shift2_table, shift2_rows, run2, stride2_batch, stride2_row,
    tokens, width, eps,
    HAS_BRANCH: tl.constexpr, HAS_GATE: tl.constexpr, OUTPUTS: tl.constexpr,
    MODULATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    batch = index // tokens
    token = index % tokens
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = index * width + columns
    row = tl.load(x + at, inside, 0.0).to(tl.float32)
    if HAS_BRANCH:
        added = tl.load(branch + at, inside, 0.0).to(tl.float32)
        if HAS_GATE:
            added *= _parameter(
                gate_table, gate_rows, batch, token, gate_run, gate_stride_batch,
                gate_stride_row, columns, inside,
            )  # fmt: skip
        rounded = (row + added).to(x.dtype.element_ty)
        tl.store(x + at, rounded, inside)
        row = rounded.to(tl.float32)
    if OUTPUTS > 0:
        normed = row * tl.rsqrt(tl.sum(row * row, 0) / width + eps)
        result = normed
        if MODULATED:
            result = _modulated(
                normed, scale1_table, scale1_rows, shift1_table, shift1_rows, batch, token, run1,
                stride1_batch, stride1_row, columns, inside,
            )  # fmt: skip
        tl.store(first + at, result.to(first.dtype.element_ty), inside)
        if OUTPUTS > 1:
            result = _modulated(
                normed, scale2_table, scale2_rows, shift2_table, shift2_rows, batch, token, run2,
                stride2_batch, stride2_row, columns, inside,
            )  # fmt: skip
            tl.store(second + at, result.to(second.dtype.element_ty), inside)


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


def add_norm(
    x: torch.Tensor,
    branch: torch.Tensor | None = None,
    gate: Modulation | None = None,
    modulations: tuple[tuple[Modulation, Modulation], ...] | None = (),
    eps: float = 1e-6,
) -> tuple[torch.Tensor, ...]:
    """Add a branch to the residual stream in place, and normalise the sum.

    `x` and `branch` are [batch, tokens, width], contiguous; x += branch * gate. For each
    (scale, shift) of `modulations`, at most two, the result is rms_norm(x) * (1 + scale) + shift;
    with none of them it is rms_norm(x); with `modulations` None nothing is normalised.
    """
    batch, tokens, width = x.shape
    pairs = modulations or ()
    outputs = 0 if modulations is None else max(1, len(pairs))
    results = tuple(torch.empty_like(x) for _ in range(outputs))
    gate_arguments = (x, x, 1, 0, 0) if gate is None else _arguments(gate, tokens)
    blocks = [(x, x, x, x, x, 1, 0, 0)] * 2
    for index, out in enumerate(results):
        blocks[index] = (out, x, x, x, x, 1, 0, 0)
        if index < len(pairs):
            scale, shift = pairs[index]
            run, *strides = _arguments(scale, tokens)[2:]
            blocks[index] = (
                out, scale.table, scale.rows, shift.table, shift.rows, run, *strides
            )  # fmt: skip
    _add_norm_kernel[(batch * tokens,)](
        x, x if branch is None else branch, *gate_arguments, *blocks[0], *blocks[1],
        tokens, width, eps,
        HAS_BRANCH=branch is not None, HAS_GATE=gate is not None, OUTPUTS=outputs,
        MODULATED=bool(pairs), BLOCK=triton.next_power_of_2(width), num_warps=8,
    )  # fmt: skip
    return results


def _arguments(
    parameter: Modulation, tokens: int
) -> tuple[torch.Tensor, torch.Tensor, int, int, int]:
    rows = parameter.rows
    return parameter.table, rows, tokens // rows.shape[1], rows.stride(0), rows.stride(1)


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
