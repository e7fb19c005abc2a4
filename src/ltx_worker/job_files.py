"""The files of one job: where its inputs lie for ComfyUI, where its outputs are read, their end.

Names are ours: everything of a job lies in one folder named by a random token, in ComfyUI's input
and output folders and in a temporary one, and is gone on exit whatever happened (invariants 6, 8).
Without shared folders, files travel over HTTP; ComfyUI then keeps its copies.
"""

from __future__ import annotations

import re
import secrets
import shutil
import tempfile
from pathlib import Path

from ltx_worker.comfy.client import ComfyClient, History, OutputFile
from ltx_worker.errors import ComfyFailed
from ltx_worker.leftovers import Leftover, left_behind, make_temporary
from ltx_worker.logs import get_logger

_log = get_logger(__name__)

# The name of a job's folder inside ComfyUI's input and output folders.
JOB_FOLDER = re.compile(r"[0-9a-f]{16}")


class JobFiles:
    """Use as a context manager, one a job."""

    def __init__(
        self,
        client: ComfyClient,
        input_dir: Path | None,
        output_dir: Path | None,
        folder: str = "ltx2",
        prompt_id: str = "",
    ) -> None:
        self._client = client
        self._input_dir = input_dir
        self._output_dir = output_dir
        self._folder = folder
        self._prompt_id = prompt_id
        token = secrets.token_hex(8)
        self._subfolder = f"{folder}/{token}"
        self._temporary = make_temporary(token, prompt_id)

    def __enter__(self) -> JobFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove everything of the job, and of a delivery of it whose worker was killed."""
        self._remove(self._temporary)
        self._remove_shared(self._subfolder)
        if self._prompt_id:
            earlier = [one for one in left_behind() if one.prompt_id == self._prompt_id]
            for leftover in earlier:
                self.remove_leftover(leftover)

    def remove_leftover(self, leftover: Leftover) -> None:
        """Remove what another job has left."""
        self._remove(leftover.temporary)
        self._remove_shared(f"{self._folder}/{leftover.token}")

    @property
    def subfolder(self) -> str:
        """The job's folder, relative to ComfyUI's input folder and to its output folder."""
        return self._subfolder

    @property
    def filename_prefix(self) -> str:
        """What ComfyUI's save nodes get, so that they write into the job's folder."""
        return f"{self._subfolder}/clip"

    def scratch_path(self, name: str) -> Path:
        """Where to write a file that only the worker needs."""
        return self._temporary / name

    def input_path(self, name: str) -> Path:
        """Where to write an input file called `name`; `publish` it afterwards."""
        folder = self._temporary
        if self._input_dir is not None:
            folder = self._input_dir / self._subfolder
            folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    def publish(self, path: Path) -> str:
        """Make an input file known to ComfyUI; returns the name its load nodes take."""
        if self._input_dir is None:
            self._client.upload(path, self._subfolder)
        return f"{self._subfolder}/{path.name}"

    def collect(self, file: OutputFile) -> Path:
        """An output file as a path; raises `ComfyFailed` when it is not there."""
        if self._output_dir is not None and file.type == "output":
            path = self._path_of(file, self._output_dir)
            if path.is_file():
                return path
        else:
            path = Path(tempfile.mkdtemp(dir=self._temporary)) / "output"
            with path.open("wb") as target:
                if self._client.download(file, target):
                    return path
        raise ComfyFailed("ComfyUI reported a clip that does not exist")

    def is_whole(self, history: History) -> bool:
        """Whether every file that a run reported is still there."""
        return all(self._exists(file) for file in history.files)

    def _exists(self, file: OutputFile) -> bool:
        if self._output_dir is None or file.type != "output":
            return self._client.has(file)
        return self._path_of(file, self._output_dir).is_file()

    @staticmethod
    def _path_of(file: OutputFile, output_dir: Path) -> Path:
        path = output_dir / file.subfolder / file.filename
        if not path.resolve().is_relative_to(output_dir.resolve()):
            raise ComfyFailed("ComfyUI reported a file outside its output folder")
        return path

    def _remove_shared(self, subfolder: str) -> None:
        for folder in (self._input_dir, self._output_dir):
            if folder is not None:
                self._remove(folder / subfolder)

    @staticmethod
    def _remove(folder: Path) -> None:
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            pass
        except OSError:
            _log.warning("job.files_left", folder=folder.name, exc_info=True)
