"""The hostile files, built once, and the world they are used in."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.hostile import pictures, recordings
from tests.hostile.cases import World, world

_FILES = {
    "image": pictures.REFUSED | pictures.NORMALISED,
    "audio": recordings.SOUND_REFUSED | recordings.SOUND_NORMALISED,
    "video": recordings.CLIP_REFUSED | recordings.CLIP_NORMALISED,
}


@pytest.fixture(scope="session")
def hostile_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every hostile file, called by its field and its name.

    Parallel processes of one run build it once: the first writes, the others wait for it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base if "PYTEST_XDIST_WORKER" not in os.environ else base.parent) / "hostile-files"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            partial = folder.with_suffix(".part")
            partial.mkdir()
            for field, builds in _FILES.items():
                for name, build in builds.items():
                    (partial / f"{field}-{name}").write_bytes(build())
            partial.rename(folder)
    return folder


@pytest.fixture
def here(hostile_files: Path, tmp_path: Path) -> Generator[World]:
    """The hostile world, for one test."""
    with world(hostile_files, tmp_path / "world") as found:
        yield found
