"""The wire form of a request: its fields, their other names, and what is wrong with a value.

Its JSON Schema is the contract that `ltx schema` prints. Each field is checked by itself here;
what fields mean together, and for this worker, is `request.py`'s subject.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ltx_worker.errors import Problem
from ltx_worker.geometry import MAX_SIDE, MIN_FRAMES, MIN_SIDE, RESOLUTIONS

Mode = Literal["t2v", "i2v", "a2v", "lipsync", "keyframes", "v2v", "extend", "retake"]
Quality = Literal["fast", "pro", "quality"]
CameraMotion = Literal[
    "dolly_in",
    "dolly_out",
    "dolly_left",
    "dolly_right",
    "jib_up",
    "jib_down",
    "static",
    "focus_shift",
]
Direction = Literal["forward", "backward"]
Replace = Literal["video", "audio", "both"]
Fit = Literal["cover", "contain"]
Delivery = Literal["auto", "base64", "url"]
ClipQuality = Literal["low", "medium", "high", "maximum"]
Control = Literal["canny", "depth", "pose", "motion_track", "union", "restyle"]

MAX_PROMPT_CHARACTERS = 10_000
# Seeds stay exact in JSON clients whose numbers are doubles.
MAX_SEED = 2**53 - 1
# The models are conditioned on frame rates up to this (source: the official pipelines' cap).
MAX_FPS = 60

_KEY = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")

_QUALITY_NAMES = {"balanced": "pro"}
_MEDIA_PREFIXES = {
    "image": ("image",),
    "last_image": ("last_image", "end_image", "last_frame"),
    "audio": ("audio",),
    "video": ("video",),
}
# Other names callers know, from the hosted LTX API, the Wan worker and fal.
_ALIASES: Mapping[str, tuple[str, str | None]] = {
    "type": ("mode", None),
    "preset": ("quality", None),
    "length": ("num_frames", None),
    "frame_rate": ("fps", None),
    "camera_lora": ("camera_motion", None),
    "end_image": ("last_image", None),
} | {
    f"{prefix}_{suffix}": (field, kind)
    for field, prefixes in _MEDIA_PREFIXES.items()
    for prefix in prefixes
    for suffix, kind in (("url", "url"), ("uri", "url"), ("base64", "base64"))
}


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _quality_name(value: Any) -> Any:
    value = _lower(value)
    return _QUALITY_NAMES.get(value, value) if isinstance(value, str) else value


def _media(value: Any) -> Any:
    """Accept a bare string as what it looks like: a URL, else a data URI or base64."""
    if not isinstance(value, str):
        return value
    is_url = value[:8].lower().startswith(("http://", "https://"))
    return {"url": value} if is_url else {"base64": value}


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class MediaSource(_Fields):
    """A picture, sound or clip: exactly one of an https URL and base64 (or a data URI)."""

    url: str | None = Field(None, min_length=1, max_length=8192)
    base64: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _exactly_one(self) -> MediaSource:
        if (self.url is None) == (self.base64 is None):
            raise ValueError("must have either url or base64")
        return self


Media = Annotated[MediaSource, BeforeValidator(_media, json_schema_input_type=str | MediaSource)]


class Keyframe(_Fields):
    """A picture at a frame index or a time in seconds."""

    image: Media
    frame: int | None = Field(None, ge=0)
    time: float | None = Field(None, ge=0)
    strength: float = Field(1.0, ge=0, le=1)


class Lora(_Fields):
    """A LoRA file of the catalogue's folder, by name."""

    name: str = Field(min_length=1, max_length=255)
    strength: float = Field(1.0, ge=-4, le=4)


class OutputOptions(_Fields):
    """How the clip is encoded and handed over."""

    format: Literal["mp4", "webm"] | None = Field(
        default=None, description="H.264 with AAC, or VP9 with Opus; default the worker's setting."
    )
    delivery: Delivery = Field(
        default="auto",
        description="auto answers with base64 where that fits, else with a link to the bucket.",
    )
    key: str | None = Field(
        default=None,
        max_length=512,
        description="Name of an uploaded clip, below the worker's prefix; the suffix may be left "
        "out.",
    )
    quality: Annotated[ClipQuality, BeforeValidator(_lower)] | None = Field(
        default=None,
        description="low, medium, high or maximum: how much of the frames the encoder keeps, and "
        "how large the file becomes; default high.",
    )
    thumbnail: bool = Field(
        default=False, description="Also a JPEG of at most 512 pixels a side, from one third in."
    )
    last_frame: bool = Field(default=False, description="Also the last frame, as PNG.")

    @field_validator("key")
    @classmethod
    def _stays_below_the_prefix(cls, key: str | None) -> str | None:
        if key is not None and not _KEY.fullmatch(key):
            raise ValueError("may have letters, digits and ._- in parts separated by single /")
        if key is not None and {".", ".."} & set(key.split("/")):
            raise ValueError("must not have . or .. as a part")
        return key


