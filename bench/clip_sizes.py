"""How large a clip becomes: the runbook's figures for the bucket.

Draws what a camera might see, a landscape of cloud-like texture that moves across the picture
with 2 % grain on it, and encodes it as ComfyUI's SaveVideo does (x264 with its defaults, AAC). A
real clip may have a third of it when it is calm, and three times as much when all of it moves.

    python bench/clip_sizes.py
"""

# PyAV's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import io

import av
import numpy as np
import numpy.typing as npt

from ltx_worker.geometry import RESOLUTIONS

FPS = 24
SECONDS = 5
SAMPLE_RATE = 24_000
# How far the picture moves in a frame, and how strong its grain is (of 255).
PIXELS_PER_FRAME = 2
GRAIN = 5.0


def main() -> None:
    for name, (width, height) in RESOLUTIONS.items():
        size = len(encoded(width, height, FPS * SECONDS + 1))
        print(f"{name}: {size / 1e6:.2f} MB for {SECONDS} s")


def encoded(width: int, height: int, frames: int) -> bytes:
    """An mp4 of so many frames, with a chord of three voices."""
    random = np.random.default_rng(1)
    scene = texture(random, width + PIXELS_PER_FRAME * frames, height)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        video = output.add_stream("h264", rate=FPS)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = output.add_stream("aac", rate=SAMPLE_RATE, layout="stereo")
        for index in range(frames):
            start = PIXELS_PER_FRAME * index
            grain = random.normal(0, GRAIN, (height, width, 1))
            pixels = np.clip(scene[:, start : start + width] + grain, 0, 255).astype(np.uint8)
            output.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(video.encode(None))
        time = np.arange(round(frames / FPS * SAMPLE_RATE)) / SAMPLE_RATE
        chord = sum(np.sin(2 * np.pi * pitch * time) for pitch in (220.0, 277.2, 329.6))
        samples = np.stack([chord / 10, chord / 10]).astype(np.float32)
        block = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        block.sample_rate = SAMPLE_RATE
        output.mux([*audio.encode(block), *audio.encode(None)])
    return buffer.getvalue()


def texture(random: np.random.Generator, width: int, height: int) -> npt.NDArray[np.float64]:
    """Noise of which each frequency has as much as in photographs (1/f), as (height, width, 3)."""
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]
    fall = 1 / np.maximum(np.hypot(rows, columns), 1 / max(width, height))
    planes = [
        np.fft.ifft2(np.fft.fft2(random.normal(size=(height, width))) * fall).real for _ in range(3)
    ]
    stacked = np.stack(planes, axis=-1)
    return 128 + 45 * stacked / stacked.std()


if __name__ == "__main__":
    main()
