"""What stays on disk after an upload that failed, for how long, and what is not in it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from tests.delivery.conftest import MakeFile

from ltx_worker.delivery.handover import ResultFile
from ltx_worker.delivery.kept import KeptResults

INPUT = {"prompt": "a canary in the rain", "seed": 1}
RESULT: dict[str, Any] = {
    "outputs": [],
    "metadata": {"seed": 1, "enhanced_prompt": "a bright canary"},
    "texts": {"5": ["canary"]},
    "warnings": ["one"],
}


@pytest.fixture
def kept(tmp_path: Path) -> KeptResults:
    """A folder that keeps for an hour."""
    return KeptResults(tmp_path / "kept", 3600)


@pytest.fixture
def files(make_file: MakeFile) -> list[ResultFile]:
    """A clip and a picture."""
    return [
        ResultFile.of(make_file(1000), "clip.mp4", "video/mp4"),
        ResultFile.of(make_file(10), "clip-thumbnail.jpg", "image/jpeg", "thumbnail"),
    ]


def test_the_same_job_finds_its_files(kept: KeptResults, files: list[ResultFile]) -> None:
    """With everything that is said of them, until they are dropped."""
    kept.keep("job-1", INPUT, RESULT, files)
    found = kept.find("job-1", dict(reversed(INPUT.items())))
    assert found is not None
    assert [(f.filename, f.mime_type, f.bytes, f.sha256, f.part) for f in found.files] == [
        (f.filename, f.mime_type, f.bytes, f.sha256, f.part) for f in files
    ]
    assert found.result["warnings"][0] == "one"
    kept.drop("job-1")
    assert kept.find("job-1", INPUT) is None


def test_another_job_or_another_input_finds_nothing(
    kept: KeptResults, files: list[ResultFile]
) -> None:
    """A file goes to none but the job it was made for."""
    kept.keep("job-1", INPUT, RESULT, files)
    assert kept.find("job-2", INPUT) is None
    assert kept.find("job-1", INPUT | {"seed": 2}) is None
    assert kept.find("job-1", INPUT) is not None


def test_names_are_ours_and_words_stay_off_the_disk(
    kept: KeptResults, files: list[ResultFile], tmp_path: Path
) -> None:
    """An id cannot lead out of the folder, and neither prompt nor texts are written."""
    kept.keep("../../escape", INPUT, RESULT, files)
    written = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    assert {path.name for path in written} == {"kept.json", "file-0", "file-1"}
    assert not [path for path in written if b"canary" in path.read_bytes()]
    assert not list(tmp_path.parent.rglob("*escape*"))


def test_what_is_old_is_swept(kept: KeptResults, files: list[ResultFile], tmp_path: Path) -> None:
    """At each use and at start; what is younger stays."""
    kept.keep("old", INPUT, RESULT, files)
    (old,) = (tmp_path / "kept").iterdir()
    an_hour_ago = time.time() - 3601
    os.utime(old, (an_hour_ago, an_hour_ago))
    assert kept.find("other", INPUT) is None
    assert not old.exists()
    kept.keep("young", INPUT, RESULT, files)
    kept.sweep()
    assert kept.find("young", INPUT) is not None


def test_no_time_keeps_nothing(files: list[ResultFile], tmp_path: Path) -> None:
    """An operator may want no clip to stay."""
    kept = KeptResults(tmp_path / "kept", 0)
    kept.keep("job-1", INPUT, RESULT, files)
    assert not (tmp_path / "kept").exists()
    assert kept.find("job-1", INPUT) is None


@pytest.mark.parametrize("damage", ["file", "facts", "missing"])
def test_what_was_damaged_is_not_delivered(
    kept: KeptResults, files: list[ResultFile], tmp_path: Path, damage: str
) -> None:
    """A file that is not what it was is dropped, and the job is made again."""
    kept.keep("job-1", INPUT, RESULT, files)
    (folder,) = (tmp_path / "kept").iterdir()
    if damage == "file":
        (folder / "file-0").write_bytes(b"other")
    elif damage == "facts":
        (folder / "kept.json").write_text("{}")
    else:
        (folder / "file-1").unlink()
    assert kept.find("job-1", INPUT) is None
    assert kept.find("job-1", INPUT) is None


def test_a_disk_that_cannot_keep_does_not_hide_the_error(
    files: list[ResultFile], tmp_path: Path
) -> None:
    """Keeping is a courtesy: where it fails, the upload's own error is what counts."""
    (tmp_path / "kept").write_text("in the way")
    KeptResults(tmp_path / "kept", 3600).keep("job-1", INPUT, RESULT, files)
    assert (tmp_path / "kept").read_text() == "in the way"


def test_a_newer_result_replaces_the_older(
    kept: KeptResults, files: list[ResultFile], make_file: MakeFile
) -> None:
    """A job has one place."""
    kept.keep("job-1", INPUT, RESULT, files)
    newer = ResultFile.of(make_file(20), "clip.mp4", "video/mp4")
    kept.keep("job-1", INPUT, RESULT, [newer])
    found = kept.find("job-1", INPUT)
    assert found is not None
    assert [file.sha256 for file in found.files] == [newer.sha256]
