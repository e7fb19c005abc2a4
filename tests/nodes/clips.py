"""Clips whose frames can be told apart, written by the worker's encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
from ltx_worker_nodes.encoding import ClipEncoder
from ltx_worker_nodes.encoding_segments import Plan

WIDTH, HEIGHT, FRAMES = 128, 64, 60
RATE = 48_000
# Frames are told apart by this many positions of a bright square.
PLACES = 8
IN_THREE = Plan(((0, 20), (20, 20), (40, 20)), at_a_time=2, threads=2)


def numbered(frames: int = FRAMES) -> np.ndarray:
    """Frames of which each shows its number, in base 8, as the places of two bright squares."""
    planes = np.full((frames, HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
    planes[:, :HEIGHT] = 40
    for k, frame in enumerate(planes):
        for row, digit in enumerate(divmod(k, PLACES)):
            x = digit * 16
            frame[row * 32 + 8 : row * 32 + 24, x : x + 16] = 220
    return planes


def number_of(luma: np.ndarray) -> int:
    """The number that a frame shows."""
    squares = luma[:HEIGHT].reshape(2, 32, PLACES, 16).mean((1, 3))
    tens, ones = squares.argmax(1)
    return int(tens * PLACES + ones)


def tone(seconds: float, channels: int = 2) -> np.ndarray:
    samples = 0.3 * np.sin(np.arange(round(seconds * RATE)) / 20)
    return np.stack([samples] * channels).astype(np.float32)


def write(path: Path, planes: np.ndarray, sound: np.ndarray | None = None, **options: Any) -> Path:
    """A clip of `planes`, added seven at a time."""
    height, width = planes.shape[1] * 2 // 3, planes.shape[2]
    announced = None if sound is None else (RATE, len(sound))
    rate = options.pop("frame_rate", 24)
    with ClipEncoder(path, width, height, len(planes), rate, sound=announced, **options) as clip:
        if sound is not None:
            clip.add_sound(sound)
        for start in range(0, len(planes), 7):
            clip.add(planes[start : start + 7])
        return clip.finish()


def luma_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as clip:
        return [frame.to_ndarray() for frame in clip.decode(video=0)]


def clip_encoder(path: Path, **options: Any) -> ClipEncoder:
    return ClipEncoder(path, WIDTH, HEIGHT, FRAMES, 24, **options)
