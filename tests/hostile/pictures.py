"""Pictures that are not what they seem, each built by itself and named for what it does."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageCms
from tests.hostile.answers import CANARY

ORIENTATION, DESCRIPTION = 0x0112, 0x010E


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 96, height: int = 64, mode: str = "RGB") -> Image.Image:
    """A picture that does not compress."""
    return Image.effect_noise((width, height), 60).convert(mode)


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(width: int, height: int, *extra: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG of zeros that says it is so large, compressed as it is made."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = bytes(min(10**6, 1 + (width * samples * depth + 7) // 8))
    packer = zlib.compressobj(9)
    # What is refused for its size needs no pixels.
    rows = height if len(row) * height < 500_000_000 else 0
    body = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + b"".join(extra)
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def _with_chunk(kind: bytes, body: bytes) -> bytes:
    data = encoded(noise())
    return data[:33] + chunk(kind, body) + data[33:]


def _unpacks_to(size: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(10**6)) for _ in range(size // 10**6)) + packer.flush()


def _many_texts() -> bytes:
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000), 9))
    return encoded(noise())[:33] + text * 200 + encoded(noise())[33:]


def _jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose header says that it is so large."""
    data = bytearray(encoded(noise(), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def _many_scans() -> bytes:
    """A progressive JPEG whose last scan comes a thousand times, over a large picture."""
    data = encoded(Image.new("RGB", (5000, 5000)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 1000 + data[-2:]


def _webp_of(width: int, height: int) -> bytes:
    """A WebP whose canvas is said to be so large."""
    data = bytearray(encoded(noise(mode="RGBA"), "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"))
    start = data.index(b"VP8X") + 12
    data[start : start + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def _animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (96, 64), (level, 0, 0)) for level in (250, 120, 10)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=40)


def _archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"../{CANARY}.py", "import os")
    return buffer.getvalue()


def _exif(**more: Any) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[DESCRIPTION] = CANARY
    return exif


def _profile(kind: Any) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(kind)).tobytes()


def _damaged(kind: str) -> bytes:
    data = bytearray(encoded(noise(), kind))
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    return bytes(data)


def _deep() -> bytes:
    levels = np.linspace(0, 65_535, 96 * 64).reshape(64, 96).astype(np.uint16)
    return encoded(Image.fromarray(levels))


_SVG = (
    b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><text>&x;</text>'
    b'<image href="https://127.0.0.1/x.png"/></svg>'
)

Build = Callable[[], bytes]

REFUSED: dict[str, Build] = {
    "png-bomb-1-bit": lambda: png_of(20_000, 20_000, depth=1, colour=0),
    "png-bomb-palette": lambda: png_of(30_000, 15_000, chunk(b"PLTE", bytes(3)), colour=3),
    "png-bomb-rgba": lambda: png_of(5_500, 5_500, colour=6),
    "png-bomb-16-bit": lambda: png_of(9_000, 9_000, depth=16, colour=6),
    "png-of-2-billion": lambda: png_of(2**31 - 1, 2**31 - 1),
    "png-of-no-width": lambda: png_of(0, 64),
    "png-text-bomb": lambda: _with_chunk(b"zTXt", b"a\0\0" + _unpacks_to(400_000_000)),
    "png-many-texts": _many_texts,
    "png-profile-bomb": lambda: _with_chunk(b"iCCP", b"a\0\0" + _unpacks_to(400_000_000)),
    "png-half": lambda: encoded(noise())[:5000],
    "png-head": lambda: encoded(noise())[:40],
    "png-damaged": lambda: _damaged("PNG"),
    "jpeg-half": lambda: encoded(noise(), "JPEG")[:1200],
    "jpeg-head": lambda: encoded(noise(), "JPEG")[:100],
    "jpeg-of-65500": lambda: _jpeg_of(65_500, 65_500),
    "jpeg-many-scans": _many_scans,
    "webp-half": lambda: encoded(noise(), "WEBP")[:1000],
    "webp-head": lambda: encoded(noise(), "WEBP")[:25],
    "webp-of-16383": lambda: _webp_of(16_383, 16_383),
    "webp-bomb": lambda: encoded(Image.new("RGB", (8000, 8000)), "WEBP", quality=1, method=0),
    "one-pixel": lambda: encoded(Image.new("RGB", (1, 1))),
    "one-column": lambda: encoded(Image.new("RGB", (1, 20_000))),
    "thin": lambda: encoded(Image.new("RGB", (10, 2000))),
    "gif": lambda: encoded(noise(mode="P"), "GIF"),
    "gif-animated": lambda: _animated("GIF"),
    "gif-and-script": lambda: b"GIF89a/*" + bytes(30) + b"*/=1;alert(1)//;",
    "svg": lambda: _SVG,
    "html": lambda: b"<!doctype html><img src=x onerror=alert(1)>",
    "bmp": lambda: encoded(noise(), "BMP"),
    "tiff": lambda: encoded(noise(), "TIFF"),
    "ico": lambda: encoded(noise(64, 64), "ICO"),
    "pdf": lambda: encoded(noise(), "PDF"),
    "eps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(/etc/passwd) run\n",
    "ppm": lambda: b"P6 64 64 255\n" + bytes(3 * 64 * 64),
    "zip": _archive,
    "mvg": lambda: b"push graphic-context\nimage over 0,0 0,0 'https://127.0.0.1/x'\n",
    "zeros": lambda: bytes(100_000),
}
NORMALISED: dict[str, Build] = {
    "png-and-zip": lambda: encoded(noise()) + _archive(),
    "png-with-text": lambda: _with_chunk(b"tEXt", b"Comment\0" + CANARY.encode()),
    "png-animated": lambda: _animated("PNG"),
    "png-16-bit": _deep,
    "png-palette": lambda: encoded(noise(mode="P"), transparency=3),
    "png-rgba": lambda: encoded(noise(mode="RGBA")),
    "png-bad-profile": lambda: encoded(noise(), icc_profile=b"no profile" * 50),
    "png-lab-profile": lambda: encoded(noise(), icc_profile=_profile("LAB")),
    "png-large": lambda: png_of(6900, 6900),
    "jpeg-turned": lambda: encoded(noise(), "JPEG", exif=_exif()),
    "jpeg-bad-exif": lambda: encoded(noise(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" * 9),
    "jpeg-and-php": lambda: encoded(noise(), "JPEG", comment=f"<?php {CANARY} ?>"),
    "jpeg-cmyk": lambda: encoded(noise().convert("CMYK"), "JPEG"),
    "jpeg-progressive": lambda: encoded(noise(), "JPEG", progressive=True),
    "jpeg-large": lambda: encoded(Image.new("RGB", (6900, 6900), (9, 99, 199)), "JPEG"),
    "webp-animated": lambda: _animated("WEBP"),
    "webp-alpha": lambda: encoded(noise(mode="RGBA"), "WEBP"),
}
