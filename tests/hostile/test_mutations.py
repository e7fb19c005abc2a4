"""Good files with a few bytes changed: read or refused, and nothing else ever happens."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.hostile.pictures import encoded, noise
from tests.unit.media_files import CLIP_KINDS, SOUND_KINDS, audio_file, ramp, video_file

from ltx_worker.errors import InputRejected
from ltx_worker.geometry import Size
from ltx_worker.media.audio import read_sound, write_clip_sound
from ltx_worker.media.normalise import read_picture
from ltx_worker.media.video import read_clip_facts, write_clip
from ltx_worker.stop import StopSignal

_STOP = StopSignal(3600)
_EACH = 400
_LONGEST_S = 2.0
_FILLS = [bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0", b"\xff", b"\x01"]


def _pictures() -> list[bytes]:
    small = noise(24, 16)
    profile = encoded(small, "PNG", icc_profile=b"x" * 200)
    return [profile, *(encoded(small, kind) for kind in ("PNG", "JPEG", "WEBP"))]


def _sounds() -> list[bytes]:
    return [audio_file(kind, 0.3) for kind in SOUND_KINDS]


def _clips() -> list[bytes]:
    pictures = ramp(5, Size(32, 32))
    with_sound = {"mp4", "mov"}
    return [
        video_file(pictures, kind=kind, sound_s=0.2 if kind in with_sound else 0)
        for kind in CLIP_KINDS
    ]


def _read_picture(data: bytes, _: Path) -> None:
    read_picture(data, "image")


def _read_sound(data: bytes, _: Path) -> None:
    read_sound(data, "audio", 10, _STOP)


def _read_clip(data: bytes, folder: Path) -> None:
    size = read_clip_facts(data, "video", _STOP).size
    assert size.width > 0
    path = folder / "video.mp4"
    clip = write_clip(data, "video", path, size=Size(64, 64), fps=24, max_frames=9, stop=_STOP)
    sound = folder / "audio.wav"
    write_clip_sound(data, "video", sound, clip.start_s, clip.duration_s, _STOP)


def _mutated(data: bytes, chance: random.Random) -> bytes:
    """The file with up to eight changes, most of them where headers and indexes are."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 2, 8])):
        at = chance.randrange(len(changed))
        at = chance.choice([at, at % 300, len(changed) - 1 - at % 600]) % len(changed)
        fill = chance.choice(_FILLS)
        match chance.randrange(5):
            case 0:
                del changed[at : at + chance.randrange(1, 40)]
            case 1:
                changed[at:at] = changed[at : at + 50]
            case _:
                changed[at : at + len(fill)] = fill
        if not changed:
            return b"\0"
    return bytes(changed)


@pytest.mark.parametrize(
    ("files", "read"),
    [(_pictures, _read_picture), (_sounds, _read_sound), (_clips, _read_clip)],
    ids=["pictures", "sounds", "clips"],
)
def test_a_damaged_file_is_read_or_refused(
    files: Callable[[], list[bytes]],
    read: Callable[[bytes, Path], None],
    tmp_path: Path,
    record_property: Any,
) -> None:
    """Whatever decoders make of it, callers get a file or one coded error, and soon."""
    chance = random.Random(files.__name__)
    whole = files()
    endings: Counter[str] = Counter()
    for number in range(_EACH):
        data = _mutated(whole[number % len(whole)], chance)
        started = time.monotonic()
        try:
            read(data, tmp_path)
            endings["read"] += 1
        except InputRejected:
            endings["refused"] += 1
        assert time.monotonic() - started < _LONGEST_S
    record_property(f"damaged files, {files.__name__.strip('_')}", dict(endings))
    assert min(endings["read"], endings["refused"]) > _EACH // 20
