"""The latent upsampler stays on the GPU between jobs.

ComfyUI moves it there and back in every job: on an H200 0.7 s for 16 ms of work. On a GPU with room
to spare its gigabyte is left where it is used.
"""

from __future__ import annotations

import comfy.model_management
import torch
from comfy.ldm.lightricks.latent_upsampler import LatentUpsampler

from .switches import switches

# With less, the gigabyte is worth more to the transformer's weights.
_ROOMY_BYTES = 40e9


def install() -> None:
    """ComfyUI's node calls `cpu()` when it is done."""
    leave = LatentUpsampler.cpu

    def cpu(model: LatentUpsampler) -> LatentUpsampler:
        return model if switches.upsampler and _is_roomy() else leave(model)

    LatentUpsampler.cpu = cpu


def _is_roomy() -> bool:
    device = comfy.model_management.get_torch_device()
    return torch.device(device).type == "cuda" and (
        comfy.model_management.get_total_memory(device) >= _ROOMY_BYTES
    )
