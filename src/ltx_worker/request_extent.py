"""How large and how long a clip is to be: read from the fields, put on the model's grid."""

from __future__ import annotations

import re

from ltx_worker.errors import Problem
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
from ltx_worker.request import MAX_ASPECT_RATIO
from ltx_worker.request_fields import RequestFields

DEFAULT_RESOLUTION = "720p"
DEFAULT_DURATION_S = 5.0


class Findings:
    """What is wrong with a request, and what was changed in it."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        self.warnings: list[str] = []

    def problem(self, field: str, message: str) -> None:
        """Note a problem, unless the field is already known to be wrong by itself."""
        if all(problem.field != field for problem in self.problems):
            self.problems.append(Problem(field, message))

    def warn(self, message: str) -> None:
        """Note a change that the caller should know of."""
        self.warnings.append(message)


class Extent:
    """Reads size and length of one request."""

    def __init__(self, fields: RequestFields, max_frames: int, findings: Findings) -> None:
        self._fields = fields
        self._max_frames = max_frames
        self._refuse, self._warn = findings.problem, findings.warn

    def size(self, grid: int, has_picture: bool) -> tuple[Size, str | None]:
        """The size on the grid, and the named resolution that may follow the image's ratio."""
        wanted = self._explicit_size()
        if wanted is None:
            named = self._fields.resolution or DEFAULT_RESOLUTION
            if named not in RESOLUTIONS:
                self._refuse("resolution", f"must be one of {', '.join(RESOLUTIONS)}, or WxH")
                named = DEFAULT_RESOLUTION
            ratio = self._aspect_ratio()
            return size_for(named, ratio or 16 / 9, grid), (
                named if ratio is None and has_picture else None
            )
        if self._fields.aspect_ratio is not None:
            self._refuse("aspect_ratio", "cannot be given with a size in pixels")
        size = snap_size(wanted, grid)
        for side, before, after in (
            ("width", wanted.width, size.width),
            ("height", wanted.height, size.height),
        ):
            if before != after:
                self._warn(f"{side} {before} was changed to {after}, the nearest possible")
        return size, None

    def _explicit_size(self) -> Size | None:
        """The size given as `WxH` or as width and height, if any."""
        fields = self._fields
        match = re.fullmatch(r"(\d{1,6})\s*x\s*(\d{1,6})", fields.resolution or "")
        size = Size(int(match[1]), int(match[2])) if match else None
        if fields.width is not None or fields.height is not None:
            if fields.width is None or fields.height is None:
                missing = "width" if fields.width is None else "height"
                self._refuse(missing, "is required when the other side is given")
                return None
            if fields.resolution is not None:
                self._refuse("resolution", "cannot be given with width and height")
            size = Size(fields.width, fields.height)
        if size is None:
            return None
        name = "resolution" if match else "width"
        if not all(MIN_SIDE <= side <= MAX_SIDE for side in (size.width, size.height)):
            self._refuse(name, f"must have sides from {MIN_SIDE} to {MAX_SIDE} pixels")
        elif size.width * size.height > MAX_PIXELS:
            self._refuse(name, f"is {size}; at most {MAX_PIXELS:,} pixels are possible")
        return size

    def _aspect_ratio(self) -> float | None:
        text = self._fields.aspect_ratio
        if text is None:
            return None
        match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text.strip())
        if match is None or not int(match[1]) or not int(match[2]):
            self._refuse("aspect_ratio", "must be W:H, such as 16:9")
            return None
        ratio = int(match[1]) / int(match[2])
        if not 1 / MAX_ASPECT_RATIO <= ratio <= MAX_ASPECT_RATIO:
            most = f"{MAX_ASPECT_RATIO:.0f}"
            self._refuse("aspect_ratio", f"must be between 1:{most} and {most}:1")
        return ratio

    def frames(self) -> tuple[int, bool]:
        """The frame count on the grid, and whether it follows the sound that was given."""
        fields, limit = self._fields, self._max_frames
        if fields.num_frames is not None:
            if fields.duration is not None:
                self._refuse("duration", "cannot be given with num_frames")
            return self._frames_from_count(fields.num_frames, limit), False
        if fields.duration is not None:
            return self._frames_from_seconds(fields.duration, limit), False
        frames = snap_frames(DEFAULT_DURATION_S * fields.fps)
        return min(frames, snap_frames_down(limit)), fields.audio is not None

    def _frames_from_count(self, wanted: int, limit: int) -> int:
        if wanted > limit:
            self._refuse("num_frames", f"is {wanted:,}; at most {limit} are made")
        frames = min(snap_frames(wanted), snap_frames_down(limit))
        if frames != wanted:
            self._warn(f"num_frames {wanted} was changed to {frames}: a clip has 8k+1 frames")
        return frames

    def _frames_from_seconds(self, duration_s: float, limit: int) -> int:
        fps = self._fields.fps
        wanted = duration_s * fps
        if wanted > limit:
            self._refuse(
                "duration",
                f"is {duration_s:g} s; at most {limit / fps:.1f} s at {fps:g} fps are made",
            )
        frames = min(snap_frames(wanted), snap_frames_down(limit))
        if abs(frames - wanted) > 1:
            self._warn(
                f"duration {duration_s:g} s was changed to {frames / fps:.2f} s "
                f"({frames} frames): a clip has 8k+1 frames"
            )
        return frames
