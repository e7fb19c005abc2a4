"""The hostile files, built once, and the world they are used in."""

from __future__ import annotations

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
    """A folder with every hostile file, called by its field and its name."""
    folder = tmp_path_factory.mktemp("hostile-files")
    for field, builds in _FILES.items():
        for name, build in builds.items():
            (folder / f"{field}-{name}").write_bytes(build())
    return folder


@pytest.fixture
def here(hostile_files: Path, tmp_path: Path) -> Generator[World]:
    """The hostile world, for one test."""
    with world(hostile_files, tmp_path / "world") as found:
        yield found
