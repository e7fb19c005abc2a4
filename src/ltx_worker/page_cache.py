"""Reads the weights of the default job into the page cache while ComfyUI starts.

It only ever helps: a file that cannot be read, or memory that does not suffice, ends it. Nothing
waits for it, and what is in memory already is left alone.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ltx_worker.catalog import Catalog, Inventory, ModelFile, Variant
from ltx_worker.logs import get_logger

_log = get_logger(__name__)

_MIB = 2**20
# Filesystems whose files are memory.
_IN_MEMORY = ("tmpfs", "ramfs")
_PAGE_BYTES = 4096
# Where a block is looked at, as parts of its length.
_LOOKS = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class _Block:
    path: Path
    offset: int
    length: int


@dataclass(frozen=True)
class PageCacheFindings:
    """What was read and what was in memory already, in bytes; how long it took.

    `is_whole` says that nothing is left to read.
    """

    read_bytes: int
    resident_bytes: int
    seconds: float
    is_whole: bool


class PageCacheReader:
    """Reads the files that `find` returns, in order, in `threads` threads of its own.

    `find` is called in one of them: to look for files may take long on a network volume.
    """

    def __init__(
        self, find: Callable[[], Sequence[Path]], threads: int, block_bytes: int = 16 * _MIB
    ) -> None:
        self._find = find
        self._threads = threads
        self._block_bytes = block_bytes
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._started = self._ended = time.monotonic()
        self._blocks: Iterator[_Block] | None = None
        self._running = 0
        self._read_bytes = 0
        self._resident_bytes = 0
        self._is_whole = False

    def start(self) -> None:
        """Begin, and return at once."""
        self._started = time.monotonic()
        self._running = self._threads
        for number in range(self._threads):
            threading.Thread(target=self._work, daemon=True, name=f"page-cache-{number}").start()

    def stop(self) -> None:
        """Read no further block."""
        self._stopped.set()

    @property
    def findings(self) -> PageCacheFindings:
        """What was done until now."""
        with self._lock:
            until = time.monotonic() if self._running else self._ended
            seconds = round(until - self._started, 3)
            return PageCacheFindings(
                self._read_bytes, self._resident_bytes, seconds, self._is_whole
            )

    def _work(self) -> None:
        try:
            self._read_blocks()
        except OSError as error:
            self._stopped.set()
            _log.info("page_cache.ended", reason=error.strerror)
        finally:
            with self._lock:
                self._running -= 1
                self._ended = time.monotonic()
                self._is_whole = not self._running and not self._stopped.is_set()

    def _read_blocks(self) -> None:
        buffer = memoryview(bytearray(self._block_bytes))
        while not self._stopped.is_set():
            with self._lock:
                if self._blocks is None:
                    self._blocks = _blocks_of(self._find(), self._block_bytes)
                block = next(self._blocks, None)
            if block is None:
                return
            is_resident = _have(block, buffer)
            with self._lock:
                if is_resident:
                    self._resident_bytes += block.length
                else:
                    self._read_bytes += block.length


def default_files(
    catalog: Catalog,
    models_dirs: Sequence[Path],
    variant: Variant | None,
    preferred: Variant | None,
    data: dict[str, Any],
) -> list[Path]:
    """The installed files that a job without wishes needs, in the order of their use.

    `variant` and `preferred` as for `Inventory`; `data` is the table page_cache of boot.toml. Empty
    where no family is whole.
    """
    places = {
        (file.folder, file.name): path
        for file in catalog.files
        for folder in models_dirs
        if (path := folder / file.folder / file.name).is_file()
    }
    inventory = Inventory(catalog, frozenset(places), variant, preferred)
    order: list[str] = data["order"]
    for family in catalog.families:
        for group in data["groups"]:
            roles = sorted(catalog.groups[group], key=order.index)
            found = [inventory.find(family, role) for role in roles]
            files = [file for file in found if file is not None]
            if len(files) == len(roles):
                return [places[_place(file)] for file in files]
    return []


def fitting(files: Sequence[Path], budget_bytes: int) -> list[Path]:
    """The first of these files that fit into so much memory together, without those in memory."""
    chosen: list[Path] = []
    in_memory = _devices_in_memory()
    for path in files:
        found = path.stat()
        budget_bytes -= found.st_size
        if budget_bytes < 0:
            _log.info("page_cache.short", file=path.name)
            break
        if found.st_dev not in in_memory:
            chosen.append(path)
    return chosen


def _place(file: ModelFile) -> tuple[str, str]:
    return file.folder, file.name


def _devices_in_memory() -> frozenset[int]:
    """The device numbers of the filesystems whose files are memory."""
    found = [one for one in psutil.disk_partitions(all=True) if one.fstype in _IN_MEMORY]
    mounts = [Path(one.mountpoint) for one in found]
    return frozenset(mount.stat().st_dev for mount in mounts if mount.is_dir())


def _blocks_of(files: Sequence[Path], block_bytes: int) -> Iterator[_Block]:
    for path in files:
        size = path.stat().st_size
        for offset in range(0, size, block_bytes):
            yield _Block(path, offset, min(block_bytes, size - offset))


def _have(block: _Block, buffer: memoryview) -> bool:
    """Have the block in the page cache; whether it was there. `buffer` takes at least a block."""
    descriptor = os.open(block.path, os.O_RDONLY)
    try:
        # Nothing is read ahead by itself: a look would else bring in what the next one looks at.
        os.posix_fadvise(descriptor, block.offset, block.length, os.POSIX_FADV_RANDOM)
        if _is_resident(descriptor, block, buffer):
            return True
        position, end = block.offset, block.offset + block.length
        # All of it is asked for at once; the kernel takes no more than so much at a time.
        for asked in range(position, end, _MIB):
            os.posix_fadvise(descriptor, asked, min(_MIB, end - asked), os.POSIX_FADV_WILLNEED)
        while position < end:
            read = os.preadv(descriptor, [buffer[: end - position]], position)
            if not read:
                break
            position += read
    finally:
        os.close(descriptor)
    return False


def _is_resident(descriptor: int, block: _Block, buffer: memoryview) -> bool:
    """Whether the block is in memory, as far as a few looks tell; False where none can be taken."""
    last = max(0, block.length - _PAGE_BYTES)
    for part in _LOOKS:
        position = block.offset + int(part * last)
        try:
            os.preadv(descriptor, [buffer[:1]], position, os.RWF_NOWAIT)
        except OSError:
            return False
    return True
