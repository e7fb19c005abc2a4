"""Pictures that callers send: decoded, checked, and written as one form."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from ltx_worker.errors import InputRejected, JobError
from ltx_worker.geometry import Size
from ltx_worker.media.fetch import read_media
from ltx_worker.media.normalise import write_image
from ltx_worker.request_fields import MediaSource
from ltx_worker.stop import StopSignal

STOP = StopSignal(60)
ORIENTATION = 0x0112


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def test_a_data_uri_and_bare_base64_are_the_same_bytes() -> None:
    """The prefix of a data URI is taken off, and line breaks are allowed."""
    text = base64.b64encode(b"some bytes" * 20).decode()
    for form in (text, f"data:image/png;base64,{text}", text[:40] + "\n" + text[40:]):
        assert read_media(MediaSource(base64=form), "image", 1000, STOP) == b"some bytes" * 20


def test_base64_over_the_limit_is_refused_before_it_is_decoded() -> None:
    """The size is known from the text's length."""
    with pytest.raises(InputRejected, match=r"larger than 0\.001 MB"):
        read_media(MediaSource(base64="A" * 4000), "image", 1000, STOP)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/a.png",
        "https://127.0.0.1/a.png",
        "https://[::1]/a.png",
        "https://localhost/a.png",
        "https://10.0.0.1/a.png",
        "https://169.254.169.254/latest/meta-data",
        "https://[::ffff:127.0.0.1]/a.png",
        "https://2130706433/a.png",
        "https://user:secret-canary@example.com/a.png",
        "https://example.com:22/a.png",
        "https://",
        "https://[broken/a.png",
    ],
)
def test_a_url_that_is_not_public_https_is_refused(url: str) -> None:
    """Private addresses in every spelling are refused, and the message repeats no URL."""
    with pytest.raises(InputRejected) as failure:
        read_media(MediaSource(url=url), "image", 1000, STOP)
    assert "canary" not in failure.value.to_json()
    assert "127.0.0.1" not in failure.value.to_json()


def test_a_server_that_does_not_exist_is_unavailable() -> None:
    """A host that cannot be reached is the caller's to try again."""
    with pytest.raises(JobError) as failure:
        read_media(MediaSource(url="https://no-such-host.invalid/a.png"), "image", 1000, STOP)
    assert failure.value.code == "input_unavailable"
    assert failure.value.retryable


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1", "LA", "I;16"])
def test_every_kind_of_picture_becomes_rgb(mode: str, tmp_path: Path) -> None:
    """Palettes, transparency, CMYK and 16 bits end as an RGB file of the same size."""
    kind = "JPEG" if mode == "CMYK" else "PNG"
    data = encoded(Image.new(mode, (40, 30)), kind)
    assert write_image(data, "image", tmp_path / "image.png") == Size(40, 30)
    with Image.open(tmp_path / "image.png") as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (40, 30))


def test_transparency_is_put_on_white(tmp_path: Path) -> None:
    """A transparent pixel is white, not black."""
    write_image(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0))), "image", tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as image:
        assert image.getpixel((4, 4)) == (255, 255, 255)


def test_orientation_is_applied_and_metadata_dropped(tmp_path: Path) -> None:
    """A phone's portrait picture stands upright, and its EXIF is gone."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x010E] = "canary description"
    data = encoded(Image.new("RGB", (40, 20)), "JPEG", exif=exif)
    assert write_image(data, "image", tmp_path / "image.png") == Size(20, 40)
    assert b"canary" not in (tmp_path / "image.png").read_bytes()
    with Image.open(tmp_path / "image.png") as image:
        assert not image.getexif()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_half_a_file_is_refused(kind: str, tmp_path: Path) -> None:
    """A picture cut off in the middle is not used."""
    data = encoded(Image.effect_noise((100, 100), 50).convert("RGB"), kind)
    with pytest.raises(InputRejected, match="not a whole"):
        write_image(data[: len(data) // 2], "image", tmp_path / "image.png")


@pytest.mark.parametrize(
    "data",
    [b"", b"<svg/>", b"%PDF-1.7", encoded(Image.new("RGB", (4, 4)), "GIF"), b"\x89PNG\r\n\x1a\n"],
)
def test_what_is_no_picture_is_refused(data: bytes, tmp_path: Path) -> None:
    """Only PNG, JPEG and WebP are read, by content and not by name."""
    with pytest.raises(InputRejected):
        write_image(data, "image", tmp_path / "image.png")


def test_a_picture_of_too_many_pixels_is_refused_before_decoding(tmp_path: Path) -> None:
    """A small file that would unpack to gigabytes is not unpacked."""
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    with pytest.raises(InputRejected, match="megapixels"):
        write_image(bomb, "image", tmp_path / "image.png")
