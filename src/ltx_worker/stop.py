"""Why a job has to stop: its deadline, or somebody's wish."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
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
        self._helper: _Helper | None = None

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
        helper, self._helper = self._helper or _Helper(), None
        future = helper.start(blocking)
        while True:
            wait([future], min(_LOOK_S, self.remaining_s))
            if future.done():
                # One that was left behind is not used again.
                self._helper = helper
                return future.result()
            self.check()


class _Helper:
    """A daemon thread for blocking calls, which ends with whoever holds the helper."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        threading.Thread(target=_run_all, args=(self._calls,), daemon=True, name="job-call").start()

    def __del__(self) -> None:
        self._calls.put(None)

    def start(self, work: Callable[[], _Result]) -> Future[_Result]:
        """Run `work` after what was started before."""
        future: Future[_Result] = Future()
        context = contextvars.copy_context()
        self._calls.put(lambda: context.run(_settle, future, work))
        return future


def _run_all(calls: SimpleQueue[Callable[[], None] | None]) -> None:
    while (call := calls.get()) is not None:
        call()
        # The last result would be kept until the next call.
        del call


def _settle(future: Future[_Result], work: Callable[[], _Result]) -> None:
    try:
        outcome = work()
    except BaseException as error:  # noqa: BLE001 - it is raised where the result is taken
        future.set_exception(error)
    else:
        future.set_result(outcome)


def in_daemon_thread(work: Callable[[], _Result]) -> Future[_Result]:
    """Run `work` in a thread of its own; one that never ends keeps nobody from leaving."""
    return _Helper().start(work)


def _cancelled() -> JobError:
    return Cancelled("The job was cancelled")


def worker_stops() -> JobError:
    """The error of a job whose worker is told to end; another worker can take it."""
    return Cancelled("The worker was told to stop while the job ran", retryable=True)
