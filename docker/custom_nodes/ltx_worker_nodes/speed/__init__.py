"""What makes ComfyUI's LTX-2 faster without changing its results beyond rounding.

Each module replaces methods of ComfyUI's classes at import and leaves the originals in place for
what it does not fit. They belong to the ComfyUI that the image pins; on another one whose classes
differ, nothing is installed.
"""

from __future__ import annotations

import importlib
import logging

from .switches import switches

__all__ = ["install", "switches"]

_log = logging.getLogger(__name__)

_PARTS = (
    "text", "transformer", "graphs", "attention", "positions",
    "upsampler", "decoder", "weights", "garbage",
)  # fmt: skip


def install() -> None:
    """Put each part in place; one that cannot be is named in the log and left out."""
    for name in _PARTS:
        try:
            importlib.import_module(f".{name}", __name__).install()
        except (ImportError, AttributeError) as error:
            _log.warning("ltx_worker_nodes: no %s speed-up: %s", name, error)
