"""Why a job has to stop: its deadline, or somebody's wish."""

from __future__ import annotations

import threading
import time

from ltx_worker.errors import Cancelled, DeadlineExceeded


class StopSignal:
    """Shared by a job's thread, which checks it, and its owner, who may cancel.

    The deadline is `timeout_s` seconds after construction.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Ask the job to stop."""
        self._cancelled.set()

    @property
    def remaining_s(self) -> float:
        """Seconds to the deadline, never below 0."""
        return max(0.0, self._deadline - time.monotonic())

    def check(self) -> None:
        """Raise `Cancelled` or `DeadlineExceeded` when the job has to stop."""
        if self._cancelled.is_set():
            raise Cancelled("The job was cancelled")
        if self.remaining_s == 0:
            raise DeadlineExceeded(
                f"The job was stopped after its limit of {self._timeout_s:g} s",
                hint="Ask for fewer frames or a smaller size, or raise LTX2_JOB_TIMEOUT_S.",
            )

    def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until the job has to stop; then `check`."""
        self._cancelled.wait(min(seconds, self.remaining_s))
        self.check()
