"""The clip inside the answer, as base64, when the answer stays within what RunPod takes."""

from __future__ import annotations

import base64
from pathlib import Path

from ltx_worker.errors import OutputTooLarge

# Room for the rest of the answer: metadata, timings, warnings, RunPod's own envelope.
_ENVELOPE_BYTES = 64_000


def encode(path: Path, max_response_bytes: int) -> str:
    """The file as base64; raises `OutputTooLarge` before reading it when it cannot fit."""
    size = path.stat().st_size
    encoded = 4 * -(-size // 3)
    if encoded + _ENVELOPE_BYTES > max_response_bytes:
        raise OutputTooLarge(
            f"The clip has {size / 1e6:.1f} MB, {encoded / 1e6:.1f} MB as base64; an answer may "
            f"have {max_response_bytes / 1e6:.1f} MB",
            hint="Ask for fewer frames or a lower resolution.",
        )
    return base64.b64encode(path.read_bytes()).decode("ascii")
