"""Services and files for the delivery tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest
from tests.delivery.storage import Storage, moto, rclone

from ltx_worker.delivery.bucket import Bucket, Stored
from ltx_worker.stop import StopSignal


@pytest.fixture(scope="session")
def moto_storage() -> Generator[Storage]:
    """moto: it can list uploads in parts, and takes any credentials."""
    with moto() as storage:
        yield storage


@pytest.fixture(scope="session")
def rclone_storage(tmp_path_factory: pytest.TempPathFactory) -> Generator[Storage]:
    """rclone: it checks every signature."""
    with rclone(tmp_path_factory.mktemp("rclone")) as storage:
        yield storage


@pytest.fixture(params=["moto", "rclone"])
def storage(request: pytest.FixtureRequest) -> Storage:
    """Each of the services in turn."""
    return request.getfixturevalue(f"{request.param}_storage")


MakeFile = Callable[[int], Path]


@pytest.fixture
def make_file(tmp_path: Path) -> MakeFile:
    """Files of so many random bytes."""
    random = np.random.default_rng(5)

    def make(size: int) -> Path:
        path = tmp_path / f"file-{len(list(tmp_path.iterdir()))}"
        path.write_bytes(random.bytes(size))
        return path

    return make


def upload(bucket: Bucket, path: Path, key: str, stop: StopSignal | None = None) -> Stored:
    """Upload a file as a clip."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return bucket.upload(path, key, "video/mp4", sha256, stop or StopSignal(60))
