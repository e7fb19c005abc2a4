"""Files of jobs that ended while ComfyUI did not stop: it may still write some.

They are removed by a later job, once ComfyUI has let go of their prompt (invariant 8).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from ltx_worker.job_files import JobFiles


class LateFiles:
    """`is_unsettled` says of a prompt's id whether ComfyUI may still work on it."""

    def __init__(self, is_unsettled: Callable[[str], bool]) -> None:
        self._is_unsettled = is_unsettled
        self._lock = threading.Lock()
        self._files: list[tuple[str, JobFiles]] = []

    def add(self, prompt_id: str, files: JobFiles) -> None:
        """Take in the files of a job that is over, if ComfyUI may still write there."""
        if self._is_unsettled(prompt_id):
            with self._lock:
                self._files.append((prompt_id, files))

    def remove_settled(self) -> None:
        """Remove what nothing is written to any more."""
        with self._lock:
            settled = [one for one in self._files if not self._is_unsettled(one[0])]
            self._files = [one for one in self._files if one not in settled]
        for _, files in settled:
            files.remove()

    def remove_all(self) -> None:
        """Remove everything: ComfyUI has ended, or the worker leaves it."""
        with self._lock:
            files, self._files = self._files, []
        for _, one in files:
            one.remove()
