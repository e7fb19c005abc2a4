"""A server as a child process: start, readiness, log tail, end."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from ltx_worker.comfy.client import ComfyClient
from ltx_worker.errors import ComfyUnavailable

_TAIL_LINES = 200
_POLL_S = 0.1
_ASK_TIMEOUT_S = 2.0
_TERMINATE_S = 5.0


def wait_until_ready(
    client: ComfyClient, timeout_s: float, process: ChildProcess | None = None
) -> None:
    """Wait until ComfyUI answers `/system_stats`; raises `ComfyUnavailable` when it does not.

    With `process`, its death ends the wait at once and its last words go into the message.
    """
    give_up = time.monotonic() + timeout_s
    while True:
        try:
            client.system_stats(_ASK_TIMEOUT_S)
        except ComfyUnavailable as error:
            if process is not None and not process.is_alive:
                raise ComfyUnavailable(f"ComfyUI ended at start ({process.last_words})") from error
            if time.monotonic() > give_up:
                raise ComfyUnavailable(
                    f"ComfyUI at {client.base_url} did not answer within {timeout_s:g} s"
                ) from error
            time.sleep(_POLL_S)
        else:
            return


class ChildProcess:
    """A child process whose last log lines are kept. Use as a context manager."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - the command is the worker's own
            command,
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        assert self._process.stdout is not None
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout,), daemon=True, name="child-log"
        )
        self._reader.start()

    def __enter__(self) -> ChildProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    @property
    def last_words(self) -> str:
        """The exit status and the last line written, for messages."""
        if not self.is_alive:
            self._reader.join(1)
        last = next((line for line in reversed(self._tail) if line.strip()), "no output")
        return f"status {self._process.poll()}, {last.strip()[:300]}"

    def stop(self) -> None:
        """End the process: SIGTERM, then SIGKILL."""
        if self.is_alive:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_TERMINATE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._reader.join(1)

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._tail.append(line.rstrip("\n"))
