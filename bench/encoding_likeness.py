"""How like a clip is to the frames it was made of: PSNR and SSIM."""

# PyAV's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import av.filter
import numpy as np
from encoding_content import BT709, FPS, Pixels, Planes

# ITU-R BT.601's weights of red and of blue: what swscale takes unless it is told.
BT601 = (0.299, 0.114)


def likeness(path: Path, pictures: list[Pixels], every: int = 1) -> dict[str, float]:
    """PSNR in dB and SSIM of a clip against the pictures, over each `every`-th frame.

    The clip is decoded with the matrix it was made with: its tag's, or swscale's default.
    """
    with av.open(str(path)) as clip:
        clip.streams.video[0].thread_type = "AUTO"
        decoded = [np.asarray(frame.to_ndarray(), np.uint8) for frame in clip.decode(video=0)]
        tagged = clip.streams.video[0].codec_context.colorspace == 1
    assert len(decoded) == len(pictures), f"{path.name}: {len(decoded)} frames"
    weights = BT709 if tagged else BT601
    chosen = range(0, len(pictures), every)

    def compared(k: int) -> tuple[float, float, float]:
        return _compared(decoded[k], pictures[k], weights)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(compared, chosen))
    rgb, luma, ssim = (statistics.fmean(column) for column in zip(*found, strict=True))
    return {"psnr_rgb": _decibels(rgb), "psnr_luma": _decibels(luma), "ssim": round(ssim, 5)}


def _compared(
    planes: Planes, picture: Pixels, weights: tuple[float, float]
) -> tuple[float, float, float]:
    """Mean squared errors of the colours and of luma (of 1), and SSIM."""
    shown = _rgb_of(planes, weights)
    error = shown - picture
    luma = error @ np.array([BT709[0], 1 - sum(BT709), BT709[1]], np.float32)
    return float((error**2).mean()), float((luma**2).mean()), _ssim(shown, picture)


def _rgb_of(planes: Planes, weights: tuple[float, float]) -> Pixels:
    red, blue = weights
    height, width = planes.shape[0] * 2 // 3, planes.shape[1]
    luma = (planes[:height].astype(np.float32) - 16) / 219
    chroma = planes[height:].reshape(2, height // 2, width // 2).astype(np.float32)
    chroma = ((chroma - 128) / 224).repeat(2, 1).repeat(2, 2)
    shown = np.empty((height, width, 3), np.float32)
    shown[..., 0] = luma + 2 * (1 - red) * chroma[1]
    shown[..., 2] = luma + 2 * (1 - blue) * chroma[0]
    shown[..., 1] = (luma - red * shown[..., 0] - blue * shown[..., 2]) / (1 - red - blue)
    return shown.clip(0, 1)


def _ssim(shown: Pixels, picture: Pixels) -> float:
    graph = av.filter.Graph()
    height, width = picture.shape[:2]
    sources = [
        graph.add("buffer", f"video_size={width}x{height}:pix_fmt=gbrp:time_base=1/{FPS}")
        for _ in range(2)
    ]
    compare, sink = graph.add("ssim"), graph.add("buffersink")
    for index, source in enumerate(sources):
        source.link_to(compare, 0, index)
    compare.link_to(sink)
    graph.configure()
    for source, pixels in zip(sources, (shown, picture), strict=True):
        rounded = (pixels * 255 + 0.5).astype(np.uint8)
        frame = av.VideoFrame.from_ndarray(rounded, format="rgb24").reformat(format="gbrp")
        frame.pts, frame.time_base = 0, Fraction(1, FPS)
        source.push(frame)
    return float(sink.pull().metadata["lavfi.ssim.All"])


def _decibels(error: float) -> float:
    return round(-10 * math.log10(max(error, 1e-12)), 3)
