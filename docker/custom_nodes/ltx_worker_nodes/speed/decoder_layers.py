"""The layers of the video decoder during one decode, for any cut of a clip into blocks of frames.

A block goes through as [batch, frames, height, width, channels]. Each layer holds back what its
convolutions need of the frames to come, so that the pixels do not depend on the cuts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Any

import comfy.ops
import torch

from . import decoder_kernels
from .decoder_kernels import Edges

# Larger weights are those of the first layers, which see few blocks: turned again for each.
_KEPT_WEIGHT_BYTES = 16 * 2**20


def through(
    layers: list[Layer], index: int, block: torch.Tensor, last: bool, max_bytes: int
) -> Iterator[torch.Tensor]:
    """Run a block through the layers from one on, in parts where a layer would make it too large.

    Nothing here keeps a block once the layer that reads it has run.
    """
    for at in range(index, len(layers)):
        layer = layers[at]
        most = max(1, int(max_bytes // (block[:, 0].nbytes * layer.growth)))
        if layer.growth > 1 and block.shape[1] > most:
            parts = deque(block.chunk(math.ceil(block.shape[1] / most), 1))
            del block
            while parts:
                part = parts.popleft()
                rest = through(layers, at, part, last and not parts, max_bytes)
                del part
                yield from rest
            return
        result = layer(block, last)
        if result is None:
            return
        block = result
        del result
    yield block


class _Convolution:
    """One 3x3x3 convolution during a decode: what it keeps between blocks, and its weights."""

    def __init__(self, module: Any, causal: bool) -> None:
        self._conv = module.conv
        self._edges = Edges(
            before=None,
            front=2 if causal else 1,
            end=0 if causal else 1,
            border=module.conv.padding_mode == "reflect",
        )
        self._weight: torch.Tensor | None = None
        self.bias = torch.empty(0)

    def __call__(
        self, x: torch.Tensor, last: bool, bias: torch.Tensor | None = None,
        eps: float | None = None,
    ) -> torch.Tensor | None:  # fmt: skip
        """Convolve x + bias, normalised and activated if there is `eps`; own bias is not added.

        The frames that come out are one fewer than go in at the first block and one more at the
        last; None where that is no frame.
        """
        comfy.ops.run_every_op()
        edges = self._edges
        padded, before = decoder_kernels.surround(x, edges, last, bias, eps)
        self._edges = Edges(before, edges.front, edges.end, edges.border)
        if padded.shape[1] < decoder_kernels.REACH + 1:
            return None
        margin = 0 if edges.border else 1
        result = torch.nn.functional.conv3d(
            padded.permute(0, 4, 1, 2, 3), self._turned_weight(x), padding=(0, margin, margin)
        )
        return result.permute(0, 2, 3, 4, 1).contiguous()

    def _turned_weight(self, x: torch.Tensor) -> torch.Tensor:
        """The weight with channels innermost. Copies: ComfyUI may lend both for one use only."""
        if self._weight is not None:
            return self._weight
        weight, bias, stream = comfy.ops.cast_bias_weight(self._conv, x, offloadable=True)
        turned = weight.clone(memory_format=torch.channels_last_3d)
        self.bias = bias.clone()
        comfy.ops.uncast_bias_weight(self._conv, weight, bias, stream)
        if turned.nbytes <= _KEPT_WEIGHT_BYTES:
            self._weight = turned
        return turned


class Layer:
    """A step of the decoder: a block of frames in, one out, or None where all are held back.

    `growth` is how many times the bytes of a frame it makes of one.
    """

    growth: float = 1

    def __call__(self, x: torch.Tensor, last: bool) -> torch.Tensor | None:
        raise NotImplementedError


class Input(Layer):
    def __init__(self, module: Any, causal: bool) -> None:
        self._conv = _Convolution(module, causal)
        self.growth = module.out_channels / module.in_channels

    def __call__(self, x: torch.Tensor, last: bool) -> torch.Tensor | None:
        hidden = self._conv(x, last)
        return None if hidden is None else hidden.add_(self._conv.bias)


class Residual(Layer):
    """Two convolutions, and the input added when they have caught up with it."""

    def __init__(self, block: Any, causal: bool) -> None:
        self._conv1 = _Convolution(block.conv1, causal)
        self._conv2 = _Convolution(block.conv2, causal)
        self._eps = block.norm1.eps, block.norm2.eps
        self._held: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, last: bool) -> torch.Tensor | None:
        hidden = self._conv1(x, last, eps=self._eps[0])
        if hidden is not None:
            hidden = self._conv2(hidden, last, self._conv1.bias, self._eps[1])
        if hidden is not None:
            decoder_kernels.add(hidden, self._conv2.bias, self._held, x)
        self._held = _held(self._held, x, 0 if hidden is None else hidden.shape[1])
        return hidden


class Upsampling(Layer):
    """A convolution whose channels become frames, rows and columns."""

    def __init__(self, block: Any, causal: bool) -> None:
        self._conv = _Convolution(block.conv, causal)
        self._stride = tuple(block.stride)
        self._residual = block.residual
        self._drop = 1 if block.stride[0] == 2 else 0
        self._held: torch.Tensor | None = None
        self.growth = block.conv.out_channels / block.conv.in_channels

    def __call__(self, x: torch.Tensor, last: bool) -> torch.Tensor | None:
        hidden = self._conv(x, last)
        if hidden is not None:
            bias, added = self._conv.bias, x if self._residual else None
            result = decoder_kernels.depth_to_space(
                hidden, bias, self._held, added, self._stride, self._drop
            )
            self._drop = 0
        if self._residual:
            self._held = _held(self._held, x, 0 if hidden is None else hidden.shape[1])
        return None if hidden is None else result


class Output(Layer):
    def __init__(self, decoder: Any, causal: bool) -> None:
        self._conv = _Convolution(decoder.conv_out, causal)
        self._eps = decoder.conv_norm_out.eps

    @property
    def bias(self) -> torch.Tensor:
        """What the pixels still lack."""
        return self._conv.bias

    def __call__(self, x: torch.Tensor, last: bool) -> torch.Tensor | None:
        return self._conv(x, last, eps=self._eps)


def _held(held: torch.Tensor | None, x: torch.Tensor, used: int) -> torch.Tensor | None:
    """What is left of `held` followed by `x` when so many frames are used, in memory of its own."""
    if held is not None and held.shape[1] > used:
        return torch.cat((held[:, used:], x), 1)
    left = x[:, used - (0 if held is None else held.shape[1]) :]
    return left.clone(memory_format=torch.contiguous_format) if left.shape[1] else None
