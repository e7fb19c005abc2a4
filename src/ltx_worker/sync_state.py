"""What a pod's sync remembers, as JSON beside the folder: on the volume that outlives the pod.

What is written down about a file holds for one version of it, told by its bytes and its time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError

from ltx_worker.logs import get_logger
from ltx_worker.sync_files import Output, look

_log = get_logger(__name__)


class Record(BaseModel):
    """What became of a file at `at` (seconds since 1970); without an `error` it is uploaded."""

    bytes: int
    mtime_ns: int
    key: str
    at: float
    tries: int
    error: str | None


class SyncState(BaseModel):
    """By the files' names; `problem` is why nothing at all is uploaded."""

    files: dict[str, Record] = {}
    last_file: str | None = None
    last_at: float = 0.0
    problem: str | None = None

    def record_of(self, output: Output) -> Record | None:
        """What became of this very version."""
        found = self.files.get(output.name)
        is_same = found is not None and (found.bytes, found.mtime_ns) == (
            output.bytes,
            output.mtime_ns,
        )
        return found if is_same else None

    def is_uploaded(self, output: Output) -> bool:
        """Whether this very version is in the bucket."""
        record = self.record_of(output)
        return record is not None and record.error is None

    def note(self, output: Output, key: str, error: str | None) -> int:
        """Write down what became of a file; returns how often this version has been tried."""
        earlier = self.record_of(output)
        record = Record(
            bytes=output.bytes,
            mtime_ns=output.mtime_ns,
            key=key,
            at=time.time(),
            tries=1 + (earlier.tries if earlier else 0),
            error=error,
        )
        self.files[output.name] = record
        if error is None:
            self.last_file, self.last_at = output.name, record.at
        return record.tries


def load_state(folder: Path) -> SyncState:
    """What is known about `folder`; nothing where it cannot be read, which only costs uploads."""
    try:
        return SyncState.model_validate_json(_path(folder).read_bytes())
    except FileNotFoundError:
        return SyncState()
    except (OSError, ValidationError):
        _log.warning("sync.state_unreadable")
        return SyncState()


def save_state(folder: Path, state: SyncState) -> None:
    """Write it down in one step; where that fails, as on a full volume, the sync goes on."""
    path = _path(folder)
    new = path.with_suffix(".new")
    try:
        with new.open("w", encoding="utf-8") as file:
            file.write(state.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        _log.warning("sync.state_not_kept", reason=error.strerror)


@dataclass(frozen=True)
class SyncReport:
    """How the sync of a folder goes; `failed` has the reasons, `behind_s` is of the oldest file."""

    folder: Path
    is_running: bool
    state: SyncState
    pending: int
    failed: tuple[tuple[str, Record], ...]
    behind_s: float
    problem: str | None

    @property
    def is_failing(self) -> bool:
        """Whether somebody has to look after it."""
        return not self.is_running or bool(self.failed) or self.problem is not None

    def lines(self) -> Iterator[str]:
        """The report for people."""
        state = self.state
        last = f"{state.last_file}, {_moment(state.last_at)}" if state.last_file else "none yet"
        yield f"folder          {self.folder}"
        yield f"running         {'yes' if self.is_running else 'no'}"
        yield f"last upload     {last}"
        yield f"pending         {self.pending}"
        yield f"failed          {len(self.failed)}"
        for name, record in self.failed:
            tries = "1 try" if record.tries == 1 else f"{record.tries} tries"
            yield f"  {name}: {record.error} ({tries}, the last {_moment(record.at)})"
        yield f"seconds behind  {self.behind_s:.0f}"
        if self.problem is not None:
            yield f"problem         {self.problem}"


def report_on(folder: Path, *, is_running: bool) -> SyncReport:
    """What is in the folder now, against what is written down."""
    state = load_state(folder)
    problem = state.problem
    try:
        outputs = look(folder)
    except OSError as error:
        outputs, problem = [], f"the folder cannot be read: {error.strerror}"
    left = [output for output in outputs if not state.is_uploaded(output)]
    records = {output.name: state.record_of(output) for output in left}
    failed = tuple((name, record) for name, record in records.items() if record is not None)
    behind_s = max((time.time() - output.mtime for output in left), default=0.0)
    pending = len(left) - len(failed)
    return SyncReport(folder, is_running, state, pending, failed, max(0.0, behind_s), problem)


def _moment(at: float) -> str:
    """A time for people: when, and how long ago."""
    ago_s = max(0.0, time.time() - at)
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC ({ago_s:.0f} s ago)"


def _path(folder: Path) -> Path:
    return folder.parent / f".{folder.name}-sync.json"
