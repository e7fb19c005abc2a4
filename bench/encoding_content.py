"""Clips to encode: what a camera might see, and what random weights make.

Drawn from seeded generators, so they are the same at every call.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.float32]
Planes = npt.NDArray[np.uint8]

FPS = 24
SAMPLE_RATE = 24_000
# ITU-R BT.709: the weights of red and of blue in luma.
BT709 = (0.2126, 0.0722)
# Grain's standard deviation, of 1, by content.
GRAINS = {"clean": 0.0, "calm": 0.005, "natural": 0.02, "nearing": 0.006}
CONTENTS = (*GRAINS, "noise")
# The picture moves by so many pixels a frame, so that it also lies between pixels.
PAN = 1.5
# How much larger the picture becomes with each frame.
NEARING = 0.004


def content(name: str, frames: int, height: int, width: int) -> list[Pixels]:
    """Frames of (height, width, 3) in 0 .. 1, the same at every call.

    `natural`, `calm` and `clean`: sky, land and houses pass by, a round body floats before them,
    the light changes, and there is much grain, little or none. `nearing`: the camera comes nearer,
    so that little moves by whole or half pixels. `noise` is what random weights make.
    """
    if name == "noise":
        return list(
            _in_threads(lambda k: _seeded(k).random((height, width, 3), np.float32), frames)
        )
    random = np.random.default_rng(1)
    if name == "nearing":
        return list(_in_threads(_Nearing(_scene(random, height, width)).frame, frames))
    scene = _scene(random, height, width + math.ceil(PAN * frames) + 1)
    body = _color(0.7, 0.5, 0.4) + _texture(random, height // 2, width // 4, 1.3, 0.12)
    draw = _Camera(scene, body, _disc(*body.shape[:2]), width, GRAINS[name])
    return list(_in_threads(draw.frame, frames))


@dataclass(frozen=True)
class _Camera:
    """Pans over a scene, with a body before it."""

    scene: Pixels
    body: Pixels
    disc: Pixels
    width: int
    grain: float

    def frame(self, k: int) -> Pixels:
        left, rest = divmod(k * PAN, 1)
        columns = self.scene[:, int(left) : int(left) + self.width + 1]
        picture = columns[:, :-1] * np.float32(1 - rest) + columns[:, 1:] * np.float32(rest)
        height, width = self.disc.shape[:2]
        x = int((self.width - width) * (0.5 + 0.45 * math.sin(k / 31)))
        y = int((len(picture) - height) * (0.5 + 0.3 * math.cos(k / 23)))
        behind = picture[y : y + height, x : x + width]
        behind += (self.body - behind) * self.disc
        picture *= np.float32(1 + 0.05 * math.sin(k / 19))
        grain = _seeded(k).standard_normal((*picture.shape[:2], 1), np.float32)
        return (picture + np.float32(self.grain) * grain).clip(0, 1)


@dataclass(frozen=True)
class _Nearing:
    """Comes nearer to the middle of a scene."""

    scene: Pixels

    def frame(self, k: int) -> Pixels:
        picture = self.scene
        for axis in (0, 1):
            picture = _magnified(picture.swapaxes(0, axis), 1 + NEARING * k).swapaxes(0, axis)
        grain = _seeded(k).standard_normal((*picture.shape[:2], 1), np.float32)
        return (picture + np.float32(GRAINS["nearing"]) * grain).clip(0, 1)


def _magnified(rows: Pixels, times: float) -> Pixels:
    """The middle rows, so many times as far apart, as many as before."""
    middle = (len(rows) - 1) / 2
    at = (np.arange(len(rows)) - middle) / times + middle
    above = at.astype(int).clip(0, len(rows) - 2)
    share = (at - above).astype(np.float32)[:, None, None]
    return (rows[above] * (1 - share) + rows[above + 1] * share).astype(np.float32, copy=False)


def _scene(random: np.random.Generator, height: int, width: int) -> Pixels:
    sky = _color(0.55, 0.65, 0.8) + _texture(random, height, width, 1.8, 0.06)
    land = _color(0.40, 0.38, 0.30) + _texture(random, height, width, 1.15, 0.13)
    skyline = height * (0.42 + 0.05 * random.normal(size=width).cumsum() / math.sqrt(width))
    is_land = (np.arange(height)[:, None] - skyline).clip(0, 1).astype(np.float32)[..., None]
    scene = np.asarray(sky + (land - sky) * is_land, np.float32)
    for _ in range(width // 45):
        tall, wide = int(random.integers(height // 20, height // 2)), int(random.integers(10, 70))
        top, left = int(random.integers(height // 4, height - tall)), random.integers(width - wide)
        tone = random.uniform(0.15, 0.75) + random.normal(0, 0.04, 3)
        house = tone.astype(np.float32) + _texture(random, tall, wide, 1.0, 0.02)
        house[::9] *= 0.7
        house[:, ::7] *= 0.85
        scene[top : top + tall, left : left + wide] = house
    return scene


def _texture(
    random: np.random.Generator, height: int, width: int, fall: float, contrast: float
) -> Pixels:
    """Noise whose strength falls with frequency as in photographs, mostly grey."""
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    strength = np.maximum(np.hypot(rows, columns), 3 / max(height, width)) ** -fall

    def plane() -> npt.NDArray[np.float64]:
        spectrum = np.fft.rfft2(random.normal(size=(height, width))) * strength
        drawn = np.fft.irfft2(spectrum, s=(height, width))
        return drawn / drawn.std()

    grey = plane()
    drawn = np.stack([grey + 0.25 * plane() for _ in "rgb"], -1)
    return (contrast * drawn).astype(np.float32)


def _disc(height: int, width: int) -> Pixels:
    """1 inside an ellipse, 0 outside, with a soft edge."""
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    return (40 * (1 - np.hypot(y, x))).clip(0, 1).astype(np.float32)[..., None]


def _color(red: float, green: float, blue: float) -> Pixels:
    return np.array([red, green, blue], np.float32)


def _seeded(k: int) -> np.random.Generator:
    return np.random.default_rng((1, k))


def _in_threads(draw: Callable[[int], Pixels], frames: int) -> Iterator[Pixels]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(draw, range(frames))


def planes_of(picture: Pixels) -> Planes:
    """A picture as 8-bit planes in BT.709, limited range, a chroma sample for each four pixels."""
    red, blue = BT709
    luma = picture @ _color(red, 1 - red - blue, blue)
    quarters = [
        (224 / (2 * (1 - weight)) * (picture[..., index] - luma))
        .reshape(luma.shape[0] // 2, 2, luma.shape[1] // 2, 2)
        .mean((1, 3))
        + 128
        for index, weight in ((2, blue), (0, red))
    ]
    flat = np.concatenate([(16 + 219 * luma).ravel(), *(plane.ravel() for plane in quarters)])
    return (flat + 0.5).astype(np.uint8).reshape(-1, luma.shape[1])


def chord(frames: int) -> Pixels:
    """Three voices, as float samples of (2, samples)."""
    at_s = np.arange(round(frames / FPS * SAMPLE_RATE)) / SAMPLE_RATE
    voices = sum(np.sin(2 * np.pi * pitch * at_s) for pitch in (220.0, 277.2, 329.6))
    return np.stack([voices / 10] * 2).astype(np.float32)
