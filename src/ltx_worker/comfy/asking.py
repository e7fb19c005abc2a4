"""Asking ComfyUI for the truth, however badly it answers just now.

An answer that does not come is asked for again, until the process is known to be gone, the job has
to stop, or ComfyUI has owed it for too long.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from ltx_worker.comfy.client import ComfyFault
from ltx_worker.comfy.server import ComfyServer
from ltx_worker.errors import ComfyFailed, ComfyUnavailable
from ltx_worker.stop import StopSignal

_Answer = TypeVar("_Answer")
_RETRY_S = 0.2
# A status such as 500 may be an accident once.
_MAX_FAULTS = 1


class Unresponsive(Exception):
    """ComfyUI has owed an answer for too long."""


class Asking:
    """Asks `server` for one job, which started on its `incarnation`."""

    def __init__(self, server: ComfyServer, incarnation: int, stop: StopSignal) -> None:
        self._server = server
        self._incarnation = incarnation
        self._stop = stop

    def check(self) -> None:
        """Raise what `stop` raises, or `ComfyFailed` when the process is gone."""
        self._stop.check()
        self._server.check(self._incarnation)

    def ask(self, question: Callable[[], _Answer]) -> _Answer:
        """The answer to a question that may be asked again.

        Raises `Unresponsive`, what `check` raises, and `ComfyUnavailable` when ComfyUI answers
        twice with a fault of its own.
        """
        give_up = time.monotonic() + self._server.unresponsive_s
        faults = 0
        while True:
            self.check()
            try:
                return self._stop.call(question)
            except ComfyFailed:
                # A ComfyUI that was started again knows nothing; why it was is the better answer.
                self.check()
                raise
            except ComfyUnavailable as error:
                faults += isinstance(error, ComfyFault)
                if faults > _MAX_FAULTS:
                    raise
                if time.monotonic() > give_up:
                    seconds = self._server.unresponsive_s
                    raise Unresponsive(f"ComfyUI did not answer for {seconds:g} s") from error
                self._stop.sleep(_RETRY_S)
