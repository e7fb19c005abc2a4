"""The sandbox's pictures, drawn or worked on: soft waves from a seed, cuts, zooms and blends.

Pictures are three planes as the encoder takes them: brightness, and two of colour at half the
size. Widths and heights are even.
"""

from __future__ import annotations

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from ltx_worker.sandbox.footage import Pixels

Planes = tuple[Image.Image, Image.Image, Image.Image]

RESAMPLING = {
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# The waves are computed on a grid this many times coarser than the picture, then enlarged.
_GRID = 8

# The zoom that a drifting picture has reached at the end.
_LAST_ZOOM = 1.12

# How much of a control's brightness is seen in what is drawn along it.
_CONTROL_LIGHT = 0.6

_GREY = 128


class Waves:
    """Three layers of waves that bend each other; direction, pace and colours from a seed."""

    def __init__(self, seed: int, width: int, height: int) -> None:
        random = np.random.default_rng(seed)
        columns, rows = max(4, width // _GRID), max(4, height // _GRID)
        self._size = width, height
        x = np.linspace(-1, 1, columns, dtype=np.float32)[None, :] * (width / height)
        y = np.linspace(-1, 1, rows, dtype=np.float32)[:, None]
        angles = random.uniform(0, 2 * np.pi, 3)
        lengths = random.uniform((1.4, 2.4, 3.4), (2.4, 4.0, 5.6))
        self._phases = [
            (np.cos(angle) * x + np.sin(angle) * y) * length
            for angle, length in zip(angles, lengths, strict=True)
        ]
        self._offsets = random.uniform(0, 2 * np.pi, 3)
        self._paces = random.uniform(0.5, 1.2, 3) * random.choice((-1, 1), 3)
        self._hue = random.uniform(0, 2 * np.pi)
        self._hue_span = random.uniform(0.35, 0.75)
        self._light = random.uniform(120, 150)
        self._slope = y * random.uniform(-18, 18)
        # Where a drifting picture grows to.
        self.aim = random.uniform(0.25, 0.75, 2)

    def planes(self, seconds: float) -> Planes:
        """The waves at a time."""
        one, two, three = (
            phase + offset + pace * seconds
            for phase, offset, pace in zip(self._phases, self._offsets, self._paces, strict=True)
        )
        swell = np.sin(one)
        ripple = np.sin(two + 1.3 * swell)
        glint = np.sin(three + 1.1 * ripple)
        light = self._light + self._slope + 24 * swell + 26 * ripple + 12 * glint
        hue = self._hue + self._hue_span * (swell + 0.6 * glint) + 0.1 * seconds
        depth = 30 + 10 * ripple
        width, height = self._size
        half = width // 2, height // 2
        return (
            _enlarge(light, (width, height)),
            _enlarge(_GREY + depth * np.cos(hue), half),
            _enlarge(_GREY + depth * np.sin(hue), half),
        )


def _enlarge(values: npt.NDArray[np.floating], size: tuple[int, int]) -> Image.Image:
    grid = Image.fromarray(np.clip(values, 20, 232).astype(np.uint8))
    return grid.resize(size, Image.Resampling.BICUBIC)


def grey(width: int, height: int) -> Planes:
    """What an empty latent decodes to."""
    half = width // 2, height // 2
    colour = Image.new("L", half, _GREY)
    return Image.new("L", (width, height), _GREY), colour, colour


def to_planes(frame: av.VideoFrame) -> Planes:
    """A frame's planes; an odd last column or row is lost."""
    width, height = frame.width // 2 * 2, frame.height // 2 * 2
    if (width, height) != (frame.width, frame.height):
        pixels = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
        even = np.ascontiguousarray(pixels[:height, :width])
        frame = av.VideoFrame.from_ndarray(even, format="rgb24")
    flat = frame.reformat(format="yuv420p").to_ndarray().reshape(-1)
    luma, quarter = width * height, width * height // 4
    half = height // 2, width // 2
    return (
        Image.fromarray(flat[:luma].reshape(height, width)),
        Image.fromarray(flat[luma : luma + quarter].reshape(half)),
        Image.fromarray(flat[luma + quarter :].reshape(half)),
    )


def resized(planes: Planes, width: int, height: int, method: str, *, crop: bool) -> Planes:
    """Planes at another size: stretched, or with `crop` cut about their middle to the shape."""
    left, top, right, bottom = crop_box(planes[0].size, (width, height)) if crop else (0, 0, 0, 0)
    luma, blue, red = (
        plane.resize(
            (width // share, height // share),
            RESAMPLING[method],
            box=(
                left / share,
                top / share,
                plane.width - right / share,
                plane.height - bottom / share,
            ),
        )
        for plane, share in zip(planes, (1, 2, 2), strict=True)
    )
    return luma, blue, red


def crop_box(old: tuple[int, int], new: tuple[int, int]) -> tuple[int, int, int, int]:
    """What to cut off left, top, right and bottom of a size so that it has the other's shape."""
    shape, asked = old[0] / old[1], new[0] / new[1]
    # Whole pixels are cut off before scaling, as many on one side as on the other.
    left = round(old[0] * (1 - asked / shape) / 2) if shape > asked else 0
    top = round(old[1] * (1 - shape / asked) / 2) if shape < asked else 0
    return left, top, left, top


def fit(pixels: Pixels, width: int, height: int, method: str, *, crop: bool) -> Pixels:
    """A picture at another size: stretched, or with `crop` cut about its middle to the shape."""
    if pixels.shape[:2] == (height, width):
        return pixels
    image = Image.fromarray(pixels)
    left, top, right, bottom = crop_box(image.size, (width, height)) if crop else (0, 0, 0, 0)
    box = (left, top, image.width - right, image.height - bottom)
    return np.asarray(image.resize((width, height), RESAMPLING[method], box=box))


def grown(planes: Planes, progress: float, aim: npt.NDArray[np.floating]) -> Planes:
    """A picture this far (0 to 1) on its way of slowly growing and sliding."""
    zoom = 1 + (_LAST_ZOOM - 1) * progress
    luma, blue, red = (_zoomed(plane, zoom, aim) for plane in planes)
    return luma, blue, red


def _zoomed(plane: Image.Image, zoom: float, aim: npt.NDArray[np.floating]) -> Image.Image:
    across, down = plane.width / zoom, plane.height / zoom
    left, top = (plane.width - across) * aim[0], (plane.height - down) * aim[1]
    box = (left, top, left + across, top + down)
    return plane.resize(plane.size, Image.Resampling.BILINEAR, box=box)


def blended(one: Planes, other: Planes, share: float) -> Planes:
    """A picture with this share of another."""
    luma, blue, red = (Image.blend(a, b, share) for a, b in zip(one, other, strict=True))
    return luma, blue, red


def along(waves: Planes, control: Planes) -> Planes:
    """Waves in their own colours, lit as a control is."""
    return Image.blend(waves[0], control[0], _CONTROL_LIGHT), waves[1], waves[2]