class RequestFields(_Fields):
    """A job's `input`. Unknown fields are errors."""

    prompt: str = Field(
        min_length=1, max_length=MAX_PROMPT_CHARACTERS, description="What to show and to be heard."
    )
    negative_prompt: str | None = Field(
        None,
        max_length=MAX_PROMPT_CHARACTERS,
        description="What to avoid; default the recipe's. No effect at quality fast.",
    )
    mode: Annotated[Mode, BeforeValidator(_lower)] | None = Field(
        None, description="Default: from the media given. Also accepted as type."
    )
    model: Annotated[str, BeforeValidator(_lower)] | None = Field(
        None,
        max_length=64,
        description="ltx-2 or ltx-2.3, with -fast or -pro allowed; default the family installed.",
    )
    quality: Annotated[Quality, BeforeValidator(_quality_name)] | None = Field(
        None, description="Default fast. Also accepted as preset, or mode: fast or pro."
    )
    resolution: Annotated[str, BeforeValidator(_lower)] | None = Field(
        None, max_length=16, description=f"{', '.join(RESOLUTIONS)} or WxH in pixels; default 720p."
    )
    width: int | None = Field(None, ge=MIN_SIDE, le=MAX_SIDE, description="With height.")
    height: int | None = Field(None, ge=MIN_SIDE, le=MAX_SIDE, description="With width.")
    aspect_ratio: str | None = Field(
        None, max_length=16, description="W:H; default 16:9, or the image's."
    )
    duration: float | None = Field(None, gt=0, le=3600, description="Seconds; default 5.")
    num_frames: int | None = Field(
        None, ge=MIN_FRAMES, description="Instead of duration. Also accepted as length."
    )
    fps: float = Field(24.0, ge=1, le=MAX_FPS, description="Also accepted as frame_rate.")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Default random, and returned.")
    generate_audio: bool = True
    image: Media | None = None
    last_image: Media | None = None
    audio: Media | None = None
    video: Media | None = None
    keyframes: list[Keyframe] = Field(default=[], max_length=32)
    fit: Fit = Field(
        default="cover",
        description="A picture of another shape than the clip's fills it and loses its edges, or "
        "is shown whole on black.",
    )
    image_strength: float | None = Field(None, ge=0, le=1)
    control: Control | None = None
    control_strength: float | None = Field(None, ge=0, le=1)
    direction: Direction = Field(
        default="forward", description="Where extend adds frames: after the source or before it."
    )
    start_time: float | None = Field(None, ge=0, description="Start of a retake, in seconds.")
    end_time: float | None = Field(None, gt=0, description="End of a retake, in seconds.")
    replace: Replace = Field(default="both", description="What a retake makes anew.")
    camera_motion: Annotated[CameraMotion, BeforeValidator(_lower)] | None = None
    camera_strength: float | None = Field(None, ge=0, le=2)
    loras: list[Lora] = Field(default=[], max_length=16)
    detailer: bool = False
    spatial_upscale: bool = False
    temporal_upscale: bool = False
    enhance_prompt: bool = False
    output: OutputOptions = OutputOptions()

    @property
    def given(self) -> frozenset[str]:
        """The fields the caller set to something other than their default."""
        defaults = type(self).model_fields
        return frozenset(
            name for name in self.model_fields_set if getattr(self, name) != defaults[name].default
        )


def read_fields(job_input: object) -> tuple[RequestFields | None, list[Problem]]:
    """Check each field by itself: the fields that are right, and every problem.

    The fields are None only when `job_input` is not an object.
    """
    if not isinstance(job_input, Mapping):
        return None, [Problem("input", "must be an object with at least a prompt")]
    values, problems = _canonical(cast("Mapping[str, Any]", job_input))
    try:
        fields = RequestFields.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        problems += [Problem(_dotted(e["loc"]), _message(e, values)) for e in found]
        bad = {str(e["loc"][0]) for e in found}
        good = {name: value for name, value in values.items() if name not in bad}
        fields = RequestFields.model_validate({"prompt": "?"} | good)
    if not fields.prompt.strip():
        problems.append(Problem("prompt", "is empty"))
    return fields, problems


def _canonical(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Rename aliases; name fields that nobody knows or that are given twice."""
    result: dict[str, Any] = {}
    source: dict[str, str] = {}
    problems: list[Problem] = []
    for name, value in values.items():
        if value is None:
            continue
        field, kind = _ALIASES.get(name, (name, None))
        if name == "mode" and _quality_name(value) in ("fast", "pro"):
            field = "quality"
        if field not in RequestFields.model_fields:
            problems.append(Problem(name, unknown_field(name, _KNOWN)))
        elif field in source:
            problems.append(Problem(name, f"says the same as {source[field]}; give one of them"))
        else:
            source[field] = name
            result[field] = {kind: value} if kind else value
    return result, problems


_KNOWN = [*RequestFields.model_fields, *_ALIASES]


def unknown_field(name: str, known: Iterable[str]) -> str:
    """What is wrong with a field that is none of `known`, and which of them is nearest."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"is not a field; did you mean {nearest[0]}?" if nearest else "is not a field"


def _dotted(location: Iterable[int | str]) -> str:
    return ".".join(str(part) for part in location)


_TYPE_MESSAGES = {
    "missing": "is required",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "model_type": "must be an object",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be one of {expected}",
    "string_too_short": "is empty",
    "string_too_long": "has more than {max_length:,} characters",
    "too_long": "has more than {max_length} entries",
    "extra_forbidden": "is not a field",
}


def _message(error: Any, values: Mapping[str, Any]) -> str:
    """What is wrong, in words, without the value itself: it may be a prompt or a file."""
    if error["loc"] == ("prompt",) and error["type"] == "string_too_long":
        count = len(values["prompt"])
        return f"has {count:,} characters; at most {MAX_PROMPT_CHARACTERS:,} are allowed"
    template = _TYPE_MESSAGES.get(error["type"])
    if template is not None:
        bounds = error.get("ctx", {}).items()
        return template.format(**{k: f"{v:g}" if isinstance(v, float) else v for k, v in bounds})
    return error["msg"].removeprefix("Value error, ")
