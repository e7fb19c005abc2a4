"""The result of a raw workflow: every file and text that its nodes reported.

Invariant 1: a run without any file or text is a failure, not a success. What ComfyUI reports as
`images`, which includes the clips of its SaveVideo, is in `images` where clients of RunPod's
generic ComfyUI worker look for it; every other file carries its data or link in `outputs`.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ltx_worker.comfy.client import History, OutputFile
from ltx_worker.delivery.handover import HandedOver, ResultFile
from ltx_worker.errors import ComfyFailed
from ltx_worker.job_files import JobFiles
from ltx_worker.result import Timings

# How files begin, by type; a name may say anything.
_SIGNATURES: Sequence[tuple[re.Pattern[bytes], str]] = [
    (re.compile(pattern, re.DOTALL), mime_type)
    for pattern, mime_type in (
        (rb"\x89PNG", "image/png"),
        (rb"\xff\xd8\xff", "image/jpeg"),
        (rb"GIF8", "image/gif"),
        (rb"RIFF....WEBP", "image/webp"),
        (rb"RIFF....WAVE", "audio/wav"),
        (rb"....ftypavi", "image/avif"),
        (rb"....ftypqt", "video/quicktime"),
        (rb"....ftypM4A", "audio/mp4"),
        (rb"....ftyp", "video/mp4"),
        (rb"\x1aE\xdf\xa3.{0,40}webm", "video/webm"),
        (rb"\x1aE\xdf\xa3", "video/x-matroska"),
        (rb"ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]", "audio/mpeg"),
        (rb"fLaC", "audio/flac"),
        (rb"OggS", "audio/ogg"),
    )
]
_HEAD_BYTES = 64


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RawImageData(_Part):
    """A file of the answer, as RunPod's generic ComfyUI worker gives it."""

    filename: str
    type: Literal["base64", "s3_url"] = "base64"
    data: str = Field(description="The file, as base64 without a data: prefix, or a link to it.")


class RawOutput(_Part):
    """A file that a node reported."""

    node_id: str
    kind: str = Field(description="ComfyUI's name for the output: images, audio, gifs ...")
    filename: str
    subfolder: str = Field(description="Where the graph put it; empty for most nodes.")
    mime_type: str
    bytes: int
    sha256: str
    data: str | None = Field(description="As base64; null when the file is in `images`.")
    url: str | None = Field(default=None, description="A link to the file.")


class RawResult(_Part):
    """A finished raw workflow."""

    images: list[RawImageData]
    outputs: list[RawOutput]
    texts: dict[str, list[str]] = Field(description="What nodes reported as text, by node id.")
    timings: Timings
    warnings: list[str]

    def delivered(self, handed: HandedOver) -> RawResult:
        """The result with its files, which were left empty in this one."""
        images: list[RawImageData] = []
        outputs: list[RawOutput] = []
        for output, file in zip(self.outputs, handed.files, strict=True):
            if output.data is None:
                kind = "base64" if file.url is None else "s3_url"
                data = file.data or file.url or ""
                images.append(RawImageData(filename=output.filename, type=kind, data=data))
                outputs.append(output.model_copy(update={"url": file.url}))
            else:
                outputs.append(output.model_copy(update={"data": file.data, "url": file.url}))
        timings = self.timings.after(handed)
        return self.model_copy(update={"images": images, "outputs": outputs, "timings": timings})


# Hands over the files of a result that has everything but them.
DeliverRaw = Callable[[RawResult, Sequence[ResultFile]], RawResult]


@dataclass(frozen=True)
class RawOutputs:
    """What a run reported: the parts of a `RawResult` whose files are left empty, and the files."""

    images: list[RawImageData]
    outputs: list[RawOutput]
    texts: dict[str, list[str]]
    files: tuple[ResultFile, ...]


def collect_raw(history: History, files: JobFiles) -> RawOutputs:
    """Fetch what a run reported.

    Previews (files of type temp) are left out unless there is no other file. Raises `ComfyFailed`
    when there is nothing at all.
    """
    # ComfyUI runs equal nodes once and reports their file for each of them.
    files_once = {(f.type, f.subfolder, f.filename): f for f in reversed(history.files)}
    reported = list(reversed(files_once.values()))
    saved = [file for file in reported if file.type != "temp"] or reported
    texts = {node_id: list(lines) for node_id, lines in history.texts.items()}
    if not saved and not texts:
        raise ComfyFailed("ComfyUI reported success without any file or text")
    found = [
        _found(file, files.collect(file), str(number) if len(saved) > 1 else "")
        for number, file in enumerate(saved, 1)
    ]
    outputs = [_output(file, one, files.subfolder) for file, one in zip(saved, found, strict=True)]
    images = [
        RawImageData(filename=output.filename, data="") for output in outputs if output.data is None
    ]
    return RawOutputs(images, outputs, texts, tuple(found))


def _found(file: OutputFile, path: Path, part: str) -> ResultFile:
    with path.open("rb") as content:
        mime_type = mime_type_of(content.read(_HEAD_BYTES), file.filename)
    return ResultFile.of(path, file.filename, mime_type, part)


def _output(file: OutputFile, found: ResultFile, own_folder: str) -> RawOutput:
    return RawOutput(
        node_id=file.node_id,
        kind=file.kind,
        filename=file.filename,
        subfolder=file.subfolder.removeprefix(own_folder).strip("/"),
        mime_type=found.mime_type,
        bytes=found.bytes,
        sha256=found.sha256,
        data=None if file.kind == "images" else "",
    )


def mime_type_of(head: bytes, filename: str) -> str:
    """The type of a file by its first bytes, else by its name."""
    for signature, mime_type in _SIGNATURES:
        if signature.match(head):
            return mime_type
    return mimetypes.guess_type(filename)[0] or "application/octet-stream"
