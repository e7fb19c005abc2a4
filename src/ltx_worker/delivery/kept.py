"""Files of jobs whose upload failed for good, for when the same job is delivered again.

The exception to invariant 8, and a bounded one: what is kept is gone after `keep_s`. It lies under
a name of ours, belongs to one job id and one input, and has no words of the prompt in it: of those
there is only a checksum.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ltx_worker.delivery.handover import ResultFile
from ltx_worker.logs import get_logger

_log = get_logger(__name__)

_FACTS = "kept.json"
_WARNING = "made by an earlier attempt at this job, whose upload failed"


@dataclass(frozen=True)
class KeptResult:
    """A job's answer without its files, and the files."""

    result: dict[str, Any]
    files: tuple[ResultFile, ...]


class KeptResults:
    """A folder with one subfolder for each kept job; `keep_s` is how many seconds it stays.

    May be used by several threads, each for a job of its own.
    """

    def __init__(self, folder: Path, keep_s: float) -> None:
        self._folder = folder
        self._keep_s = keep_s

    def keep(
        self, job_id: str, job_input: object, result: Mapping[str, Any], files: Sequence[ResultFile]
    ) -> None:
        """Copy the files and what the answer says of them; a failure to is logged, not raised."""
        self.sweep()
        if self._keep_s == 0:
            return
        try:
            self._write(job_id, job_input, result, files)
        except OSError:
            _log.warning("kept.failed", exc_info=True)
            self.drop(job_id)

    def find(self, job_id: str, job_input: object) -> KeptResult | None:
        """What is kept of this very job, if its files are whole."""
        self.sweep()
        folder = self._folder_of(job_id)
        try:
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            if facts["input"] != _digest(job_id, job_input):
                return None
            files = tuple(_read(folder, entry) for entry in facts["files"])
            return KeptResult(facts["result"], files)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            _log.warning("kept.unreadable", exc_info=True)
            self.drop(job_id)
            return None

    def drop(self, job_id: str) -> None:
        """Remove what is kept of a job."""
        shutil.rmtree(self._folder_of(job_id), ignore_errors=True)

    def sweep(self) -> None:
        """Remove what is older than `keep_s`; call it when the worker starts, too."""
        if not self._folder.is_dir():
            return
        for entry in self._folder.iterdir():
            # Another job may be removing it.
            with suppress(FileNotFoundError):
                if time.time() - entry.stat().st_mtime >= self._keep_s:
                    shutil.rmtree(entry, ignore_errors=True)

    def _folder_of(self, job_id: str) -> Path:
        return self._folder / hashlib.sha256(job_id.encode()).hexdigest()[:32]

    def _write(
        self, job_id: str, job_input: object, result: Mapping[str, Any], files: Sequence[ResultFile]
    ) -> None:
        """Write beside the place and move there, so that what is found is whole."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = Path(tempfile.mkdtemp(prefix="new-", dir=self._folder))
        try:
            for number, file in enumerate(files):
                shutil.copyfile(file.path, new / f"file-{number}")
            facts = {
                "input": _digest(job_id, job_input),
                "result": _without_words(result),
                "files": [_entry(number, file) for number, file in enumerate(files)],
            }
            (new / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
            self.drop(job_id)
            new.rename(self._folder_of(job_id))
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _entry(number: int, file: ResultFile) -> dict[str, Any]:
    return {
        "name": f"file-{number}",
        "filename": file.filename,
        "mime_type": file.mime_type,
        "sha256": file.sha256,
        "part": file.part,
    }


def _read(folder: Path, entry: Mapping[str, str]) -> ResultFile:
    """A kept file; raises `ValueError` when it is not what it was."""
    path = folder / entry["name"]
    file = ResultFile.of(path, entry["filename"], entry["mime_type"], entry["part"])
    if file.sha256 != entry["sha256"]:
        raise ValueError("a kept file has changed")
    return file


def _digest(job_id: str, job_input: object) -> str:
    text = json.dumps([job_id, job_input], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _without_words(result: Mapping[str, Any]) -> dict[str, Any]:
    """The answer without what may repeat the prompt: its enhanced form and the nodes' texts."""
    kept = dict(result)
    kept["warnings"] = [*kept.get("warnings", []), _WARNING]
    if "metadata" in kept:
        kept["metadata"] = {**cast("dict[str, Any]", kept["metadata"]), "enhanced_prompt": None}
    if "texts" in kept:
        kept["texts"] = {}
    return kept
