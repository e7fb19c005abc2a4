"""What the jobs of a worker that was killed have left, found by the names of their folders.

A job's temporary folder is named by the worker's process, the job's folder inside the engine's
input and output folders, and its prompt: nothing else has to be written down, or kept in step.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

_PREFIX = "ltx2-job-"
_NAME = re.compile(rf"{_PREFIX}(\d+)-(\d+)-([0-9a-f]+)-([0-9a-f-]*)")


@dataclass(frozen=True)
class Leftover:
    """A job's temporary folder, the name of its other folders, and its prompt's id."""

    temporary: Path
    token: str
    prompt_id: str


def make_temporary(token: str, prompt_id: str) -> Path:
    """A new folder for a job of this process."""
    name = f"{_PREFIX}{_process()}-{token}-{prompt_id}"
    folder = Path(tempfile.gettempdir()) / name
    folder.mkdir(mode=0o700)
    return folder


def left_behind() -> list[Leftover]:
    """The jobs whose process is gone."""
    found: list[Leftover] = []
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        match = _NAME.fullmatch(path.name)
        if match and not _lives(int(match[1]), int(match[2])):
            found.append(Leftover(path, match[3], match[4]))
    return found


def _process() -> str:
    """This process by its id and its start in seconds: a container gives ids out again."""
    return f"{os.getpid()}-{int(psutil.Process().create_time())}"


def _lives(pid: int, started: int) -> bool:
    try:
        return int(psutil.Process(pid).create_time()) == started
    except psutil.Error:
        return False
