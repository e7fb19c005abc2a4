"""Whether this worker can still serve, and what an exception means for its job.

A fault that lasts, such as a broken GPU, is found by one job and ends all that come after it.
"""

from __future__ import annotations

import errno

from ltx_worker.errors import ComfyUnavailable, InternalError, JobError
from ltx_worker.logs import get_logger

_log = get_logger(__name__)


class Health:
    """What the worker's jobs have found; may be used by several threads."""

    def __init__(self) -> None:
        # Why this worker serves no more, once that is so.
        self._latched: JobError | None = None

    def require(self) -> None:
        """Raise when an earlier job found that this worker cannot serve any more."""
        if self._latched is not None:
            raise ComfyUnavailable(
                f"This worker waits to be replaced: {self._latched.message}", replace_worker=True
            )

    def note(self, error: JobError) -> None:
        """Take in how a job ended: one that asks for another worker is the last to be served."""
        if error.replace_worker:
            self._latched = self._latched or error

    def judged(self, raised: Exception) -> JobError:
        """The error as the contract has it; what nobody foresaw is logged with its traceback."""
        if isinstance(raised, JobError):
            self.note(raised)
            return raised
        if isinstance(raised, OSError) and raised.errno == errno.ENOSPC:
            return InternalError("The worker's disk is full", retryable=True)
        _log.error("job.crashed", exc_info=raised)
        return InternalError("The worker failed; its log has the details")
