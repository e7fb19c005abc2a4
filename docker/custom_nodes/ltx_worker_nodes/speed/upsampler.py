"""The latent upsampler is built at once and stays on the GPU between jobs.

ComfyUI draws half a billion random weights, 2.4 s, before it reads the real ones, and in every job
moves the model to the GPU and back: on an H200 0.7 s for 16 ms of work. On a GPU with room to spare
its gigabyte is left where it is used.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from comfy.ldm.lightricks.latent_upsampler import LatentUpsampler

from .room import is_roomy
from .switches import switches


def install() -> None:
    """ComfyUI's loader calls `from_config` before it loads a state, its node `cpu()` when done."""
    leave, build = LatentUpsampler.cpu, LatentUpsampler.from_config.__func__

    def cpu(model: LatentUpsampler) -> LatentUpsampler:
        return model if switches.upsampler and is_roomy() else leave(model)

    def from_config(cls: type[LatentUpsampler], config: Mapping[str, Any]) -> LatentUpsampler:
        if not switches.upsampler:
            return build(cls, config)
        with _undrawn():
            return build(cls, config)

    LatentUpsampler.cpu = cpu
    LatentUpsampler.from_config = classmethod(from_config)


@contextmanager
def _undrawn() -> Generator[None]:
    """Convolutions that are built meanwhile leave their weights as the memory is."""
    convolution = torch.nn.modules.conv._ConvNd
    draw = convolution.reset_parameters
    convolution.reset_parameters = lambda _self: None
    try:
        yield
    finally:
        convolution.reset_parameters = draw
