"""Whether the GPU has memory to spare for what saves time."""

from __future__ import annotations

import functools

import comfy.model_management
import torch

# With less, a gigabyte is worth more to the transformer's weights.
_ROOMY_BYTES = 40e9


@functools.cache
def is_roomy() -> bool:
    """A GPU on which a gigabyte or two may be held between uses."""
    device = comfy.model_management.get_torch_device()
    return torch.device(device).type == "cuda" and (
        comfy.model_management.get_total_memory(device) >= _ROOMY_BYTES
    )


def holds_everything() -> bool:
    """Whether ComfyUI leaves models on the GPU (`--gpu-only`, `--highvram`)."""
    return comfy.model_management.vram_state == comfy.model_management.VRAMState.HIGH_VRAM
