"""A prompt's embeddings: matrix products in TF32, and no padding carried about.

ComfyUI runs Gemma in float32, without tensor cores: half a second for each new prompt on an H200.
TF32 keeps 11 bits of a number. The weights are bfloat16, so it holds them exactly, and rounds what
they are multiplied with eight times as finely as bfloat16, in which Lightricks' own pipeline runs
Gemma.

A prompt is padded to 1,024 tokens, whose 49 states are 770 MB. Unless ComfyUI keeps what it
computes on the GPU, it moves all of them to main memory, half a second more, to use the last few.
"""

from __future__ import annotations

import functools
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import comfy.text_encoders.lt as lt
import torch
from comfy.k_diffusion.utils import tf32_mode

from .switches import switches


def install() -> None:
    """Wrap the method that makes a prompt's embeddings."""
    stock = lt.LTXAVTEModel.encode_token_weights

    @functools.wraps(stock)
    def encode_token_weights(self: Any, token_weight_pairs: Any) -> tuple[torch.Tensor, Any, Any]:
        if not switches.text:
            return stock(self, token_weight_pairs)
        with tf32_mode(matmul=True), _unpadded(self.gemma3_12b):
            return stock(self, token_weight_pairs)

    lt.LTXAVTEModel.encode_token_weights = encode_token_weights


@contextmanager
def _unpadded(gemma: Any) -> Generator[None]:
    """Meanwhile the states that it returns are those of the prompt's own tokens, the last ones."""
    stock = gemma.encode

    def encode(tokens: Any) -> tuple[torch.Tensor, Any, dict[str, Any]]:
        states, pooled, extra = stock(tokens)  # states [1, layers, tokens, width]
        mask = extra["attention_mask"]
        if len(mask) != 1:
            return states, pooled, extra
        own = int(mask.sum())
        return states[:, :, -own:], pooled, extra | {"attention_mask": mask[:, -own:]}

    gemma.encode = encode
    try:
        yield
    finally:
        del gemma.encode
