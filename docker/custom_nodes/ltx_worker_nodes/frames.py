"""ComfyUI's pictures as an encoder's: float RGB to 8-bit YUV 4:2:0 in BT.709, limited range.

The work is done where the pictures are. From a GPU only the finished bytes come over, an eighth of
the float pictures, and while one batch is on its way the next one is converted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

# ITU-R BT.709: the weights of red, green and blue in luma.
_RED, _GREEN, _BLUE = 0.2126, 0.7152, 0.0722
# Limited range, 8 bit: luma is 16 .. 235, chroma 16 .. 240 around 128.
_LUMA_RANGE, _LUMA_BLACK = 219, 16
_CHROMA_RANGE, _CHROMA_ZERO = 224, 128
# Conversion to whole numbers cuts off, so this makes it round.
_ROUND = 0.5
# Pixels of a batch: a GPU wants many at a time, each of which takes some 30 bytes meanwhile; on a
# CPU one picture's copies stay in its cache.
_GPU_BATCH = 8 * 2**20


def plane_batches(images: torch.Tensor) -> Iterator[npt.NDArray[np.uint8]]:
    """All pictures as planes, in batches: uint8 of shape (frames, height * 3 / 2, width).

    `images` are (frames, height, width, channels), red, green and blue in 0 .. 1 first; what is
    beyond is cut off. Raises `ValueError` where a side is odd.
    """
    _, height, width, _ = images.shape
    frames = max(1, _GPU_BATCH // (height * width)) if images.is_cuda else 1
    ready: Sent | None = None
    for batch in images.split(frames):
        coming = send(planes_of(batch))
        if ready is not None:
            yield ready.arrived()
        ready = coming
    if ready is not None:
        yield ready.arrived()


def planes_of(images: torch.Tensor) -> torch.Tensor:
    """Pictures (frames, height, width, channels) as uint8 (frames, height * 3 / 2, width).

    Each frame has its planes one after the other, as FFmpeg's yuv420p: Y, then U and V at half the
    size. A chroma sample is the mean of its four pixels, and so lies between them. The result is
    on the device of `images`. Raises `ValueError` where a side is odd.
    """
    frames, height, width, _ = images.shape
    if height % 2 or width % 2:
        raise ValueError(f"pictures of {width}x{height} cannot be encoded: sides must be even")
    red, green, blue = (plane.clamp(0, 1) for plane in images[..., :3].float().unbind(-1))
    luma = (red * _RED).add_(green, alpha=_GREEN).add_(blue, alpha=_BLUE)
    planes = torch.empty((frames, height * 3 // 2 * width), dtype=torch.uint8, device=luma.device)
    pixels, quarter = height * width, height * width // 4
    blue_part = _chroma(blue.sub_(luma), 1 - _BLUE)
    red_part = _chroma(red.sub_(luma), 1 - _RED)
    planes[:, :pixels] = luma.mul_(_LUMA_RANGE).add_(_LUMA_BLACK + _ROUND).flatten(1)
    planes[:, pixels : pixels + quarter] = blue_part.flatten(1)
    planes[:, pixels + quarter :] = red_part.flatten(1)
    return planes.view(frames, height * 3 // 2, width)


def change_of(planes: torch.Tensor) -> float:
    """How much luma changes from frame to frame: the mean of its differences, of 1.

    `planes` as `planes_of` gives them. Waits for the GPU. 0 for a single frame.
    """
    luma = planes[:, : planes.shape[1] * 2 // 3].float()
    return float((luma[1:] - luma[:-1]).abs().mean()) / _LUMA_RANGE if len(luma) > 1 else 0.0


def _chroma(difference: torch.Tensor, largest: float) -> torch.Tensor:
    """Colour differences of at most `largest` as chroma, one for each two by two pixels."""
    rows = difference[:, 0::2] + difference[:, 1::2]
    sums = rows[:, :, 0::2] + rows[:, :, 1::2]
    # Four pixels, and differences that reach from -largest to largest.
    return sums.mul_(_CHROMA_RANGE / (8 * largest)).add_(_CHROMA_ZERO + _ROUND)


@dataclass(frozen=True)
class Sent:
    """A copy on its way to main memory; `done` says when it is there (None: it is)."""

    copy: torch.Tensor
    done: torch.cuda.Event | None

    def arrived(self) -> npt.NDArray[np.uint8]:
        """Wait for it."""
        if self.done is not None:
            self.done.synchronize()
        return self.copy.numpy()


def send(planes: torch.Tensor) -> Sent:
    """Begin to copy planes to main memory."""
    if planes.device.type != "cuda":
        return Sent(planes.cpu(), None)
    copy = torch.empty(planes.shape, dtype=planes.dtype, pin_memory=True)
    copy.copy_(planes, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(planes.device))
    return Sent(copy, done)
