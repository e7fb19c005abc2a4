"""The sandbox's picture: soft waves drawn from a seed, or a still that drifts into them.

Frames are planar 4:2:0, as the encoder takes them, and are drawn one at a time. A frame depends on
the footage, the rate and its number alone: drawn twice it is the same, byte for byte. Frame 0 of
footage that starts from a still is that still, but for the caption.
"""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ltx_worker.sandbox.values import Footage, Pixels, Still, seed_of

Planes = tuple[Image.Image, Image.Image, Image.Image]

# The waves are computed on a grid this many times coarser than the picture, then enlarged.
_GRID = 8

# The zoom that a still has reached at the last frame, and how much of it strength 1 keeps there.
_LAST_ZOOM = 1.12
_KEPT = 0.5

_MIDDLE_GREY = 128
_CAPTION_INK = 235
_CAPTION_SHADE = 0.4
_LONGEST_PROMPT = 300


class Painter:
    """Draws the frames of a footage played at `fps`."""

    def __init__(self, footage: Footage, fps: Fraction) -> None:
        self._footage = footage
        self._fps = fps
        size = footage.width, footage.height
        seed = seed_of(footage.passes)
        self._waves = _Waves(seed, *size) if footage.passes else None
        self._drift = _Drift(footage.first, seed, *size) if footage.first else None
        self._caption = _Caption(footage, fps)

    def frame(self, index: int) -> Pixels:
        """Frame `index` as one array: height * 3/2 rows of width, the planes Y, U, V in turn."""
        width, height = self._footage.width, self._footage.height
        flat = np.full(width * height * 3 // 2, _MIDDLE_GREY, dtype=np.uint8)
        edges = [0, width * height, width * height * 5 // 4, flat.size]
        drawn = self._planes(index)
        for plane, start, end in zip(drawn, edges, edges[1:], strict=False):
            flat[start:end] = np.asarray(plane).reshape(-1)
        self._caption.write(
            flat[: edges[1]].reshape(height, width),
            flat[edges[1] :].reshape(2, -1, width // 2),
            index,
        )
        return flat.reshape(height * 3 // 2, width)

    def _planes(self, index: int) -> tuple[Image.Image, ...]:
        progress = index / max(1, self._footage.frames - 1)
        waves = self._waves.planes(float(index / self._fps)) if self._waves else ()
        if not self._drift:
            return waves
        still = self._drift.planes(progress)
        share = (1 - _KEPT * self._footage.strength) * progress * progress * (3 - 2 * progress)
        if not waves or not share:
            return still
        return tuple(Image.blend(a, b, share) for a, b in zip(still, waves, strict=True))


def caption_height(width: int, height: int) -> int:
    """How many rows at the bottom of a picture the caption covers."""
    large, small = _font_sizes(width, height)
    return min(height, 2 * round((large + small) * 1.45 / 2) + 2)


def _font_sizes(width: int, height: int) -> tuple[int, int]:
    side = min(width, height)
    return max(10, side // 32), max(9, side // 44)


class _Waves:
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

    def planes(self, seconds: float) -> Planes:
        """The waves at a time: brightness, and the two planes of colour at half the size."""
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
            _enlarge(_MIDDLE_GREY + depth * np.cos(hue), half),
            _enlarge(_MIDDLE_GREY + depth * np.sin(hue), half),
        )


def _enlarge(values: npt.NDArray[np.floating], size: tuple[int, int]) -> Image.Image:
    grid = Image.fromarray(np.clip(values, 20, 232).astype(np.uint8))
    return grid.resize(size, Image.Resampling.BICUBIC)


class _Drift:
    """A still that slowly grows and slides; at progress 0 it is the still itself."""

    def __init__(self, still: Still, seed: int, width: int, height: int) -> None:
        random = np.random.default_rng(seed)
        self._aim = random.uniform(0.25, 0.75, 2)
        picture = fit(still.pixels, width, height, Image.Resampling.BILINEAR, crop=True)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
        flat = frame.to_ndarray().reshape(-1)
        luma, quarter = width * height, width * height // 4
        half = height // 2, width // 2
        self._planes = [
            flat[:luma].reshape(height, width),
            flat[luma : luma + quarter].reshape(half),
            flat[luma + quarter :].reshape(half),
        ]

    def planes(self, progress: float) -> Planes:
        """The still, this far (0 to 1) on its way."""
        zoom = 1 + (_LAST_ZOOM - 1) * progress
        luma, blue, red = (self._zoomed(Image.fromarray(plane), zoom) for plane in self._planes)
        return luma, blue, red

    def _zoomed(self, plane: Image.Image, zoom: float) -> Image.Image:
        across, down = plane.width / zoom, plane.height / zoom
        left, top = (plane.width - across) * self._aim[0], (plane.height - down) * self._aim[1]
        box = (left, top, left + across, top + down)
        return plane.resize(plane.size, Image.Resampling.BILINEAR, box=box)


def fit(pixels: Pixels, width: int, height: int, method: Image.Resampling, *, crop: bool) -> Pixels:
    """A picture at another size: stretched, or with `crop` cut about its middle to the shape."""
    if pixels.shape[:2] == (height, width):
        return pixels
    image = Image.fromarray(pixels)
    left, top = 0, 0
    if crop:
        # Whole pixels are cut off before scaling, as many on one side as on the other.
        old, new = image.width / image.height, width / height
        if old > new:
            left = round(image.width * (1 - new / old) / 2)
        else:
            top = round(image.height * (1 - old / new) / 2)
    box = (left, top, image.width - left, image.height - top)
    return np.asarray(image.resize((width, height), method, box=box))


class _Caption:
    """Two lines on a dark strip: SANDBOX with a frame counter, then what was asked for."""

    def __init__(self, footage: Footage, fps: Fraction) -> None:
        self._frames = footage.frames
        large, small = _font_sizes(footage.width, footage.height)
        self._font = _font(large)
        self._large, self._margin = large, large // 2
        facts = [f"{footage.width}x{footage.height}", f"{float(fps):g} fps"]
        if footage.passes:
            first = footage.passes[0]
            prompt = " ".join(first.guider.positive.text[:_LONGEST_PROMPT].split())
            facts += [f"seed {first.noise.seed}", prompt]
        small_font = _font(small)
        line = _shortened(" · ".join(facts), small_font, footage.width - 2 * self._margin)
        self._strip = Image.new("L", (footage.width, caption_height(footage.width, footage.height)))
        ink = ImageDraw.Draw(self._strip)
        ink.text((self._margin, large // 4), "SANDBOX", fill=255, font=self._font)
        ink.text((self._margin, round(large * 1.4)), line, fill=255, font=small_font)

    def write(self, luma: Pixels, chroma: Pixels, index: int) -> None:
        """Put the caption on the bottom rows of a picture: brightness, and the two of colour."""
        strip = self._strip.copy()
        counter = f"{index + 1:03}/{self._frames:03}"
        place = (strip.width - self._margin, self._large // 4)
        ImageDraw.Draw(strip).text(place, counter, fill=255, font=self._font, anchor="ra")
        alpha = np.asarray(strip, dtype=np.float32) / 255
        rows = luma[luma.shape[0] - strip.height :]
        rows[:] = rows * _CAPTION_SHADE * (1 - alpha) + _CAPTION_INK * alpha
        colour = chroma[:, chroma.shape[1] - strip.height // 2 :]
        colour[:] = _MIDDLE_GREY + (colour.astype(np.float32) - _MIDDLE_GREY) * _CAPTION_SHADE


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, so that no font file is needed."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
