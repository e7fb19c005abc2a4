"""What a request's `output` asks for that this worker cannot do."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePosixPath

from ltx_worker.errors import Problem
from ltx_worker.request_fields import OutputOptions

NO_BUCKET = "cannot be url: this worker has no bucket"
CLIP_SUFFIXES = {".mp4", ".webm"}


def output_problems(
    options: OutputOptions, video_format: str, *, has_bucket: bool
) -> list[Problem]:
    """Every problem; `video_format` is the clip's where `options` name none."""
    problems: list[Problem] = []
    if options.delivery == "url" and not has_bucket:
        problems.append(Problem("output.delivery", NO_BUCKET))
    suffix = PurePosixPath(options.key or "").suffix.lower()
    made = options.format or video_format
    if suffix in CLIP_SUFFIXES and suffix != f".{made}":
        problems.append(Problem("output.key", f"ends in {suffix}, but the clip is {made}"))
    return problems


def unheeded_warnings(options: OutputOptions, heeded: Collection[str]) -> list[str]:
    """What the caller asks for that ComfyUI's own save node, where it is used, does not know."""
    if options.quality is None or "quality" in heeded:
        return []
    return ["output.quality has no effect: this ComfyUI lacks the worker's own save node"]
