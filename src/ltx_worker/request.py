"""From a job's input to a `GenerateRequest` with every default filled in.

`parse_request` raises one `InvalidRequest` that names every wrong field at once, and otherwise
says in `warnings` what it changed. Nothing here touches a network, a file or ComfyUI: what this
worker can make comes in as an `Offer`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ltx_worker.errors import InvalidRequest, Problem
from ltx_worker.geometry import (
    MAX_PIXELS,
    MAX_SIDE,
    MIN_SIDE,
    RESOLUTIONS,
    Size,
    size_for,
    snap_frames,
    snap_frames_down,
    snap_size,
)
from ltx_worker.request_fields import (
    MAX_SEED,
    MediaSource,
    Mode,
    OutputOptions,
    Quality,
    RequestFields,
    read_fields,
)

DEFAULT_RESOLUTION = "720p"
DEFAULT_DURATION_S = 5.0
MAX_ASPECT_RATIO = 4.0

# Fields that a workflow must have a binding for; the others are the worker's own business.
_BOUND_FIELDS = (
    "image",
    "last_image",
    "audio",
    "video",
    "keyframes",
    "image_strength",
    "control",
    "control_strength",
    "camera_motion",
    "camera_strength",
    "loras",
    "detailer",
    "spatial_upscale",
    "temporal_upscale",
    "enhance_prompt",
    "generate_audio",
)
_MODEL_SUFFIXES: dict[str, Quality] = {"-fast": "fast", "-pro": "pro"}


@dataclass(frozen=True)
class WorkflowOffer:
    """What one workflow takes: the names it binds, and its number of sampling passes."""

    takes: frozenset[str]
    passes: int


@dataclass(frozen=True)
class Offer:
    """What this worker can make: workflows by mode and quality, model families, frames."""

    workflows: Mapping[tuple[str, str], WorkflowOffer]
    families: tuple[str, ...]
    installed: tuple[str, ...]
    max_frames: int

    def qualities(self, mode: str) -> list[str]:
        """The qualities that `mode` has a workflow for."""
        return [quality for offered, quality in self.workflows if offered == mode]

    @property
    def modes(self) -> list[str]:
        """The modes that have a workflow, once each."""
        return list(dict.fromkeys(mode for mode, _ in self.workflows))


@dataclass(frozen=True)
class GenerateRequest:
    """A checked request. Sizes are in pixels, on the grid of the workflow.

    `follow_image` names the resolution whose pixels the clip gets in the picture's own aspect
    ratio, for a caller who gave neither a size nor a ratio.
    """

    mode: Mode
    family: str
    quality: Quality
    prompt: str
    size: Size
    num_frames: int
    fps: float
    seed: int
    passes: int
    negative_prompt: str | None = None
    image: MediaSource | None = None
    image_strength: float | None = None
    follow_image: str | None = None
    output: OutputOptions = field(default_factory=OutputOptions)
    warnings: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        """Length of the clip in seconds."""
        return self.num_frames / self.fps

    def fitted_to(self, image: Size) -> GenerateRequest:
        """The request with the picture's aspect ratio, where the caller left it open."""
        if self.follow_image is None:
            return self
        ratio = min(MAX_ASPECT_RATIO, max(1 / MAX_ASPECT_RATIO, image.width / image.height))
        return replace(self, size=size_for(self.follow_image, ratio, self.passes))


def parse_request(job_input: Any, offer: Offer) -> GenerateRequest:
    """Read a job's `input`; raises `InvalidRequest` with every problem in `details`."""
    fields, problems = read_fields(job_input)
    if fields is None:
        raise _invalid(problems)
    reader = _Reader(fields, offer, problems)
    request = reader.read()
    if problems:
        raise _invalid(problems)
    return request


def _invalid(problems: list[Problem]) -> InvalidRequest:
    listed = "; ".join(f"{p.field} {p.message}" for p in problems)
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return InvalidRequest(f"The request has {count}: {listed}", details=problems)


