"""The worker's own ComfyUI: started, watched, started again when it dies, ended in order.

Its death is noticed at once, by the thread that waits for the process. Then it is started again,
later each time that it dies soon, until it is given up: the worker asks to be replaced.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ltx_worker.comfy import orphan
from ltx_worker.comfy.child import ChildProcess
from ltx_worker.comfy.client import ComfyClient
from ltx_worker.comfy.diagnosis import Death, death_of
from ltx_worker.comfy.launch import Launch, process_environment
from ltx_worker.comfy.server import wait_until_ready
from ltx_worker.errors import ComfyFailed, ComfyUnavailable, JobError
from ltx_worker.logs import get_logger
from ltx_worker.stop import StopSignal

_log = get_logger(__name__)

# Seconds before each start after a death that came soon; after the last one it is given up.
_BACK_OFF_S = (0.0, 1.0, 4.0)
# A ComfyUI that served for so long has not died soon.
_SERVED_WELL_S = 60.0
_WAIT_S = 0.2
_INTERRUPT_TIMEOUT_S = 1.0
_LOGGED_LINES = 20


class OwnedComfy:
    """Starts and owns what `launch` says. Its methods may be called from any thread.

    `on_given_up` gets the cause when it cannot be started again.
    """

    def __init__(
        self,
        launch: Launch,
        start_timeout_s: float,
        unresponsive_s: float,
        on_given_up: Callable[[str], None] | None = None,
    ) -> None:
        self.client = ComfyClient(launch.url, unresponsive_s)
        self.folders = launch.folders
        self.unresponsive_s = unresponsive_s
        self.is_own = True
        self._launch = launch
        self._on_given_up = on_given_up
        self._start_timeout_s = start_timeout_s
        self._changed = threading.Condition()
        self._child: ChildProcess | None = None
        self._incarnation = 0
        self._is_ready = False
        self._is_stopping = False
        self._deaths: dict[int, Death] = {}
        self._end_reason: str | None = None
        self._soon_deaths = 0
        self._ready_at = 0.0
        self._given_up: Death | None = None

    def start(self) -> Mapping[str, Any]:
        """Start it, after ending one that an earlier worker left. If it dies now, that is that."""
        orphan.end_orphan(self._launch.record_path)
        try:
            return self._start_one()
        except JobError:
            self.stop()
            raise

    def stop(self) -> None:
        """Interrupt what runs, then end the process."""
        with self._changed:
            self._is_stopping = True
            self._is_ready = False
            child = self._child
            self._changed.notify_all()
        if child is not None and child.is_alive:
            try:
                self.client.interrupt_all(_INTERRUPT_TIMEOUT_S)
            except ComfyUnavailable:
                _log.info("comfy.not_interrupted")
            child.stop()
            orphan.forget(self._launch.record_path)
        self.client.close()

    def wait_ready(self, stop: StopSignal, *, has_refused: bool = False) -> int:
        """Wait until it can take a job, also while it is being started again."""
        with self._changed:
            while not self._is_ready:
                if self._given_up is not None:
                    raise ComfyUnavailable(
                        f"ComfyUI cannot be started again: {self._given_up.cause}",
                        replace_worker=True,
                    )
                stop.check()
                self._changed.wait(_WAIT_S)
            return self._incarnation

    def check(self, incarnation: int) -> None:
        """Raise `ComfyFailed` with the cause when that incarnation has ended."""
        child = self._child
        if incarnation == self._incarnation and child is not None and child.is_alive:
            return
        with self._changed:
            # The thread that waits for the process may have to read the last lines yet.
            self._changed.wait_for(lambda: incarnation in self._deaths, timeout=2)
            death = self._deaths.get(incarnation, Death("it was started again"))
        raise ComfyFailed(
            f"ComfyUI ended while the job ran: {death.cause}",
            hint="Send the job again; if it ends the same way, ask for less.",
            retryable=True,
            replace_worker=death.is_lasting,
        )

    def replace(self, reason: str) -> bool:
        """End it; the thread that waits for it starts the next one."""
        _log.error("comfy.replaced", reason=reason)
        child = self._child
        self._end_reason = reason
        if child is not None:
            child.kill()
        return True

    def _start_one(self) -> Mapping[str, Any]:
        """Start an incarnation and wait until it answers; raises `ComfyUnavailable`."""
        started = time.monotonic()
        with self._changed:
            self._incarnation += 1
            incarnation = self._incarnation
            self._end_reason = None
            child = self._child = ChildProcess(
                self._launch.command,
                environment=process_environment(self._launch),
                on_line=lambda line: _log.debug("comfy.log", line=line),
                on_exit=lambda child: self._on_exit(child, incarnation),
            )
        orphan.record(self._launch.record_path, child.pid)
        try:
            nodes = wait_until_ready(
                self.client,
                self._start_timeout_s,
                check=lambda: self._check_start(child, incarnation),
            )
        except ComfyUnavailable:
            child.kill()
            raise
        seconds = round(time.monotonic() - started, 2)
        with self._changed:
            self._is_ready = True
            self._ready_at = time.monotonic()
            self._changed.notify_all()
        _log.info("comfy.ready", incarnation=incarnation, pid=child.pid, seconds=seconds)
        return nodes

    def _check_start(self, child: ChildProcess, incarnation: int) -> None:
        if self._is_stopping:
            raise ComfyUnavailable("The worker is stopping")
        if not child.is_alive:
            death = death_of(child.status, child.log_tail)
            words = child.last_words
            raise ComfyUnavailable(
                f"ComfyUI ended at start: {death.cause} ({words})", replace_worker=incarnation > 1
            )

    def _on_exit(self, child: ChildProcess, incarnation: int) -> None:
        """Tell who waits, and start the next. Runs in the thread that waited for the process."""
        death = death_of(child.status, child.log_tail)
        with self._changed:
            if self._end_reason is not None:
                death = Death(self._end_reason)
            served_s = time.monotonic() - self._ready_at if self._is_ready else 0.0
            self._is_ready = False
            self._deaths = {incarnation: death}
            is_first = self._ready_at == 0.0
            self._changed.notify_all()
        if self._is_stopping or is_first:
            return
        _log.error(
            "comfy.ended",
            incarnation=incarnation,
            status=child.status,
            cause=death.cause,
            served_s=round(served_s, 1),
            log=list(child.log_tail[-_LOGGED_LINES:]),
        )
        self._start_again(death, served_s)

    def _start_again(self, death: Death, served_s: float) -> None:
        self._soon_deaths = 0 if served_s >= _SERVED_WELL_S else self._soon_deaths + 1
        if death.is_lasting or self._soon_deaths > len(_BACK_OFF_S):
            with self._changed:
                self._given_up = death
                self._changed.notify_all()
            _log.error("comfy.given_up", cause=death.cause)
            if self._on_given_up is not None:
                self._on_given_up(death.cause)
            return
        with self._changed:
            pause_s = _BACK_OFF_S[self._soon_deaths - 1] if self._soon_deaths else 0.0
            if self._changed.wait_for(lambda: self._is_stopping, timeout=pause_s):
                return
        try:
            self._start_one()
        except JobError as error:
            # Its own end is seen by the thread that waits for it, which goes on from there.
            _log.warning("comfy.start_failed", reason=error.message)
