"""Garbage collection does not hold up the answer.

ComfyUI collects garbage after a job, at most every ten seconds, and walks all that its imports have
left: 0.4 s during which nothing else runs, so that the news that the job is done waits too. What
the imports left is there to stay; frozen, it is not walked.
"""

from __future__ import annotations

import gc

# Python's own; the prestartup script holds collections off while ComfyUI imports.
_THRESHOLDS = (700, 10, 10)


def install() -> None:
    """At the end of ComfyUI's imports."""
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
