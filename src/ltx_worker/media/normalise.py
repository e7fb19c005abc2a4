"""A caller's picture as a file of ours: upright, RGB, free of metadata, under our own name."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps

from ltx_worker.errors import InputRejected
from ltx_worker.geometry import Size

_FORMATS = ("PNG", "JPEG", "WEBP")
# A decoded picture of this size takes 150 MB; larger ones are refused before they are decoded.
_MAX_PIXELS = 50_000_000
_WHITE = (255, 255, 255)
# Fast: the file is read once by ComfyUI and then deleted.
_PNG_LEVEL = 1


def write_image(data: bytes, field: str, path: Path) -> Size:
    """Decode `data`, write it to `path` as PNG and return its size.

    The first frame of an animation is taken, EXIF orientation applied, transparency put on white.
    Raises `InputRejected` naming `field` for anything that is not a whole PNG, JPEG or WebP.
    """
    picture = _decode(data, field)
    picture.save(path, format="PNG", compress_level=_PNG_LEVEL)
    return Size(*picture.size)


def _decode(data: bytes, field: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures on the way; the cap below decides.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
                if picture.width * picture.height > _MAX_PIXELS:
                    raise InputRejected.of(field, f"has more than {_MAX_PIXELS / 1e6:g} megapixels")
                picture.load()
                return _flatten(ImageOps.exif_transpose(picture))
    except Image.DecompressionBombError as error:
        raise InputRejected.of(field, f"has more than {_MAX_PIXELS / 1e6:g} megapixels") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise InputRejected.of(field, "is not a whole PNG, JPEG or WebP picture") from error


def _flatten(picture: Image.Image) -> Image.Image:
    """RGB pixels and nothing else: no transparency, palette or metadata."""
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        flat = Image.new("RGB", rgba.size, _WHITE)
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    rgb = picture.convert("RGB")
    rgb.info.clear()
    return rgb
