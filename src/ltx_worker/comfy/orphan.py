"""An engine whose worker was killed: written down while it runs, ended by the next worker."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil

from ltx_worker.errors import ComfyUnavailable
from ltx_worker.logs import get_logger

_log = get_logger(__name__)
_END_S = 5.0


def record(path: Path, pid: int) -> None:
    """Write down that this process owns the engine `pid`."""
    try:
        entry = {"engine": _identity(pid), "worker": _identity(os.getpid())}
    except psutil.NoSuchProcess:
        # It has ended already: there is nothing to end later.
        return
    # Whole or not at all: another worker may read it meanwhile.
    new = path.with_suffix(".new")
    new.write_text(json.dumps(entry))
    new.replace(path)


def forget(path: Path) -> None:
    """The engine has ended in order."""
    path.unlink(missing_ok=True)


def end_orphan(path: Path) -> None:
    """End the engine that an earlier worker left behind.

    Raises `ComfyUnavailable` when that worker still lives: two must not share a port and folders.
    """
    try:
        entry = json.loads(path.read_text())
        engine, worker = _find(entry["engine"]), _find(entry["worker"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if engine is not None and worker is not None and worker.pid != os.getpid():
        raise ComfyUnavailable(
            f"Another worker (process {worker.pid}) runs an engine on this port: "
            "set LTX2_COMFY_PORT to another one"
        )
    if engine is not None:
        _log.warning("comfy.orphan_ended", pid=engine.pid)
        for process in [engine, *engine.children(recursive=True)]:
            _kill(process)
    forget(path)


def _identity(pid: int) -> list[float]:
    """A process as its id and its start: ids are used again."""
    return [pid, psutil.Process(pid).create_time()]


def _find(identity: list[float]) -> psutil.Process | None:
    pid, started = identity
    try:
        process = psutil.Process(int(pid))
        is_same = abs(process.create_time() - started) < 1
        return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
        process.wait(_END_S)
    except psutil.Error:
        _log.warning("comfy.orphan_left", pid=process.pid)
