"""The input, output and temp folders, and how ComfyUI turns names into paths in them."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path


class OutsideFolderError(Exception):
    """A name leads out of the folder it belongs to."""


@dataclass(frozen=True)
class SaveTarget:
    """Where a save node writes: `counter` is the first number not taken in `directory`."""

    directory: Path
    stem: str
    subfolder: str
    counter: int

    def file_name(self, suffix: str, offset: int = 0) -> str:
        """The name of the file number `offset` of this save."""
        return f"{self.stem}_{self.counter + offset:05}_{suffix}"


@dataclass(frozen=True)
class Folders:
    """ComfyUI's three folders, as absolute paths."""

    input: Path
    output: Path
    temp: Path

    def of_type(self, kind: str) -> Path | None:
        """The folder of a `type`: "input", "output" or "temp"."""
        return {"input": self.input, "output": self.output, "temp": self.temp}.get(kind)

    def annotated(self, name: str) -> tuple[str, Path | None]:
        """Split "name [output]" into the name and its folder; None when it says no folder."""
        for kind in ("output", "input", "temp"):
            mark = f"[{kind}]"
            if name.endswith(mark):
                return name[: -len(mark) - 1], self.of_type(kind)
        return name, None

    def source(self, name: str) -> Path:
        """The file a loader node opens. Like ComfyUI, it lets absolute names and `..` through."""
        plain, folder = self.annotated(name)
        return (folder or self.input) / plain

    def save_target(self, prefix: str, width: int, height: int) -> SaveTarget:
        """Where a file with this prefix goes; makes the folder.

        Raises a plain Exception, as ComfyUI does, when the prefix leads out of the output folder.
        """
        subfolder, stem = os.path.split(os.path.normpath(_filled(prefix, width, height)))
        try:
            directory = within(self.output, subfolder)
        except OutsideFolderError as error:
            raise Exception(str(error)) from None  # noqa: TRY002  its name is on the wire
        directory.mkdir(parents=True, exist_ok=True)
        taken = re.compile(re.escape(stem) + r"_(\d+)(?=[_.]|$)")
        numbers = (taken.match(file.name) for file in directory.iterdir())
        counter = 1 + max((int(found[1]) for found in numbers if found), default=0)
        return SaveTarget(directory, stem, subfolder, counter)


def within(folder: Path, name: str) -> Path:
    """The path of a name in a folder. Raises OutsideFolderError when it lies elsewhere."""
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(folder):
        raise OutsideFolderError(f"{path} is outside {folder}")
    return path


def _filled(prefix: str, width: int, height: int) -> str:
    """A prefix with its placeholders for size and local time filled in."""
    now = time.localtime()
    values = {
        "width": str(width),
        "height": str(height),
        "year": str(now.tm_year),
        "month": f"{now.tm_mon:02}",
        "day": f"{now.tm_mday:02}",
        "hour": f"{now.tm_hour:02}",
        "minute": f"{now.tm_min:02}",
        "second": f"{now.tm_sec:02}",
    }
    return re.sub(r"%(" + "|".join(values) + r")%", lambda found: values[found[1]], prefix)
