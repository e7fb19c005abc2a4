"""One delivery of a job at a time: RunPod may hand one out again while it runs."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

from ltx_worker.stop import StopSignal

_WAIT_S = 0.2


class Turns:
    """The jobs that run, by id."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: set[str] = set()

    @contextmanager
    def of(self, job_id: str, stop: StopSignal) -> Generator[None]:
        """Wait for the other delivery of this job, then hold the turn; raises what `stop` does."""
        with self._changed:
            while job_id in self._running:
                stop.check()
                self._changed.wait(_WAIT_S)
            self._running.add(job_id)
        try:
            yield
        finally:
            with self._changed:
                self._running.remove(job_id)
                self._changed.notify_all()
