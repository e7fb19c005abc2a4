"""Garbage collection does not hold up the answer.

ComfyUI collects garbage after a job, at most every ten seconds, and walks all that its imports have
left: 0.4 s during which nothing else runs, so that the news that the job is done waits too. What
the imports left is there to stay; frozen, it is not walked. For the rest, 0.05 to 0.1 s, the
collection comes half a second later, when the answer is out, and the GPU has the next job's work.
"""

from __future__ import annotations

import gc
import sys
import threading
from typing import Any

_DELAY_S = 0.5
# Python's own; the prestartup script holds collections off while ComfyUI imports.
_THRESHOLDS = (700, 10, 10)


def install() -> None:
    """At the end of ComfyUI's imports."""
    gc.freeze()
    main = sys.modules["__main__"]
    if getattr(main, "gc", None) is gc:
        main.gc = _Later()  # type: ignore[attr-defined]
    gc.set_threshold(*_THRESHOLDS)


class _Later:
    """The module `gc`, with a collection that does not come at once."""

    def __getattr__(self, name: str) -> Any:
        return getattr(gc, name)

    def collect(self) -> None:
        timer = threading.Timer(_DELAY_S, gc.collect)
        timer.daemon = True
        timer.start()
