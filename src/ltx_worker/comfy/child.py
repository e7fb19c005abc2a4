"""A server as a child process whose last log lines are kept: start, death, end."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

_TAIL_LINES = 200
_TERMINATE_S = 5.0


class ChildProcess:
    """A child process in a group of its own. Use as a context manager.

    A signal that a terminal sends to the parent's group does not reach it: the parent decides when
    it ends. `on_line` gets each line of its output, `on_exit` is called once when it is over.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
        on_exit: Callable[[ChildProcess], None] | None = None,
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
            start_new_session=True,
        )
        _lift_memory_limit(self._process.pid)
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._on_line = on_line
        self._on_exit = on_exit
        assert self._process.stdout is not None
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout,), daemon=True, name="child-log"
        )
        self._reader.start()
        if on_exit is not None:
            threading.Thread(target=self._watch, daemon=True, name="child-watch").start()

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
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    @property
    def log_tail(self) -> tuple[str, ...]:
        """The last lines that it wrote; all of them once it is over."""
        if not self.is_alive:
            self._reader.join(1)
        return tuple(self._tail)

    @property
    def last_words(self) -> str:
        """The exit status and the last line written, for messages."""
        last = next((line for line in reversed(self.log_tail) if line.strip()), "no output")
        return f"status {self.status}, {last.strip()[:300]}"

    def stop(self, terminate_s: float = _TERMINATE_S) -> None:
        """End the process: SIGTERM, then SIGKILL for it and what it started."""
        if self.is_alive:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(terminate_s)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process.wait()
        self._reader.join(1)

    def kill(self) -> None:
        """End the process and what it started at once."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for raw in stream:
                line = raw.rstrip("\n")
                self._tail.append(line)
                if self._on_line is not None:
                    self._on_line(line)

    def _watch(self) -> None:
        self._process.wait()
        if self._on_exit is not None:
            self._on_exit(self)


def _lift_memory_limit(pid: int) -> None:
    """Undo the limit that the worker sets itself while it reads a caller's file (`media`).

    A child that is started in these milliseconds would inherit it for good.
    """
    if hasattr(resource, "prlimit"):
        with suppress(ProcessLookupError):
            _, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
            resource.prlimit(pid, resource.RLIMIT_DATA, (hard, hard))
