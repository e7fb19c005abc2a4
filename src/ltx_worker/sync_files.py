"""The files that a pod's sync finds: what is there, and whether a file is all there.

A file that is half written is never taken for a whole one, as far as it says of itself how long
it is: a clip does. Of any other file the sync knows only that it has stopped changing.
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ltx_worker.delivery.probe import probe
from ltx_worker.errors import ComfyFailed
from ltx_worker.job_files import JOB_FOLDER

_CLIP_SUFFIXES = {".mp4", ".webm"}
_EBML_ID = bytes.fromhex("1a45dfa3")
_ID_BYTES = 4
_HEAD_BYTES = 4096


@dataclass(frozen=True)
class Output:
    """One version of a file: `name` is its path inside the folder, whatever bytes that has."""

    path: Path
    name: str
    bytes: int
    mtime_ns: int

    @property
    def mtime(self) -> float:
        """When it was last written, in seconds since 1970."""
        return self.mtime_ns / 1e9

    def key(self, prefix: str) -> str:
        """The object's key: a folder for the file's day (UTC), then its name."""
        return f"{prefix}{datetime.fromtimestamp(self.mtime, UTC):%Y-%m-%d}/{self.name}"


class NotWhole(Exception):
    """A clip that is still being written, or is damaged."""


def look(folder: Path) -> list[Output]:
    """The files in and below `folder`; raises `OSError` when it cannot be read.

    Hidden, empty and linked files are left out, and the folders of jobs, which the worker delivers.
    """

    def raise_unless_gone(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError) or error.filename == str(folder):
            raise error

    found: list[Output | None] = []
    for parent, folders, names in os.walk(folder, onerror=raise_unless_gone):
        folders[:] = [n for n in folders if not n.startswith(".") and not JOB_FOLDER.fullmatch(n)]
        found += [output_at(Path(parent, n), folder) for n in names if not n.startswith(".")]
    return [output for output in found if output is not None]


def output_at(path: Path, folder: Path) -> Output | None:
    """The file as it is now; None when there is nothing to upload."""
    with suppress(FileNotFoundError, NotADirectoryError):
        facts = path.lstat()
        if stat.S_ISREG(facts.st_mode) and facts.st_size:
            name = os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace")
            return Output(path, name, facts.st_size, facts.st_mtime_ns)
    return None


def checksum_of(path: Path) -> str:
    """The file's SHA-256 in hex; raises `NotWhole` for a clip that has not all its frames."""
    if path.suffix.lower() not in _CLIP_SUFFIXES:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    try:
        sha256 = probe(path).sha256
    except ComfyFailed as error:
        raise NotWhole from error
    if not _has_its_bytes(path):
        raise NotWhole
    return sha256


def _has_its_bytes(path: Path) -> bool:
    """Whether a WebM has the bytes that it says it has; others than WebM are taken as they are.

    It says so once its writer has ended, and nowhere how many frames it has: any beginning of one
    passes for a shorter clip. By RFC 8794 it is an EBML header and one segment, each an id of four
    bytes, a size and the content.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head.startswith(_EBML_ID):
        return True
    header_bytes, at = _ebml_size(head, _ID_BYTES)
    segment_at = at + (header_bytes or 0) + _ID_BYTES
    if segment_at >= len(head):
        return False
    segment_bytes, at = _ebml_size(head, segment_at)
    return segment_bytes is not None and path.stat().st_size >= at + segment_bytes


def _ebml_size(head: bytes, at: int) -> tuple[int | None, int]:
    """The size that stands at an offset, None while it is left open, and the offset behind it."""
    length = 9 - head[at].bit_length()
    largest = (1 << 7 * length) - 1
    size = int.from_bytes(head[at : at + length]) & largest
    return (None if size == largest else size), at + length
