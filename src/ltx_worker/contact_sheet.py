"""One picture of many clips: three frames of each, with a caption."""

# PyAV's stubs leave type arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
from PIL import Image, ImageDraw, ImageFont

_FRAME = (320, 180)
_CAPTION_HEIGHT = 26
_MOMENTS = (0.0, 0.5, 1.0)
_BACKGROUND = (24, 26, 30)
_INK = (235, 235, 235)


def write_contact_sheet(clips: Sequence[tuple[str, Path]], path: Path) -> None:
    """Write a PNG with a row for each (caption, clip)."""
    width, height = _FRAME
    rows = len(clips) * (height + _CAPTION_HEIGHT)
    sheet = Image.new("RGB", (width * len(_MOMENTS), rows), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for row, (caption, clip) in enumerate(clips):
        top = row * (height + _CAPTION_HEIGHT)
        draw.text((8, top + 4), caption, fill=_INK, font=font)
        for column, frame in enumerate(_frames(clip)):
            frame.thumbnail(_FRAME)
            left = column * width + (width - frame.width) // 2
            sheet.paste(frame, (left, top + _CAPTION_HEIGHT + (height - frame.height) // 2))
    sheet.save(path)


def _frames(clip: Path) -> list[Image.Image]:
    """The first frame, the middle one and the last."""
    with av.open(str(clip)) as container:
        count = sum(1 for _ in container.decode(video=0))
    wanted = [round(moment * (count - 1)) for moment in _MOMENTS]
    with av.open(str(clip)) as container:
        frames = enumerate(container.decode(video=0))
        found: dict[int, Image.Image] = {
            index: frame.to_image() for index, frame in frames if index in wanted
        }
    return [found[index].copy() for index in wanted]
