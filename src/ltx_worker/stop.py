"""Why a job has to stop: its deadline, or somebody's wish."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from typing import TypeVar

from ltx_worker.errors import Cancelled, DeadlineExceeded, JobError

_Result = TypeVar("_Result")
# How often a job that waits for a blocking call looks whether it has to stop.
_LOOK_S = 0.2


class StopSignal:
    """Shared by a job's thread, which checks it, and its owner, who may cancel.

    The deadline is `timeout_s` seconds after construction.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._cancelled = threading.Event()
        self._reason: Callable[[], JobError] = _cancelled

    def cancel(self, reason: Callable[[], JobError] | None = None) -> None:
        """Ask the job to stop; it ends with the error that `reason` makes."""
        if reason is not None:
            self._reason = reason
        self._cancelled.set()

    @property
    def remaining_s(self) -> float:
        """Seconds to the deadline, never below 0."""
        return max(0.0, self._deadline - time.monotonic())

    def check(self) -> None:
        """Raise the reason or `DeadlineExceeded` when the job has to stop."""
        if self._cancelled.is_set():
            raise self._reason()
        if self.remaining_s == 0:
            raise DeadlineExceeded(
                f"The job was stopped after its limit of {self._timeout_s:g} s",
                hint="Ask for fewer frames or a smaller size, or raise LTX2_JOB_TIMEOUT_S.",
            )

    def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until the job has to stop; then `check`."""
        self._cancelled.wait(min(seconds, self.remaining_s))
        self.check()

    def call(self, blocking: Callable[[], _Result]) -> _Result:
        """The result of a call that may block, such as one over the network.

        When the job has to stop, the call is left behind in its thread, which ends with it.
        """
        self.check()
        future = in_daemon_thread(blocking)
        while True:
            try:
                return future.result(min(_LOOK_S, self.remaining_s))
            except NotYet:
                if future.done():
                    raise
                self.check()


def in_daemon_thread(work: Callable[[], _Result]) -> Future[_Result]:
    """Run `work` in a thread of its own; one that never ends keeps nobody from leaving."""
    future: Future[_Result] = Future()

    def run() -> None:
        try:
            outcome = work()
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is taken
            future.set_exception(error)
        else:
            future.set_result(outcome)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), daemon=True, name="job-call").start()
    return future


def _cancelled() -> JobError:
    return Cancelled("The job was cancelled")


def worker_stops() -> JobError:
    """The error of a job whose worker is told to end; another worker can take it."""
    return Cancelled("The worker was told to stop while the job ran", retryable=True)
