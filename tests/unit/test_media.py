"""Pictures that callers send: decoded, checked, and written as one form."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from ltx_worker.comfy.client import ComfyClient
from ltx_worker.errors import InputRejected, InvalidRequest
from ltx_worker.geometry import Size
from ltx_worker.job_files import JobFiles
from ltx_worker.media.fetch import read_media
from ltx_worker.media.normalise import contained, read_picture, write_picture
from ltx_worker.media.placing import Placer
from ltx_worker.offer import Offer, WorkflowOffer
from ltx_worker.request import GenerateRequest
from ltx_worker.request_fields import Fit, MediaSource
from ltx_worker.request_reader import parse_request
from ltx_worker.settings import Settings
from ltx_worker.stop import StopSignal

STOP = StopSignal(3600)
ORIENTATION, DESCRIPTION = 0x0112, 0x010E
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile() -> bytes:
    """A profile like sRGB whose red and green have changed places."""
    changed = bytearray(SRGB.replace(b"s\0R\0G\0B", b"t\0e\0s\0t").replace(b"sRGB", b"test"))
    for first, second in ((b"rXYZ", b"gXYZ"),):
        at, other = changed.index(first, 128), changed.index(second, 128)
        changed[at : at + 4], changed[other : other + 4] = second, first
    return bytes(changed)


SWAPPED = swapped_profile()


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def test_a_data_uri_and_bare_base64_are_the_same_bytes() -> None:
    """The prefix of a data URI is taken off, and line breaks are allowed."""
    text = base64.b64encode(b"some bytes" * 20).decode()
    for form in (text, f"data:image/png;base64,{text}", text[:40] + "\n" + text[40:]):
        assert read_media(MediaSource(base64=form), "image", 1000, STOP) == b"some bytes" * 20


def test_the_limit_of_base64_is_exact_and_known_before_decoding() -> None:
    """The size follows from the text's length, without blanks and padding."""
    for size in (999, 1000, 1001):
        text = base64.b64encode(bytes(size)).decode() + "\r\n \t" * 500
        if size <= 1000:
            assert len(read_media(MediaSource(base64=text), "image", 1000, STOP)) == size
        else:
            with pytest.raises(InputRejected, match=r"larger than 0\.001 MB"):
                read_media(MediaSource(base64=text), "image", 1000, STOP)
    with pytest.raises(InputRejected, match=r"larger than 0\.001 MB"):
        read_media(MediaSource(base64="!" * 4000), "image", 1000, STOP)


def written(data: bytes, path: Path) -> Image.Image:
    """A picture as it was written."""
    write_picture(read_picture(data, "image"), path)
    with Image.open(path) as image:
        image.load()
        assert (image.format, image.mode) == ("PNG", "RGB")
        return image


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "image.png"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1", "LA", "I;16"])
def test_every_kind_of_picture_becomes_rgb(mode: str, out: Path) -> None:
    """Palettes, transparency, CMYK and 16 bits end as an RGB file of the same size."""
    kind = "JPEG" if mode == "CMYK" else "PNG"
    assert written(encoded(Image.new(mode, (40, 30)), kind), out).size == (40, 30)


def test_sixteen_bits_become_eight() -> None:
    """Grey levels are scaled, not cut off."""
    levels = np.linspace(0, 65_535, 40 * 30).reshape(30, 40).astype(np.uint16)
    for options in ({}, {"transparency": 40_000}):
        picture = read_picture(encoded(Image.fromarray(levels), **options), "image")
        grey = np.asarray(picture)[:, :, 0].astype(int)
        assert np.abs(grey - levels / 257).max() <= 1


@pytest.mark.parametrize("size", [(16, 16), (4400, 4200)])
def test_transparency_is_put_on_white(size: tuple[int, int]) -> None:
    """A transparent pixel is white, not black, also where a large picture is halved."""
    for mode, colour in (("RGBA", (0, 0, 0, 0)), ("LA", (0, 0)), ("P", 0)):
        options = {"transparency": 0} if mode == "P" else {}
        picture = read_picture(encoded(Image.new(mode, size, colour), **options), "image")
        assert picture.getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_is_applied_and_metadata_dropped(turn: int, out: Path) -> None:
    """A phone's picture stands upright, in all eight ways it may be held; its EXIF is gone."""
    exif = Image.Exif()
    exif[ORIENTATION], exif[DESCRIPTION] = turn, "canary"
    source = Image.linear_gradient("L").resize((40, 20)).convert("RGB")
    source.putpixel((0, 0), (250, 0, 0))
    data = encoded(source, "PNG", exif=exif)
    picture = written(data, out)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
    assert picture.size == ((20, 40) if turn > 4 else (40, 20))
    assert picture.tobytes() == upright.tobytes()
    assert b"canary" not in out.read_bytes()
    assert not picture.getexif()


