"""Garbage collection does not hold up the answer.

ComfyUI collects garbage after a job, at most every ten seconds, and walks all that its imports have
left: 0.4 s during which nothing else runs, so that the news that the job is done waits too. What
the imports left is there to stay; frozen, it is not walked.
"""

from __future__ import annotations

import gc


def install() -> None:
    """At the end of ComfyUI's imports."""
    gc.freeze()
