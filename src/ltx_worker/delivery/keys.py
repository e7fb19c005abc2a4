"""The names of uploaded objects: the operator's pattern, or the caller's own below its prefix.

Nothing a caller sends leads out of the prefix (invariant 6).
"""

from __future__ import annotations

import mimetypes
import re
from datetime import UTC, datetime
from pathlib import PurePosixPath

from ltx_worker.delivery.handover import KeyFor, ResultFile
from ltx_worker.request_output import CLIP_SUFFIXES


def key_prefix(pattern: str) -> str:
    """The fixed beginning of the pattern, which callers' own keys get as well."""
    return pattern.partition("{")[0]


def key_maker(pattern: str, job_id: str, key: str | None = None) -> KeyFor:
    """What names the files of one job.

    `pattern` has the placeholders `{date}`, `{job_id}` and `{ext}`; `key` is the caller's own, as
    `OutputOptions` lets it through.
    """
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    safe_id = re.sub(r"[^A-Za-z0-9._-]", "_", job_id)

    def key_for(file: ResultFile) -> str:
        part = f"-{file.part}" if file.part else ""
        suffix = _suffix(file)
        if key is None:
            return pattern.format(date=date, job_id=f"{safe_id}{part}", ext=suffix[1:])
        stem = key.removeprefix(key_prefix(pattern))
        if PurePosixPath(stem).suffix.lower() in CLIP_SUFFIXES:
            stem = str(PurePosixPath(stem).with_suffix(""))
        return f"{key_prefix(pattern)}{stem}{part}{suffix}"

    return key_for


def _suffix(file: ResultFile) -> str:
    """The file's suffix with its dot; the name may be a caller's."""
    suffix = PurePosixPath(file.filename).suffix
    if re.fullmatch(r"\.[A-Za-z0-9]{1,8}", suffix):
        return suffix.lower()
    return mimetypes.guess_extension(file.mime_type) or ".bin"
