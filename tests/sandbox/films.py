"""Small video files to work on, and how to look at and listen to those that come of them."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from tests.sandbox.graphs import H, W

from ltx_worker.sandbox.caption import caption_height

SHOWN = slice(0, H - caption_height(W, H))
# Frames that were encoded twice, at most, differ by less than this on average; others by more.
SAME = 4.0


def write_video(file: Path, frames: int, *, sound: bool) -> None:
    """A square that walks over stripes, at 24 frames a second, beside a chord."""
    with av.open(file, "w") as output:
        video = output.add_stream("libx264", rate=24, options={"crf": "12"})
        video.width, video.height, video.pix_fmt = W, H, "yuv420p"
        audio = output.add_stream("aac", rate=44_100, layout="stereo") if sound else None
        rows, columns = np.indices((H, W))
        for index in range(frames):
            pixels = np.stack([columns * 0.9, rows * 1.7, 200 - columns * 0.5], axis=-1)
            pixels[20:60, 4 * index : 4 * index + 40] = 250
            frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="rgb24")
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        if audio:
            block = av.AudioFrame.from_ndarray(chord(44_100, frames / 24), "fltp", "stereo")
            block.sample_rate = 44_100
            output.mux([*audio.encode(block), *audio.encode(None)])


def chord(rate: int, seconds: float) -> np.ndarray:
    time = np.arange(round(rate * seconds)) / rate
    return (0.3 * np.stack([np.sin(2765 * time), np.sin(4147 * time)])).astype(np.float32)


def frames_of(file: Path) -> np.ndarray:
    """All frames without the rows of the caption."""
    with av.open(file) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames)[:, SHOWN].astype(float)


def samples_of(file: Path) -> np.ndarray:
    with av.open(file) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of two sounds over what they have in common."""
    length = min(one.shape[1], other.shape[1])
    return float(np.corrcoef(one[0, :length], other[0, :length])[0, 1])
