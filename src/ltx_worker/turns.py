"""Who has to wait for whom, where a worker has more than one job at a time.

A delivery of a job waits for the other delivery of the same job, which RunPod may hand out again
while it runs (`Turns`). A job that is ready for ComfyUI waits for those before it (`Line`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from ltx_worker.stop import StopSignal

_WAIT_S = 0.2
_TELL_S = 1.0


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


class Waiter(Protocol):
    """A job in the line, such as a `ProgressTracker`: it is asked and told from other threads."""

    @property
    def engine_left_s(self) -> float | None:
        """Seconds for which it will still need ComfyUI; None when nobody can say."""
        ...

    def wait(self, ahead_s: float | None) -> None:
        """Take in how many seconds those before it will still need; None when nobody can say."""
        ...


class Line:
    """The jobs that need ComfyUI, first come, first served: one has it at a time.

    ComfyUI has a queue of its own, but a prompt is not put there while another job's runs. An
    interrupt that comes as its prompt ends would hit the next one there; memory that is to be
    given back after a failure would be given back after the next one only; and what ends ComfyUI
    would end both. Here it ends one, and the next has not begun.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: list[Waiter] = []

    @contextmanager
    def turn(self, job: Waiter, stop: StopSignal) -> Generator[None]:
        """Wait for the jobs that came before, then hold the turn; raises what `stop` does."""
        with self._changed:
            self._jobs.append(job)
        try:
            self._wait(job, stop)
            yield
        finally:
            with self._changed:
                self._jobs.remove(job)
                self._changed.notify_all()

    def _wait(self, job: Waiter, stop: StopSignal) -> None:
        tell_at = 0.0
        while ahead := self._ahead_of(job):
            stop.check()
            if time.monotonic() >= tell_at:
                tell_at = time.monotonic() + _TELL_S
                job.wait(_sum_of([one.engine_left_s for one in ahead]))
            with self._changed:
                self._changed.wait_for(lambda: len(self._ahead_of(job)) < len(ahead), _WAIT_S)

    def _ahead_of(self, job: Waiter) -> list[Waiter]:
        with self._changed:
            return self._jobs[: self._jobs.index(job)]


def _sum_of(seconds: list[float | None]) -> float | None:
    known = [one for one in seconds if one is not None]
    return sum(known) if len(known) == len(seconds) else None