class _Reader:
    """Decides each value in turn and collects problems and warnings on the way."""

    def __init__(self, fields: RequestFields, offer: Offer, problems: list[Problem]) -> None:
        self.fields = fields
        self.offer = offer
        self.problems = problems
        self.warnings: list[str] = []

    def read(self) -> GenerateRequest:
        fields = self.fields
        family, quality = self._model()
        mode = self._mode(quality)
        workflow = self.offer.workflows.get((mode, quality), WorkflowOffer(frozenset(), 2))
        if (mode, quality) in self.offer.workflows:
            self._check_bindings(mode, quality, workflow)
        size, follow_image = self._size(workflow.passes)
        return GenerateRequest(
            mode=mode,
            family=family,
            quality=quality,
            prompt=fields.prompt,
            negative_prompt=fields.negative_prompt,
            size=size,
            passes=workflow.passes,
            num_frames=self._frames(),
            fps=fields.fps,
            seed=secrets.randbelow(MAX_SEED) if fields.seed is None else fields.seed,
            image=fields.image,
            image_strength=fields.image_strength,
            follow_image=follow_image,
            output=fields.output,
            warnings=tuple(self.warnings),
        )

    def _problem(self, field: str, message: str) -> None:
        """Note a problem, unless the field is already known to be wrong by itself."""
        if all(problem.field != field for problem in self.problems):
            self.problems.append(Problem(field, message))

    def _model(self) -> tuple[str, Quality]:
        """The family and the quality; a suffix of `model` may name the latter."""
        installed = self.offer.installed
        family = self.fields.model or (installed[0] if installed else self.offer.families[0])
        suffix = next((s for s in _MODEL_SUFFIXES if family.endswith(s)), None)
        quality = self.fields.quality
        if suffix is not None:
            family = family.removesuffix(suffix)
            if quality not in (None, _MODEL_SUFFIXES[suffix]):
                self._problem("quality", f"is {quality}, but model asks for {suffix[1:]}")
            quality = _MODEL_SUFFIXES[suffix]
        if family not in self.offer.families:
            self._problem("model", f"must be one of {', '.join(self.offer.families)}")
        elif family not in installed:
            here = ", ".join(installed) or "none"
            self._problem("model", f"{family} is not installed in this worker (installed: {here})")
        return family, quality or "fast"

    def _mode(self, quality: Quality) -> Mode:
        """The mode asked for, or the one that the media given imply."""
        fields = self.fields
        mode = fields.mode or _implied_mode(fields)
        qualities = self.offer.qualities(mode)
        if not qualities:
            offered = ", ".join(self.offer.modes)
            how = "is" if fields.mode else "is not given and the media imply"
            self._problem("mode", f"{how} {mode}, which this worker does not offer ({offered})")
        elif quality not in qualities:
            offered = ", ".join(qualities)
            self._problem("quality", f"is {quality}, which mode {mode} does not offer ({offered})")
        return mode

    def _check_bindings(self, mode: Mode, quality: Quality, workflow: WorkflowOffer) -> None:
        """Refuse what the workflow has no binding for, and what it cannot do without."""
        given = self.fields.given
        for name in _BOUND_FIELDS:
            if name in given and name not in workflow.takes:
                self._problem(name, f"is not taken by mode {mode} at quality {quality}")
        if "image" in workflow.takes and self.fields.image is None:
            self._problem("image", f"is required for mode {mode}")
        if self.fields.negative_prompt and "negative_prompt" not in workflow.takes:
            self.warnings.append(
                f"negative_prompt has no effect at quality {quality}, which uses no guidance"
            )

    def _size(self, passes: int) -> tuple[Size, str | None]:
        """The size on the grid, and the named resolution that may follow the image's ratio."""
        wanted = self._explicit_size()
        if wanted is None:
            named = self.fields.resolution or DEFAULT_RESOLUTION
            if named not in RESOLUTIONS:
                self._problem("resolution", f"must be one of {', '.join(RESOLUTIONS)}, or WxH")
                named = DEFAULT_RESOLUTION
            ratio = self._aspect_ratio()
            follow = named if ratio is None and self.fields.image is not None else None
            return size_for(named, ratio or 16 / 9, passes), follow
        if self.fields.aspect_ratio is not None:
            self._problem("aspect_ratio", "cannot be given with a size in pixels")
        size = snap_size(wanted, passes)
        for side, before, after in (
            ("width", wanted.width, size.width),
            ("height", wanted.height, size.height),
        ):
            if before != after:
                self.warnings.append(
                    f"{side} {before} was changed to {after}, the nearest possible"
                )
        return size, None

    def _explicit_size(self) -> Size | None:
        """The size given as `WxH` or as width and height, if any."""
        fields = self.fields
        match = re.fullmatch(r"(\d{1,6})\s*x\s*(\d{1,6})", fields.resolution or "")
        size = Size(int(match[1]), int(match[2])) if match else None
        if fields.width is not None or fields.height is not None:
            if fields.width is None or fields.height is None:
                missing = "width" if fields.width is None else "height"
                self._problem(missing, "is required when the other side is given")
                return None
            if fields.resolution is not None:
                self._problem("resolution", "cannot be given with width and height")
            size = Size(fields.width, fields.height)
        if size is None:
            return None
        name = "resolution" if match else "width"
        if not all(MIN_SIDE <= side <= MAX_SIDE for side in (size.width, size.height)):
            self._problem(name, f"must have sides from {MIN_SIDE} to {MAX_SIDE} pixels")
        elif size.width * size.height > MAX_PIXELS:
            self._problem(name, f"is {size}; at most {MAX_PIXELS:,} pixels are possible")
        return size

    def _aspect_ratio(self) -> float | None:
        text = self.fields.aspect_ratio
        if text is None:
            return None
        match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text.strip())
        if match is None or not int(match[1]) or not int(match[2]):
            self._problem("aspect_ratio", "must be W:H, such as 16:9")
            return None
        ratio = int(match[1]) / int(match[2])
        if not 1 / MAX_ASPECT_RATIO <= ratio <= MAX_ASPECT_RATIO:
            self._problem(
                "aspect_ratio",
                f"must be between 1:{MAX_ASPECT_RATIO:.0f} and {MAX_ASPECT_RATIO:.0f}:1",
            )
        return ratio

    def _frames(self) -> int:
        """The frame count on the grid, from `num_frames` or from seconds."""
        fields, limit = self.fields, self.offer.max_frames
        if fields.num_frames is not None:
            if fields.duration is not None:
                self._problem("duration", "cannot be given with num_frames")
            if fields.num_frames > limit:
                self._problem("num_frames", f"is {fields.num_frames:,}; at most {limit} are made")
                return limit
            frames = min(snap_frames(fields.num_frames), snap_frames_down(limit))
            if frames != fields.num_frames:
                self.warnings.append(
                    f"num_frames {fields.num_frames} was changed to {frames}: "
                    "a clip has 8k+1 frames"
                )
            return frames
        wanted = (fields.duration or DEFAULT_DURATION_S) * fields.fps
        if wanted > limit and fields.duration is not None:
            seconds = limit / fields.fps
            self._problem(
                "duration",
                f"is {fields.duration:g} s; at most {seconds:.1f} s at {fields.fps:g} fps are made",
            )
            return limit
        frames = min(snap_frames(wanted), snap_frames_down(limit))
        if fields.duration is not None and abs(frames - wanted) > 1:
            self.warnings.append(
                f"duration {fields.duration:g} s was changed to {frames / fields.fps:.2f} s "
                f"({frames} frames): a clip has 8k+1 frames"
            )
        return frames


def _implied_mode(fields: RequestFields) -> Mode:
    if fields.video is not None:
        return "v2v"
    if fields.audio is not None:
        return "a2v" if fields.image is None else "lipsync"
    if fields.keyframes or fields.last_image is not None:
        return "keyframes"
    return "i2v" if fields.image is not None else "t2v"
