"""cuDNN's attention first on a Hopper GPU.

torch has several kernels for scaled dot product attention and takes the first that fits. On Hopper
cuDNN's is nearly twice as fast as the one that torch 2.10 has first, with equal accuracy; later
versions of torch have cuDNN's first there by themselves. On Ada the two are level.
"""

from __future__ import annotations

import logging

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .switches import switches

_log = logging.getLogger(__name__)

_HOPPER = 9  # compute capability
_TOLERANCE = 2e-2  # bfloat16 has 8 bits


def install() -> None:
    """Set the order for the whole process, where cuDNN's kernel is not first but works."""
    if not switches.attention or not torch.cuda.is_available():
        return
    if torch.cuda.get_device_capability()[0] != _HOPPER:
        return
    # [batch, heads, tokens, width of a head]: LTX-2's width, and tokens that no tile divides.
    rows = torch.randn(1, 2, 1000, 128, device="cuda", dtype=torch.bfloat16)
    cudnn = SDPBackend.CUDNN_ATTENTION
    if torch._fused_sdp_choice(rows, rows, rows) == int(cudnn) or not _is_right(cudnn, rows):
        return
    others = [kernel for kernel in torch._C._get_sdp_priority_order() if kernel != int(cudnn)]
    torch._C._set_sdp_priority_order([int(cudnn), *others])


def _is_right(kernel: SDPBackend, rows: torch.Tensor) -> bool:
    try:
        with sdpa_kernel(kernel):
            found = torch.nn.functional.scaled_dot_product_attention(rows, rows, rows)
    except RuntimeError as error:
        _log.warning("Attention by %s does not run here: %s", kernel.name, error)
        return False
    expected = torch.nn.functional.scaled_dot_product_attention(*[rows.float()] * 3)
    off = ((found.float() - expected).norm() / expected.norm()).item()
    if not off < _TOLERANCE:
        _log.warning("Attention by %s is off by %.2e", kernel.name, off)
    return off < _TOLERANCE
