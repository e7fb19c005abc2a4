"""Reading weights into the page cache: which files, how much of them, and when it ends."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from pathlib import Path
from typing import Any

import pytest

from ltx_worker.boot import boot_data
from ltx_worker.catalog import load_catalog
from ltx_worker.gpu import read_system_memory
from ltx_worker.page_cache import PageCacheFindings, PageCacheReader, default_files, fitting

BLOCK = 1 << 20
DATA: dict[str, Any] = boot_data()["page_cache"]


def install(models: Path, family: str, *roles: str, variant: str = "fp8") -> list[str]:
    """Put a file for each role into `models`; returns their names."""
    names: list[str] = []
    for role in roles:
        file = load_catalog().candidates(family, role, variant)[0]  # pyright: ignore[reportArgumentType]
        (models / file.folder).mkdir(parents=True, exist_ok=True)
        (models / file.folder / file.name).write_bytes(b"weights")
        names.append(file.name)
    return names


def names_for(models: Path, **preferences: Any) -> list[str]:
    given = {"variant": None, "preferred": None} | preferences
    return [path.name for path in default_files(load_catalog(), [models], **given, data=DATA)]


def large_file(folder: Path, blocks: int) -> Path:
    """A file of random bytes that is on the disk, not in memory."""
    path = folder / "weights.safetensors"
    path.write_bytes(os.urandom(blocks * BLOCK))
    forget(path)
    return path


def forget(path: Path) -> None:
    """Take a file out of the page cache; pages in use stay, so that it may take a while."""
    give_up = time.monotonic() + 10
    with path.open("rb") as file:
        os.fsync(file.fileno())
        while True:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if not resident_pages(file.fileno()):
                return
            assert time.monotonic() < give_up, f"{path} stays in memory"
            time.sleep(0.01)


def resident_pages(descriptor: int) -> int:
    """How many pages of a file are in memory; to look brings in none."""
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None).mincore(
            ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), pages
        )
        del start
        # Where the system does not tell, the fixture's own look decides.
        return 0 if failed else sum(page & 1 for page in pages)


def is_resident(path: Path, block: int) -> bool:
    """Whether a block's first page is in memory; looking brings in nothing else."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        try:
            os.preadv(file.fileno(), [bytearray(1)], block * BLOCK, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        return True


def read(*files: Path) -> PageCacheFindings:
    """What a reader finds that is left to its end."""
    reader = PageCacheReader(lambda: files, threads=2, block_bytes=BLOCK)
    reader.start()
    give_up = time.monotonic() + 20
    while not (found := reader.findings).is_whole:
        assert time.monotonic() < give_up, found
        time.sleep(0.01)
    return found


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A folder whose filesystem tells what of a file is in memory."""
    path = tmp_path / "probe"
    path.write_bytes(b"p" * 4096)
    forget(path)
    try:
        is_resident(path, 0)
    except OSError:
        pytest.skip("this filesystem does not tell what is in memory")
    return tmp_path


def test_a_file_on_the_disk_is_read_into_memory(disk: Path) -> None:
    """All of it, the part after the last whole block as well."""
    path = large_file(disk, 8)
    with path.open("ab") as file:
        file.write(b"the end")
    forget(path)
    assert not is_resident(path, 4)
    found = read(path)
    # A look at a page that is not in memory brings it in. Where the disk is quicker than the look,
    # a block passes for one that was there: seldom, and never all of them.
    assert found.read_bytes + found.resident_bytes == 8 * BLOCK + 7
    assert found.read_bytes > BLOCK
    with path.open("rb") as file:
        assert resident_pages(file.fileno()) >= found.read_bytes // mmap.PAGESIZE
    assert all(is_resident(path, block) for block in range(9))


def test_what_is_in_memory_is_not_read_again(disk: Path) -> None:
    """Copying it once more would only take the machine's bandwidth from ComfyUI."""
    path = large_file(disk, 8)
    path.read_bytes()
    found = read(path)
    assert (found.read_bytes, found.resident_bytes) == (0, 8 * BLOCK)


def test_a_reader_that_is_stopped_reads_no_further_block(disk: Path) -> None:
    """What is left is not in memory, and nothing says that it is."""
    path = large_file(disk, 64)
    reader = PageCacheReader(lambda: [path], threads=1, block_bytes=BLOCK)
    reader.stop()
    reader.start()
    time.sleep(0.2)
    found = reader.findings
    assert (found.read_bytes, found.is_whole) == (0, False)
    assert not is_resident(path, 63)


def test_a_file_that_is_gone_ends_the_reading(tmp_path: Path) -> None:
    """The worker starts without: nothing is raised, and the rest is not tried."""
    reader = PageCacheReader(lambda: [tmp_path / "gone"], threads=2)
    reader.start()
    give_up = time.monotonic() + 5
    while (seconds := reader.findings.seconds) != reader.findings.seconds:
        assert time.monotonic() < give_up, seconds
        time.sleep(0.01)
    assert not reader.findings.is_whole


def test_the_default_job_s_files_come_in_the_order_of_their_use(tmp_path: Path) -> None:
    """The prompt is read first; other files of the family are left alone."""
    roles = ("distilled_checkpoint", "spatial_upscaler", "text_encoder")
    checkpoint, upscaler, encoder = install(tmp_path, "ltx-2", *roles)
    install(tmp_path, "ltx-2", "temporal_upscaler", "camera_static")
    assert names_for(tmp_path) == [encoder, checkpoint, upscaler]


def test_without_a_distilled_checkpoint_the_guided_job_s_files_count(tmp_path: Path) -> None:
    """A worker with the pro group alone makes its jobs with those."""
    names = install(tmp_path, "ltx-2", *load_catalog().groups["pro"])
    assert set(names_for(tmp_path)) == set(names)


def test_the_files_are_of_the_precision_that_the_worker_takes(tmp_path: Path) -> None:
    """With both precisions there, the GPU's choice is read and the other one is not."""
    roles = ("distilled_checkpoint", "spatial_upscaler", "text_encoder")
    small = install(tmp_path, "ltx-2", *roles)
    large = install(tmp_path, "ltx-2", *roles, variant="fp16")
    assert set(names_for(tmp_path, preferred="fp16")) == set(large)
    assert set(names_for(tmp_path, variant="fp8")) == set(small)


def test_a_family_that_is_not_whole_is_not_read(tmp_path: Path) -> None:
    """Its jobs cannot run."""
    install(tmp_path, "ltx-2", "distilled_checkpoint")
    assert names_for(tmp_path) == []


def test_files_that_memory_does_not_hold_are_left_on_the_disk(tmp_path: Path) -> None:
    """They would push each other out: what is read is what fits, in order."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"1" * 100)
    second.write_bytes(b"2" * 100)
    assert fitting([first, second], 200) == [first, second]
    assert fitting([first, second], 199) == [first]
    assert fitting([first, second], 99) == []


def test_files_that_are_memory_are_not_read(tmp_path: Path) -> None:
    """A disk in memory has nothing to read ahead."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        pytest.skip("there is no disk in memory here")
    path = memory / f"ltx-worker-test-{os.getpid()}"
    path.write_bytes(b"weights")
    try:
        assert fitting([path], read_system_memory().bytes) == []
    finally:
        path.unlink()
