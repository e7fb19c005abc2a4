"""What `encoding.toml` says: codecs, their options, and what each quality means for them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("encoding.toml")

Options = Mapping[str, str]


@dataclass(frozen=True)
class SegmentRules:
    """The cores that a segment's encoder keeps busy with so many threads for each, and how few and
    how many frames a segment has.
    """

    cores: int
    threads_per_core: float
    min_frames: int
    max_frames: int


@dataclass(frozen=True)
class Encoding:
    """A container, its codecs and their options at one quality. Sound rates are in Hz.

    `picture_filter` is what packets go through (`filter`) and what they are for it (`codec`).
    """

    muxer: str
    muxer_options: Options
    video_codec: str
    video_options: Options
    picture_filter: Options | None
    sound_codec: str
    sound_options: Options
    sound_rates: tuple[int, ...]
    segments: SegmentRules
    restless: SegmentRules | None
    restless_above: float

    def rules_for(self, change: float) -> SegmentRules:
        """How a clip of so much change from frame to frame (mean, of 1) is divided."""
        return self.restless if self.restless and change > self.restless_above else self.segments

    def sound_rate(self, rate: int) -> int:
        """The rate at which sound of `rate` is kept: its own where the codec has it."""
        return rate if rate in self.sound_rates else 48_000


def formats() -> tuple[str, ...]:
    """The containers a clip can be written as."""
    return tuple(name for name, table in _tables().items() if _is_format(table))


def qualities() -> tuple[str, ...]:
    """The names of the qualities, lowest first; each format has all of them."""
    return tuple(_tables()[formats()[0]]["qualities"])


def default_quality() -> str:
    """The quality where none is asked for."""
    return _tables()["default_quality"]


def encoding_for(container: str, quality: str, video_options: Options | None = None) -> Encoding:
    """How to write a clip; raises `ValueError` for a format or quality that there is not.

    `video_options` are set over those of the quality, for measurements.
    """
    if container not in formats():
        raise ValueError(f"format must be one of {', '.join(formats())}, not {container}")
    if quality not in qualities():
        raise ValueError(f"quality must be one of {', '.join(qualities())}, not {quality}")
    table = _tables()[container]
    chosen = table["qualities"][quality]
    restless = dict(table.get("restless", {}))
    above = restless.pop("above", 1.0)
    options = {**table["video_options"], **chosen["video"], **(video_options or {})}
    if "video_params" in table:
        joined = ":".join(f"{name}={value}" for name, value in table["video_params"].items())
        options["x264-params"] = ":".join(filter(None, [joined, options.get("x264-params")]))
    return Encoding(
        muxer=table["muxer"],
        muxer_options=table["muxer_options"],
        video_codec=table["video_codec"],
        video_options=options,
        picture_filter=table.get("picture_filter"),
        sound_codec=table["sound_codec"],
        sound_options=chosen["sound"],
        sound_rates=tuple(table["sound_rates"]),
        segments=SegmentRules(**table["segments"]),
        restless=SegmentRules(**restless) if restless else None,
        restless_above=above,
    )


@cache
def _tables() -> dict[str, Any]:
    return tomllib.loads(_FILE.read_text(encoding="utf-8"))


def _is_format(table: object) -> bool:
    return isinstance(table, dict) and "video_codec" in table
