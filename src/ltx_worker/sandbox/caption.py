"""The caption of the sandbox's pictures: SANDBOX, a frame counter, and what the graph asked for."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ltx_worker.sandbox.footage import Footage, Pixels, sources_of
from ltx_worker.sandbox.latents import Drawn

_INK = 235
_SHADE = 0.4
_GREY = 128
_LONGEST_PROMPT = 300


def caption_height(width: int, height: int) -> int:
    """How many rows at the bottom of a picture the caption covers."""
    large, small = _font_sizes(width, height)
    return min(height, 2 * round((large + small) * 1.45 / 2) + 2)


def _font_sizes(width: int, height: int) -> tuple[int, int]:
    side = min(width, height)
    return max(10, side // 32), max(9, side // 44)


def facts(footage: Footage, fps: Fraction) -> list[str]:
    """What the caption says: what was done, the size and rate, the first seed, the prompt."""
    drawn = [source.latent for source in sources_of(footage) if isinstance(source, Drawn)]
    notes = dict.fromkeys(note for latent in drawn for note in latent.notes)
    said = [*notes, f"{footage.width}x{footage.height}", f"{float(fps):g} fps"]
    if passes := [run for latent in drawn for run in latent.passes]:
        prompt = " ".join(passes[0].guider.positive.text[:_LONGEST_PROMPT].split())
        said += [f"seed {passes[0].noise.seed}", prompt]
    return said


class Caption:
    """Two lines on a dark strip."""

    def __init__(self, footage: Footage, fps: Fraction) -> None:
        self._frames = footage.frames
        large, small = _font_sizes(footage.width, footage.height)
        self._font = _font(large)
        self._large, self._margin = large, large // 2
        small_font = _font(small)
        text = " · ".join(facts(footage, fps))
        line = _shortened(text, small_font, footage.width - 2 * self._margin)
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
        rows[:] = rows * _SHADE * (1 - alpha) + _INK * alpha
        colour = chroma[:, chroma.shape[1] - strip.height // 2 :]
        colour[:] = _GREY + (colour.astype(np.float32) - _GREY) * _SHADE


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
