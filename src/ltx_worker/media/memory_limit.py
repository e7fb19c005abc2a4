"""How much memory a caller's file may take while it is read, and who else may need some then.

The limit is the whole process's. Where a worker has several jobs, one's large pictures must not be
refused the memory because another's file is being read: that waits until nobody needs much.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

# Beyond what the process has when reading begins; a 4K clip of seconds takes less than 5 MB.
_MAX_READING_BYTES = 160_000_000
_STATM = Path("/proc/self/statm")


class _Gate:
    """Any number of threads that need much memory, or one that limits it.

    A thread may enter again either way, whatever it holds. Limits are short: who waits for one to
    end does so for milliseconds.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ample: dict[int, int] = {}
        self._limiter: int | None = None
        self._depth = 0

    @contextmanager
    def ample(self) -> Generator[None]:
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: self._limiter in (None, me))
            self._ample[me] = self._ample.get(me, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                self._ample[me] -= 1
                if not self._ample[me]:
                    del self._ample[me]
                self._changed.notify_all()

    @contextmanager
    def limited(self) -> Generator[None]:
        me = threading.get_ident()
        with self._changed:
            # While it waits it needs nothing: otherwise two such threads would wait for each other.
            held = self._ample.pop(me, 0)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._limiter == me or self._is_free)
            self._limiter = me
            self._depth += 1
        try:
            yield
        finally:
            with self._changed:
                self._depth -= 1
                if not self._depth:
                    self._limiter = None
                if held:
                    self._ample[me] = held
                self._changed.notify_all()

    @property
    def _is_free(self) -> bool:
        return self._limiter is None and not self._ample


_gate = _Gate()


@contextmanager
def ample_memory() -> Generator[None]:
    """For work that takes tens of megabytes, such as decoding: no limit is set meanwhile.

    But for one that the same thread has set.
    """
    with _gate.ample():
        yield


@contextmanager
def limited_memory() -> Generator[None]:
    """Let the process have no more than `_MAX_READING_BYTES` beyond what it has, on Linux.

    FFmpeg is then refused memory, and says so or leaves out what it has no room for. The limit is
    the whole process's, so what is done under it is short.
    """
    if not _STATM.exists():
        yield
        return
    with _gate.limited():
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        used = int(_STATM.read_text(encoding="ascii").split()[5]) * resource.getpagesize()
        wanted = used + _MAX_READING_BYTES
        tightest = min((limit for limit in (soft, hard) if limit >= 0), default=wanted)
        resource.setrlimit(resource.RLIMIT_DATA, (min(wanted, tightest), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
