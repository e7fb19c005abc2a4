"""cuDNN's attention first on a Hopper GPU.

torch has several kernels for scaled dot product attention and takes the first that fits. On Hopper
cuDNN's is nearly twice as fast as the one that torch 2.10 has first, with equal accuracy; later
versions of torch have cuDNN's first there by themselves. On Ada the two are level.
"""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend

from .self_check import kernels_work
from .switches import switches

_HOPPER = 9  # compute capability
_CUDNN = int(SDPBackend.CUDNN_ATTENTION)


def install() -> None:
    """Set the order for the whole process, where cuDNN's kernel is not first but works."""
    if not switches.attention or not torch.cuda.is_available():
        return
    if torch.cuda.get_device_capability()[0] != _HOPPER:
        return
    rows = torch.empty(1, 2, 1000, 128, device="cuda", dtype=torch.bfloat16)
    if torch._fused_sdp_choice(rows, rows, rows) == _CUDNN or not kernels_work("attention"):
        return
    others = [kernel for kernel in torch._C._get_sdp_priority_order() if kernel != _CUDNN]
    torch._C._set_sdp_priority_order([_CUDNN, *others])
