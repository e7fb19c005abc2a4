"""Whether the kernels compile and are right on this machine, found out once, when first needed."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import decoder_kernels, kernels

_log = logging.getLogger(__name__)

_TOLERANCE = 2e-2  # bfloat16 has 8 bits


@functools.cache
def kernels_work(part: str = "transformer") -> bool:
    """Compile a part's kernels and compare them with torch; a failure is logged.

    `part` is transformer, fp8, attention (cuDNN's) or decoder; where one does not work, ComfyUI's
    own operations serve.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    draw = functools.partial(torch.randn, device=device, dtype=torch.bfloat16)
    try:
        _COMPARISONS[part](draw)
    except Exception:  # noqa: BLE001 - whatever it is, the clip can be made without
        _log.exception("The kernels of the %s do not work here", part)
        return False
    return True


def _compare_for_transformer(draw: Callable[..., torch.Tensor]) -> None:
    x, branch, weight = draw(1, 4, 256), draw(1, 4, 256), draw(256)
    parameters = kernels.Parameters(draw(2, 256), draw(1, 2, 512))
    gate = parameters.table[1].float() + parameters.rows[..., 256:].float()
    expected = x.float() + branch.float() * gate.repeat_interleave(2, 1)
    kernels.add_norm(x, branch, (parameters, 1), None)
    _require_close(x, expected)
    (normed,) = kernels.add_norm(x)
    _require_close(normed, torch.nn.functional.rms_norm(x.float(), (256,), eps=1e-6))
    cos, sin = draw(1, 2, 4, 64), draw(1, 2, 4, 64)
    rotated = kernels.norm_rotate(x, weight, cos, sin, 1e-6)
    heads = torch.nn.functional.rms_norm(x.float(), (256,), weight.float(), 1e-6)
    first, second = heads.view(1, 4, 2, 2, 64).transpose(1, 2).unbind(-2)
    c, s = cos.float(), sin.float()
    expected = torch.stack((first * c - second * s, second * c + first * s), -2)
    _require_close(rotated, expected.transpose(1, 2).reshape(1, 4, 256))


def _compare_for_fp8(draw: Callable[..., torch.Tensor]) -> None:
    scale = torch.full((), 0.5, device=draw(1).device)
    exact = draw(4, 256).to(torch.float8_e4m3fn)
    rounded = kernels.quantise((exact.float() / 2).bfloat16(), scale)
    _require_close(rounded, exact.float())
    most = kernels.quantise(draw(256).abs() + 1e6, scale)
    _require_close(most, torch.full((256,), 448.0, device=most.device))


def _compare_for_attention(draw: Callable[..., torch.Tensor]) -> None:
    # [batch, heads, tokens, width of a head]: LTX-2's width, and tokens that no tile divides.
    rows = draw(1, 2, 1000, 128)
    attend = torch.nn.functional.scaled_dot_product_attention
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        found = attend(rows, rows, rows)
    _require_close(found, attend(*[rows.float()] * 3))


def _compare_for_decoder(draw: Callable[..., torch.Tensor]) -> None:
    x, bias = draw(1, 2, 4, 8, 128), draw(128)
    edges = decoder_kernels.Edges(None, front=1, end=1, border=False)
    around, _ = decoder_kernels.surround(x, edges, last=True, bias=bias, eps=1e-8)
    normed = torch.nn.functional.rms_norm(x.float() + bias.float(), (128,), eps=1e-8)
    expected = torch.nn.functional.silu(normed)[:, [0, 0, 1, 1]]
    _require_close(around, expected)
    hidden = draw(1, 2, 4, 8, 128)
    expected = hidden.float() + bias.float() + x.float()
    decoder_kernels.add(hidden, bias, None, x)
    _require_close(hidden, expected)
    spread = decoder_kernels.depth_to_space(x, bias, None, None, (2, 2, 2), 0)
    expected = (x.float() + bias.float()).view(2, 4, 8, 16, 2, 2, 2).permute(0, 4, 1, 5, 2, 6, 3)
    _require_close(spread, expected.reshape(1, 4, 8, 16, 16))
    pixels = draw(1, 3, 2, 16, 32)
    decoder_kernels.unpatchify(x[..., :48].contiguous(), bias[:48], 4, pixels)
    patches = (x.float() + bias.float())[..., :48].view(2, 4, 8, 3, 4, 4)
    _require_close(pixels, patches.permute(3, 0, 1, 5, 2, 4).reshape(1, 3, 2, 16, 32))
    planes = draw(1, 32, 2, 4, 16)
    norm = planes.float().square().mean(1, keepdim=True).add(1e-8).sqrt()
    silu = torch.nn.functional.silu(planes.float() / norm)
    _require_close(decoder_kernels.pixel_norm_silu(planes, 1e-8), silu)


def _require_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    error = ((found.float() - expected).norm() / expected.norm()).item()
    if not error < _TOLERANCE:
        raise ArithmeticError(f"A kernel is off by {error:.2e}")


_COMPARISONS = {
    "transformer": _compare_for_transformer,
    "fp8": _compare_for_fp8,
    "attention": _compare_for_attention,
    "decoder": _compare_for_decoder,
}