def test_a_colour_profile_is_followed() -> None:
    """What was written for another screen looks the same in sRGB; sRGB itself is not touched."""
    source = Image.new("RGB", (16, 16), (120, 40, 200))
    swapped = read_picture(encoded(source, icc_profile=SWAPPED), "image")
    plain = read_picture(encoded(source, icc_profile=SRGB), "image")
    assert plain.getpixel((4, 4)) == (120, 40, 200)
    pixel = swapped.getpixel((4, 4))
    assert isinstance(pixel, tuple)
    assert max(abs(a - b) for a, b in zip(pixel, (40, 120, 200), strict=True)) <= 2


def test_the_first_frame_of_an_animation_is_taken() -> None:
    """The others are not even decoded."""
    frames = [Image.new("RGB", (16, 16), (level, 0, 0)) for level in (250, 120, 10)]
    for kind in ("PNG", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert read_picture(data, "image").getpixel((4, 4)) == (250, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_more_than_can_be_used_is_halved(kind: str) -> None:
    """A photograph of 20 megapixels keeps five, and looks the same."""
    picture = read_picture(encoded(Image.new("RGB", (5000, 4000), (90, 120, 30)), kind), "image")
    assert picture.size == (2500, 2000)
    pixel = picture.getpixel((1000, 1000))
    assert isinstance(pixel, tuple)
    assert max(abs(a - b) for a, b in zip(pixel, (90, 120, 30), strict=True)) <= 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_half_a_file_is_refused(kind: str) -> None:
    """A picture cut off in the middle is not used."""
    data = encoded(Image.effect_noise((100, 100), 50).convert("RGB"), kind)
    with pytest.raises(InputRejected, match="not a whole"):
        read_picture(data[: len(data) // 2], "image")


@pytest.mark.parametrize(
    "data",
    [b"", b"<svg/>", b"%PDF-1.7", encoded(Image.new("RGB", (16, 16)), "GIF"), b"\x89PNG\r\n\x1a\n"],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    """Only PNG, JPEG and WebP are read, by content and not by name."""
    with pytest.raises(InputRejected):
        read_picture(data, "image")


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((20_000, 20_000), "has too many pixels"),
        ((8000, 8000), "is 8000x8000; at most 50 megapixels of its kind"),
        ((1, 1), "is 1x1; each side must have at least 8"),
        ((8, 7), "is 8x7; each side must have at least 8"),
        ((10, 201), "is 10x201; at most 20:1"),
        ((1, 20_000), "is 1x20000; each side must have at least 8"),
    ],
)
def test_a_size_of_no_use_is_refused_before_decoding(size: tuple[int, int], reason: str) -> None:
    """A small file that would unpack to gigabytes is not unpacked, and a line is no picture."""
    data = encoded(Image.new("1", size))
    assert len(data) < 100_000
    with pytest.raises(InputRejected, match=reason):
        read_picture(data, "image")


@pytest.mark.parametrize("size", [(8, 8), (10, 200)])
def test_the_smallest_and_the_thinnest_are_taken(size: tuple[int, int], out: Path) -> None:
    """The limits themselves are allowed."""
    assert written(encoded(Image.new("RGB", size)), out).size == size


def test_a_contained_picture_is_whole_and_on_black() -> None:
    """A portrait in a landscape has black beside it, and nothing is stretched or lost."""
    source = Image.new("RGB", (50, 100), (200, 30, 30))
    pixels = np.asarray(contained(source, Size(400, 200)))
    assert pixels.shape == (200, 400, 3)
    assert (pixels[:, 150:250] == (200, 30, 30)).all()
    assert not pixels[:, :149].any()
    assert not pixels[:, 251:].any()


@pytest.mark.parametrize(("fit", "size"), [("cover", (60, 90)), ("contain", (256, 128))])
def test_a_request_says_how_a_picture_is_fitted(
    fit: Fit, size: tuple[int, int], tmp_path: Path
) -> None:
    """ComfyUI covers the clip with what it gets; to be contained, it gets the clip's own shape."""
    text = base64.b64encode(encoded(Image.new("RGB", (60, 90)))).decode()
    request = GenerateRequest(
        *("i2v", "ltx-2", "fast", "x", Size(256, 128), 9, 24, 1),
        image=MediaSource(base64=text),
        fit=fit,
    )
    with JobFiles(ComfyClient("http://127.0.0.1:9"), tmp_path, None) as files:
        _, placed = Placer(Settings(), files, STOP).place(request)
        with Image.open(tmp_path / placed.values["image"]) as image:
            assert image.size == size


def test_only_a_mode_with_a_picture_is_told_how_to_fit_one() -> None:
    """Elsewhere the field is refused, not ignored."""
    offer = Offer(
        {
            ("t2v", "fast", ""): WorkflowOffer(frozenset()),
            ("i2v", "fast", ""): WorkflowOffer(frozenset({"image"})),
        },
        *(("ltx-2",), ("ltx-2",), 505, {}),
    )
    fields = {"prompt": "x", "fit": "contain"}
    assert parse_request(fields | {"image": "AAAA"}, offer).fit == "contain"
    with pytest.raises(InvalidRequest, match="fit is not taken by mode t2v"):
        parse_request(fields, offer)
