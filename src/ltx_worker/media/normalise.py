"""A caller's picture as a file of ours: upright, sRGB, free of metadata, under our own name.

What a picture takes to decode is known from its header, and one that takes more memory than is
granted is refused before.
"""

# The stubs of Pillow leave colour profiles open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import cast

from PIL import Image, ImageCms, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from ltx_worker.errors import InputRejected
from ltx_worker.geometry import Size

_FORMATS = ("PNG", "JPEG", "WEBP")
_MAX_DECODED_BYTES = 200_000_000
# Larger pictures are halved first: still twice the largest clip, and half of the memory budget
# then suffices for all that follows.
_WORKING_PIXELS = 16_000_000
# Below this there is nothing to see, and ComfyUI cannot cut a clip's shape out of a thin line.
_MIN_SIDE = 8
_MAX_RATIO = 20
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
# Fast: the file is read once by ComfyUI and then deleted.
_PNG_LEVEL = 1
_MAX_PROFILE_BYTES = 4_000_000
# Each scan of a progressive JPEG takes the time of a whole picture; encoders write about ten. What
# begins one stands nowhere in coded pixels, and seldom in metadata.
_SCAN = b"\xff\xda"
_MAX_SCANS = 64

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_picture(data: bytes, field: str) -> Image.Image:
    """Decode a PNG, JPEG or WebP, by content, into RGB pixels and nothing else.

    The first frame of an animation is taken, EXIF orientation applied, a colour profile followed,
    transparency put on white; more than 16 megapixels are halved. Raises `InputRejected` naming
    `field`.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of what is large or damaged; here it is accepted or refused.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
                _check_shape(picture, field)
                _check_cost(picture, field)
                if picture.format == "JPEG" and data.count(_SCAN) > _MAX_SCANS:
                    raise InputRejected.of(field, f"has more than {_MAX_SCANS} scans")
                return _normalised(picture)
    except Image.DecompressionBombError as error:
        raise InputRejected.of(field, "has too many pixels") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise InputRejected.of(field, "is not a whole PNG, JPEG or WebP picture") from error


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG."""
    picture.save(path, format="PNG", compress_level=_PNG_LEVEL)


def contained(picture: Image.Image, size: Size) -> Image.Image:
    """The whole picture within `size`, as large as possible, on black."""
    return ImageOps.pad(picture, (size.width, size.height), Image.Resampling.LANCZOS, _BLACK)


def _check_shape(picture: Image.Image, field: str) -> None:
    short, long = sorted(picture.size)
    shown = f"{picture.width}x{picture.height}"
    if short < _MIN_SIDE:
        raise InputRejected.of(field, f"is {shown}; each side must have at least {_MIN_SIDE}")
    if long > _MAX_RATIO * short:
        raise InputRejected.of(field, f"is {shown}; at most {_MAX_RATIO}:1 is possible")


def _check_cost(picture: Image.Image, field: str) -> None:
    most = _MAX_DECODED_BYTES / _bytes_per_pixel(picture)
    if picture.width * picture.height > most:
        shown = f"{picture.width}x{picture.height}"
        raise InputRejected.of(
            field, f"is {shown}; at most {most / 1e6:.0f} megapixels of its kind are possible"
        )


def _bytes_per_pixel(picture: Image.Image) -> float:
    """What decoding and halving takes at its peak, measured with Pillow 13."""
    if isinstance(picture, JpegImageFile):
        # Two bytes for each coefficient of all scans; the pixels come out halved already.
        parts = [(across, down) for _, across, down, _ in _jpeg_parts(picture)]
        whole = max(across for across, _ in parts) * max(down for _, down in parts)
        return 2 * sum(across * down for across, down in parts) / whole + 1
    if picture.format == "WEBP":
        return 20
    return 10 if picture.has_transparency_data else 4


def _jpeg_parts(picture: JpegImageFile) -> list[tuple[int, int, int, int]]:
    """Number, samples across, samples down and table of each component."""
    parts = picture.layer
    if not all(across and down for _, across, down, _ in parts):
        raise ValueError("a component without samples")
    return parts


def _normalised(picture: Image.Image) -> Image.Image:
    is_large = picture.width * picture.height > _WORKING_PIXELS
    if is_large and isinstance(picture, JpegImageFile):
        picture.draft(None, (picture.width // 2, picture.height // 2))
        is_large = False
    picture.load()
    turn = _TURNS.get(cast("int", picture.getexif().get(_ORIENTATION)))
    profile = picture.info.get("icc_profile")
    plain = _with_plain_samples(picture)
    if is_large:
        plain = plain.reduce(2)
    flat = _in_srgb(_flat(plain), profile)
    if flat is picture:
        flat = picture.copy()
    flat.info.clear()
    return flat if turn is None else flat.transpose(turn)


def _with_plain_samples(picture: Image.Image) -> Image.Image:
    """Eight bits a sample and no palette, which is what can be halved."""
    if picture.mode.startswith("I"):
        grey = picture.point(lambda value: value * (1 / 257)).convert("L")
        # Its transparent level is one of 16 bits.
        grey.info.clear()
        return grey
    if picture.mode in ("1", "P"):
        return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    return picture


def _flat(picture: Image.Image) -> Image.Image:
    """RGB, or CMYK as it is: no transparency."""
    if picture.has_transparency_data:
        rgba = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        flat = Image.new("RGB", rgba.size, _WHITE)
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    return picture if picture.mode in ("RGB", "CMYK") else picture.convert("RGB")


def _in_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB in sRGB by a picture's colour profile; one that does not fit it is ignored."""
    if profile and len(profile) <= _MAX_PROFILE_BYTES:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(source):
                target = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(picture, source, target, outputMode="RGB")
                return cast("Image.Image", converted)
        except (ImageCms.PyCMSError, OSError):
            pass
    return picture if picture.mode == "RGB" else picture.convert("RGB")
